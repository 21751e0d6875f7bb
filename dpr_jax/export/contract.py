"""The interface of an engine of an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.data.raw import Passage
from dpr_jax.export.folder import Passages, read_ids
from dpr_jax.export.source import ExportSource


class EngineHit(NamedTuple):
    """A passage that an engine found, by its id, with a score, higher for better."""

    id: str
    score: float


class Options(NamedTuple):
    """The options of the command line besides engine and folder.

    Attributes:
      shards: parts to split the corpus into.
      url: where the engine answers.
      table: name of its table or collection.
    """

    shards: int = 1
    url: str | None = None
    table: str = "passages"


class Connection:
    """An engine that answers.

    Attributes:
      about: what answers, in words.
      knobs: settings that hold for the next search; larger ones find more and take longer.
      limits: the largest value of each.
    """

    def __init__(self, folder: Path, about: str) -> None:
        self.about, self._passages = about, Passages(folder)
        self.knobs: dict[str, int] = {}
        self.limits: dict[str, int] = {}

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[EngineHit]]:
        """Returns the k best hits of every query, float32 [Q, D], best first."""
        raise NotImplementedError

    def plan(self) -> str:
        """Returns how the engine goes about a search now, in words; empty where it has one way."""
        return ""

    def passages(self, ids: list[str]) -> dict[str, Passage]:
        """Returns passages by id: from the export's files, where the engine holds no texts."""
        return {id_: self._passages.by_id(id_) for id_ in ids}

    def close(self) -> None:
        """Ends the connection, if there is one."""


class LocalConnection(Connection):
    """Files that are searched in this process; a hit is a row, which is a line of docid."""

    def __init__(self, folder: Path, about: str) -> None:
        super().__init__(folder, about)
        self._ids = read_ids(folder)

    def rows(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and rows [Q, k], best first; row -1 is no hit."""
        raise NotImplementedError

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[EngineHit]]:
        """Returns the k best hits of every query."""
        return [
            [EngineHit(self._ids[row], score) for score, row in zip(*pair, strict=True) if row >= 0]
            for pair in zip(*(part.tolist() for part in self.rows(queries_QD, k)), strict=True)
        ]


class Engine(NamedTuple):
    """One engine.

    Attributes:
      write: fills a folder with its files; returns facts for the manifest.
      connect: (folder, manifest, options) -> the live engine.
      then: (folder, manifest) -> the commands that follow the export, one per line.
      load: loads a finished export into the engine at options.url; None: it loads nothing itself.
      require: raises InputError where a package that an export needs is not installed.
    """

    write: Callable[[ExportSource, Path, Options], dict[str, Any]]
    connect: Callable[[Path, dict[str, Any], Options], Connection]
    then: Callable[[Path, dict[str, Any]], list[str]]
    load: Callable[[Path, dict[str, Any], Options], None] | None = None
    require: Callable[[Options], None] = lambda _: None
