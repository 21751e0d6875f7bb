"""The engines by name, and opening a finished index with whichever made it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError

MANIFEST = "index.json"


def engine(kind: str) -> type:
    """The class of an engine; only the one asked for is imported, since fresh processes wait for it.

    Raises:
      InputError: there is no such engine.
    """
    if kind == "exact":
        from dpr_jax.index.exact import ExactIndex as Engine
    elif kind == "scann":
        from dpr_jax.index.scann import ScannIndex as Engine
    elif kind == "faiss":
        from dpr_jax.index.faiss import FaissIndex as Engine
    else:
        raise InputError(
            f"index kind {kind!r} is unknown; known are exact, scann, faiss"
        )
    return Engine


@dataclasses.dataclass(frozen=True)
class Index:
    """A finished index.

    Attributes:
      kind: the engine's name.
      count: passages; row i is the i-th passage of the corpus.
      dimension: width of a vector.
      model_fingerprint: of the model that encoded the passages; questions must be encoded by the same.
      recall_at_100: share of the exact top 100 that it finds, measured when it was built.
      search: (queries float32 [Q, dimension], k) -> (scores float32 [Q, k], rows int64 [Q, k]), best first; where there are fewer
        than k hits, score -inf and row -1.
    """

    kind: str
    count: int
    dimension: int
    model_fingerprint: str
    recall_at_100: float
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def open_index(folder: Path) -> Index:
    """Opens the index in `folder`, after checking its files against their checksums.

    Raises:
      InputError: there is no finished index, a file is missing or damaged (by name), or the engine is not installed.
    """
    facts = artifacts.verify(folder / MANIFEST)
    loaded = engine(facts["kind"]).load(folder, facts["settings"])
    return Index(
        kind=facts["kind"],
        count=facts["count"],
        dimension=facts["dimension"],
        model_fingerprint=facts["model"],
        recall_at_100=facts["recall_at_100"],
        search=loaded.search,
    )
