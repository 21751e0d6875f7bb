"""The engines by name, and opening a finished index with whichever made it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError

MANIFEST = "index.json"
LAYERED = "layered"  # an index of any kind that followed its corpus


def engine(kind: str) -> type:
    """The class of an engine; only the one asked for is imported, since fresh processes wait for
    it.

    Raises:
      InputError: there is no such engine.
    """
    if kind == "exact":
        from dpr_jax.index.engines.exact import ExactIndex as Engine
    elif kind == "scann":
        from dpr_jax.index.engines.scann_index import ScannIndex as Engine
    elif kind == "faiss":
        from dpr_jax.index.engines.faiss_index import FaissIndex as Engine
    elif kind == LAYERED:
        from dpr_jax.index.layers import LayeredIndex as Engine
    else:
        raise InputError(f"index kind {kind!r} is unknown; known are exact, scann, faiss")
    return Engine


def load(kind: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Opens an engine's files, to be asked with whole vectors though it may hold narrower ones.

    Args:
      settings: what the engine's `load` needs, and `reduction` where its vectors were made
        narrower.

    Raises:
      InputError: there is no such engine, or it is not installed.
    """
    own = {name: settings[name] for name in settings if name != "reduction"}
    loaded = engine(kind).load(folder, own)
    if "reduction" not in settings:
        return loaded
    from dpr_jax.index.reduction import ReducedIndex, Reduction

    # of a layered index the projection lies with the part that was built
    place = folder / settings.get("folder", "")
    return ReducedIndex(loaded, Reduction.load(place, settings["reduction"]))


@dataclasses.dataclass(frozen=True)
class Index:
    """A finished index.

    Attributes:
      kind: the engine's name.
      count: rows of the corpus, with its changes; those of removed passages are never found.
      dimension: width of a question's vector.
      passage_fingerprint: of the encoder that made the passages' vectors; questions must be encoded
        by one that belongs with it.
      recall_at_100: share of the exact top 100 that it finds, measured when it was built.
      prepared_count: the first so many rows are the corpus as it was prepared, without its changes.
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
    on_devices: bool
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def changes_in(folder: Path) -> tuple[int, str]:
    """How many changes of the corpus the index in `folder` knows, and the hash of the corpus after
    them ("" where there are none).

    Raises:
      InputError: there is no finished index.
    """
    changes = artifacts.read_json(folder / MANIFEST).get("changes")
    return (changes["count"], changes["log"]) if changes else (0, "")


def fingerprint_as_built(folder: Path) -> str:
    """Of the index before the changes of its corpus, for who searches the corpus as it was
    prepared.

    Raises:
      InputError: there is no finished index.
    """
    facts = artifacts.read_json(folder / MANIFEST)
    return facts.get("as_built") or artifacts.fingerprint(folder / MANIFEST)


def open_index(folder: Path) -> Index:
    """Opens the index in `folder`, after checking its files against their checksums.

    Raises:
      InputError: there is no finished index, a file is missing or damaged (by name), or the engine
        is not installed.
    """
    facts = artifacts.verify(folder / MANIFEST)
    layers = facts.get("layers")
    kind, settings = (LAYERED, layers) if layers else (facts["kind"], facts["settings"])
    return Index(
        kind=facts["kind"],
        count=facts["count"],
        dimension=facts["dimension"],
        passage_fingerprint=facts["model"],
        recall_at_100=facts["recall_at_100"],
        prepared_count=facts.get("prepared", facts["count"]),
        on_devices=facts["kind"] == "exact" or bool(layers and layers["added"]),
        search=load(kind, folder, settings).search,
    )
