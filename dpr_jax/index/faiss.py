"""FAISS: inverted lists over k-means partitions, vectors uncompressed (Johnson et al., 2017, arXiv 1702.08734)."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import defaults, embeddings, hits

# Below so many rows all are compared: k-means wants some 40 rows a partition, and there is nothing to gain.
PARTITIONS_FROM_ROWS = 5000


class FaissIndex:
    """IVF-Flat, or Flat where the corpus is small.

    Attributes:
      settings: what `load` needs again, to be kept by the caller: JSON values. `leaves_to_search` holds for the next search.
    """

    def __init__(self, index: Any, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.count = settings["count"]
        self.dimension = settings["dimension"]
        self._index = index

    @classmethod
    def build(cls, shards: list[np.ndarray], config: IndexConfig) -> "FaissIndex":
        """Trains and fills an index.

        Args:
          shards: the vectors in corpus order, float16 or float32 [rows, D].
          config: leaves, leaves_to_search.

        Raises:
          InputError: FAISS is not installed, or a vector is not finite.
        """
        faiss = _faiss()
        vectors_ND = embeddings.as_float32(shards)
        count, dimension = vectors_ND.shape
        settings = {"count": count, "dimension": dimension}
        index = faiss.IndexFlatIP(dimension)
        if count >= PARTITIONS_FROM_ROWS:
            config = defaults.fill_in(config, count)
            settings |= {
                "leaves": config.leaves,
                "leaves_to_search": config.leaves_to_search,
            }
            quantizer = index
            index = faiss.IndexIVFFlat(
                quantizer, dimension, config.leaves, faiss.METRIC_INNER_PRODUCT
            )
            index.train(vectors_ND)
        index.add(vectors_ND)
        return cls(index, settings)

    def save(self, folder: Path) -> None:
        """Writes index.faiss into `folder`."""
        _faiss().write_index(self._index, str(folder / "index.faiss"))

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "FaissIndex":
        """Opens what `save` wrote."""
        return cls(_faiss().read_index(str(folder / "index.faiss")), settings)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best hits in the partitions searched; see `ExactIndex.search` for arguments and result."""
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        if "leaves_to_search" in self.settings:
            self._index.nprobe = self.settings["leaves_to_search"]
        scores_QK, rows_QK = self._index.search(queries_QD, min(k, self.count))
        found = hits.in_order(scores_QK, rows_QK, rows_QK < 0)
        return hits.widen(*found, k)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise InputError(
            "index.kind is faiss, which is not installed; `pip install faiss-cpu` or give --index.kind exact"
        ) from None
    return faiss
