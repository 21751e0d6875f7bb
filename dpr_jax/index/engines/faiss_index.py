"""FAISS: any index that its factory strings describe, a few of them by name (Johnson et al., 2017,
arXiv 1702.08734).
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import defaults, embeddings, hits

# Below so many rows all are compared: k-means wants some 40 rows a partition, and there is nothing
# to gain.
PARTITIONS_FROM_ROWS = 5000
TRAINING_ROWS = 100_000
TRAINING_ROWS_PER_LEAF = 50
# {leaves} is index.leaves, {half} half the width of a vector; RFlat scores the best candidates
# again, exactly.
FACTORIES = {
    "flat": "Flat",
    "ivf_flat": "IVF{leaves},Flat",
    "ivf_pq": "IVF{leaves},PQ{half}x4fs,RFlat",
    "hnsw": "HNSW32,Flat",
}
# FAISS' name of a search-time parameter -> ours
_KNOBS = {"nprobe": "leaves_to_search", "efSearch": "ef_search"}
_RESCORED = "k_factor_rf"  # candidates rescored, as a multiple of k


def available() -> bool:
    """Returns whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class FaissIndex:
    """A FAISS index by inner product.

    Attributes:
      settings: what `load` needs again, to be kept by the caller: JSON values. `leaves_to_search`,
        `ef_search` and `reorder`, where the kind of index has them, hold for the next search.
    """

    def __init__(self, index: Any, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.count = settings["count"]
        self.dimension = settings["dimension"]
        self._index = index
        self._parameters = _faiss().ParameterSpace()

    @classmethod
    def build(cls, shards: list[np.ndarray], config: IndexConfig) -> "FaissIndex":
        """Trains an index on a sample and fills it block by block, so that no copy of all vectors
        is made besides its own.

        Args:
          shards: the vectors in corpus order, float16 or float32 [rows, D].
          config: faiss, leaves, leaves_to_search, ef_search, reorder.

        Raises:
          InputError: FAISS is not installed, does not take the factory string, or a vector is not
            finite.
        """
        faiss = _faiss()
        count, dimension = sum(map(len, shards)), shards[0].shape[1]
        config = defaults.fill_in(config, count)
        pattern = factory(config.faiss, count)
        for _ in embeddings.checked_blocks(shards):
            pass  # before hours of training
        try:
            index = faiss.index_factory(
                dimension,
                pattern.format(leaves=config.leaves, half=dimension // 2),
                faiss.METRIC_INNER_PRODUCT,
            )
            if not index.is_trained:
                index.train(_training_rows(shards, config.leaves))
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"index.faiss is {config.faiss!r}, of which FAISS makes no index for vectors of"
                f" width {dimension} ({str(error).splitlines()[-1]}); give one of"
                f" {', '.join(FACTORIES)} or another factory string"
            ) from None
        for _, block_BD in embeddings.checked_blocks(shards):
            index.add(block_BD)
        settings = {"count": count, "dimension": dimension, "factory": pattern}
        return cls(index, settings | _search_settings(faiss, index, config))

    def save(self, folder: Path) -> None:
        """Writes index.faiss into `folder`."""
        _faiss().write_index(self._index, str(folder / "index.faiss"))

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "FaissIndex":
        """Opens what `save` wrote."""
        return cls(_faiss().read_index(str(folder / "index.faiss")), settings)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best hits in the part that is searched; see `ExactIndex.search`."""
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        wanted = min(k, self.count)
        for theirs, ours in _KNOBS.items():
            if ours in self.settings:
                self._parameters.set_index_parameter(self._index, theirs, self.settings[ours])
        if "reorder" in self.settings:
            rescored = max(1.0, self.settings["reorder"] / wanted)
            self._parameters.set_index_parameter(self._index, _RESCORED, rescored)
        scores_QK, rows_QK = self._index.search(queries_QD, wanted)
        found = hits.in_order(scores_QK, rows_QK, rows_QK < 0)
        return hits.widen(*found, k)


def factory(name: str, count: int) -> str:
    """Returns the factory string of `index.faiss`, {leaves} and {half} not yet filled in."""
    if name == "auto":
        name = "ivf_flat" if count >= PARTITIONS_FROM_ROWS else "flat"
    return FACTORIES.get(name, name)


def _search_settings(faiss: ModuleType, index: Any, config: IndexConfig) -> dict:
    """Returns the search-time settings that this kind of index has."""
    parameters = faiss.ParameterSpace()
    parameters.initialize(index)
    ranges = parameters.parameter_ranges
    known = {ranges.at(place).name for place in range(ranges.size())}
    settings: dict[str, Any] = {}
    if "nprobe" in known:
        settings["leaves"] = faiss.extract_index_ivf(index).nlist
    for theirs, ours in _KNOBS.items():
        if theirs in known:
            settings[ours] = getattr(config, ours)
    if _RESCORED in known:
        settings["reorder"] = config.reorder
    return settings


def _training_rows(shards: list[np.ndarray], leaves: int) -> np.ndarray:
    """Vectors evenly spaced over the corpus, as many as k-means needs: float32 [rows, D]."""
    count = sum(map(len, shards))
    wanted = min(count, max(TRAINING_ROWS, TRAINING_ROWS_PER_LEAF * leaves))
    return embeddings.pick_rows(shards, np.linspace(0, count - 1, wanted).astype(np.int64))


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise InputError(
            "index.kind is faiss, which is not installed; `pip install faiss-cpu` or give"
            " --index.kind exact"
        ) from None
    return faiss
