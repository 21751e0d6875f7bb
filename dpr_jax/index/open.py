"""The engines by name, and opening a finished index with the one that built it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError

MANIFEST = "index.json"


class Parts(NamedTuple):
    """The parts of an index; files are named relative to its folder.

    Attributes:
      kind: the engine.
      settings: what the engine's `load` needs, and `reduction` where its vectors are narrower.
      built: the folder beside this one that holds the engine's files; None: this one does.
      rows: file in that folder with the corpus rows of the engine's rows; None: the first ones.
      first_added: corpus row where the additions begin.
      added: files of vectors that were added since the engine built its own, whole width.
      removed: files of rows that were removed since.
    """

    kind: str
    settings: dict[str, Any]
    built: str | None = None
    rows: str | None = None
    first_added: int = 0
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> "Parts":
        """Takes the parts out of what index.json says."""
        return cls(**{name: manifest[name] for name in cls._fields})


@dataclasses.dataclass(frozen=True)
class Index:
    """A finished index.

    Attributes:
      kind: the engine's name.
      count: rows of the corpus, with its changes; those of removed passages are never found.
      dimension: width of a question's vector.
      passage_fingerprint: of the encoder that made the passages' vectors; questions must be encoded
        by one that belongs with it.
      recall_at_100: share of the exact top 100 that it finds, measured when it was written.
      prepared_count: the first so many rows are the corpus as it was prepared, without its changes.
      changes: how many changes of the corpus it knows.
      corpus: fingerprint of the corpus with these changes.
      on_devices: whether it searches on the accelerators, if only the passages that were added.
      search: (queries float32 [Q, dimension], k) -> (scores float32 [Q, k], rows int64 [Q, k]),
        best first; where there are fewer than k hits, score -inf and row -1.
    """

    kind: str
    count: int
    dimension: int
    passage_fingerprint: str
    recall_at_100: float
    prepared_count: int
    changes: int
    corpus: str
    on_devices: bool
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def open_index(folder: Path, *, everywhere: bool = False) -> Index:
    """Opens the index in `folder`, after checking its files against their checksums.

    Args:
      folder: of the index.
      everywhere: exact search uses the devices of all processes, which then have to search
        together, with the same queries.

    Raises:
      InputError: there is no finished index, a file is missing or damaged (by name), or the engine
        is not installed.
    """
    facts = artifacts.verify(folder / MANIFEST)
    for other in built_of(folder):
        artifacts.verify(other / MANIFEST)
    parts = Parts.of(facts)
    if everywhere and parts.kind == "exact":
        parts.settings["everywhere"] = True
    return Index(
        kind=parts.kind,
        count=facts["count"],
        dimension=facts["dimension"],
        passage_fingerprint=facts["model"],
        recall_at_100=facts["recall_at_100"],
        prepared_count=facts["prepared"],
        changes=facts["changes"],
        corpus=facts["corpus"],
        on_devices=parts.kind == "exact" or bool(parts.added),
        search=load(folder, parts).search,
    )


def built_of(folder: Path) -> list[Path]:
    """Returns the folders that an index needs besides its own.

    Raises:
      InputError: there is no finished index.
    """
    built = artifacts.read_json(folder / MANIFEST)["built"]
    return [folder.parent / built] if built else []


def load(folder: Path, parts: Parts) -> Any:
    """Opens an index, to be asked with whole vectors though its engine may hold narrower ones.

    Returns:
      An object with `search`, `count`, `dimension` and the engine's `settings`.

    Raises:
      InputError: there is no such engine, or it is not installed.
    """
    home = folder.parent / parts.built if parts.built else folder
    settings = dict(parts.settings)
    reduced_by = settings.pop("reduction", None)
    index = engine(parts.kind).load(home, settings)
    if reduced_by:
        from dpr_jax.index.reduction import ReducedIndex, Reduction

        reduction = Reduction.load(home, reduced_by)
    if parts.rows or parts.added or parts.removed:
        from dpr_jax.index.layers import LayeredIndex, rows_in

        added = [np.load(folder / name, mmap_mode="r") for name in parts.added]
        if reduced_by:  # as the built ones are, so that scores compare
            added = [reduction.passages(shard.astype(np.float32)) for shard in added]
        index = LayeredIndex(
            index,
            rows_N=np.load(home / parts.rows, mmap_mode="r") if parts.rows else None,
            first_added=parts.first_added,
            added=added,
            gone_R=rows_in([folder / name for name in parts.removed]),
        )
    return ReducedIndex(index, reduction) if reduced_by else index


def engine(kind: str) -> type:
    """Returns the class of an engine, and imports no other: fresh processes wait for it.

    Raises:
      InputError: there is no such engine.
    """
    if kind == "exact":
        from dpr_jax.index.engines.exact import ExactIndex as Engine
    elif kind == "scann":
        from dpr_jax.index.engines.scann_index import ScannIndex as Engine
    elif kind == "faiss":
        from dpr_jax.index.engines.faiss_index import FaissIndex as Engine
    else:
        raise InputError(f"index kind {kind!r} is unknown; known are exact, scann, faiss")
    return Engine
