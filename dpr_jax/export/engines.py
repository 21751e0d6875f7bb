"""The engines that an export may be for, by name, and what each of them provides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpr_jax.errors import InputError
from dpr_jax.export.source import Source

NAMES = ("numpy", "faiss", "scann")


class Hit(NamedTuple):
    """What an engine found: a passage by its id, with a score, the higher the better."""

    id: str
    score: float


class Options(NamedTuple):
    """What the command line says besides engine and folder.

    Attributes:
      shards: parts to split the corpus into.
      url: where the engine answers.
      table: name of its table or collection.
    """

    shards: int = 1
    url: str | None = None
    table: str = "passages"


class Connection(Protocol):
    """An engine that answers.

    Attributes:
      knobs: settings that hold for the next search; larger ones find more and take longer.
      limits: the largest value of each.
    """

    knobs: dict[str, int]
    limits: dict[str, int]

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[Hit]]:
        """Returns the k best hits of every query, float32 [Q, D], best first."""


class Engine(NamedTuple):
    """One engine.

    Attributes:
      write: fills a folder with its files; returns facts for the manifest.
      connect: (folder, manifest, options) -> the live engine.
      then: (folder, manifest) -> the commands that follow the export, one per line.
      load: loads a finished export into the engine at options.url; None: it loads nothing itself.
    """

    write: Callable[[Source, Path, Options], dict[str, Any]]
    connect: Callable[[Path, dict[str, Any], Options], Connection]
    then: Callable[[Path, dict[str, Any]], list[str]]
    load: Callable[[Path, dict[str, Any], Options], None] | None = None


def engine(name: str) -> Engine:
    """Returns an engine by its name, and imports no other.

    Raises:
      InputError: there is no such engine.
    """
    if name == "numpy":
        from dpr_jax.export import numpy_files as found
    elif name == "faiss":
        from dpr_jax.export import faiss_file as found
    elif name == "scann":
        from dpr_jax.export import scann_folder as found
    else:
        raise InputError(f"dpr export knows no engine {name!r}; there is {', '.join(NAMES)}")
    return found.ENGINE
