"""ScaNN: a partition tree, product quantization with an anisotropic loss, exact rescoring (Guo et
al., 2020, arXiv 1908.10396).
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpr_jax import host
from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import defaults, embeddings, hits
from dpr_jax.index.engines import simd

# Below so many rows there is nothing to gain from a tree, and code books want at least 16 rows to
# train on.
TREE_FROM_ROWS = 1000
TRAINING_ROWS = 100_000
# 0.006 more recall than with 100, at the same speed (docs/log.md)
TRAINING_ROWS_PER_LEAF = 250
ANISOTROPIC_THRESHOLD = 0.2  # ScaNN's usual one


def available() -> bool:
    """Returns whether ScaNN is installed (it has wheels for Linux on x86, Python below 3.14)."""
    return importlib.util.find_spec("scann") is not None


class ScannIndex:
    """A ScaNN searcher that checks its input, and marks hits that are missing.

    Attributes:
      settings: what `load` needs again, to be kept by the caller: JSON values. `leaves_to_search`
        and `reorder` hold for the next search.
    """

    def __init__(self, searcher: Any, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.count = settings["count"]
        self.dimension = settings["dimension"]
        self._searcher = searcher

    @classmethod
    def build(cls, shards: list[np.ndarray], config: IndexConfig) -> "ScannIndex":
        """Trains and fills an index.

        Args:
          shards: the vectors in corpus order, float16 or float32 [rows, D].
          config: leaves, leaves_to_search, reorder, dimensions_per_block, soar_lambda (Sun et al.,
            2023, arXiv 2404.00774), reorder_dtype.

        Raises:
          InputError: ScaNN is not installed, or a vector is not finite.
        """
        scann = _scann()
        vectors_ND = embeddings.as_float32(shards)
        count, dimension = vectors_ND.shape
        settings = {"count": count, "dimension": dimension}
        builder = scann.scann_ops_pybind.builder(vectors_ND, 100, "dot_product")
        if count < TREE_FROM_ROWS:
            return cls(builder.score_brute_force().build(), settings)
        config = defaults.fill_in(config, count)
        settings |= {
            "leaves": config.leaves,
            "leaves_to_search": config.leaves_to_search,
            "reorder": config.reorder,
            "dimensions_per_block": min(config.dimensions_per_block, dimension),
            "soar_lambda": config.soar_lambda,
            "reorder_dtype": config.reorder_dtype,
        }
        # random_init=False starts k-means with k-means++ under a fixed seed: the same vectors give
        # the same index, byte by byte
        searcher = (
            builder.tree(
                config.leaves,
                config.leaves_to_search,
                training_sample_size=max(TRAINING_ROWS, TRAINING_ROWS_PER_LEAF * config.leaves),
                random_init=False,
                soar_lambda=config.soar_lambda,
            )
            .score_ah(
                settings["dimensions_per_block"],
                anisotropic_quantization_threshold=ANISOTROPIC_THRESHOLD,
            )
            .reorder(config.reorder, scann.ReorderType[config.reorder_dtype.upper()])
            .build()
        )
        return cls(searcher, settings)

    def save(self, folder: Path) -> None:
        """Writes ScaNN's files into `folder`, with paths relative to it, so that it can be
        moved.
        """
        self._searcher.serialize(str(folder), relative_path=True)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "ScannIndex":
        """Opens what `save` wrote.

        Raises:
          InputError: ScaNN is not installed, or the folder holds a pickle, which ScaNN would
            execute.
        """
        scann = _scann()
        pickled = folder / "scann_docids.pkl"
        if pickled.exists():
            raise InputError(
                f"{pickled} is a pickle that no dpr_jax index has; do not trust this folder, run"
                " the index stage again"
            )
        searcher = scann.scann_ops_pybind.load_searcher(str(folder), assets_backcompat_shim=False)
        return cls(searcher, settings)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best hits in the partitions searched; see `ExactIndex.search`.

        Scores are exact inner products, since hits are rescored, as far as `reorder_dtype` holds
        them.
        """
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        wanted = min(k, self.count)
        if len(queries_QD) == 0:  # ScaNN refuses an empty batch
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        per_thread = -(-len(queries_QD) // (os.cpu_count() or 1))
        rows_QK, scores_QK = self._searcher.search_batched_parallel(
            queries_QD,
            final_num_neighbors=wanted,
            pre_reorder_num_neighbors=max(wanted, self.settings.get("reorder", 0)),
            leaves_to_search=self.settings.get("leaves_to_search"),
            batch_size=per_thread,
        )
        # where it finds fewer, ScaNN gives row 0 with the score NaN
        found = hits.in_order(scores_QK, rows_QK, np.isnan(scores_QK))
        return hits.widen(*found, k)


def _scann() -> ModuleType:
    try:
        import scann
    except ImportError:
        raise InputError(
            "index.kind is scann, which is not installed; `pip install scann` (Linux on x86, Python"
            " below 3.14) or give --index.kind exact"
        ) from None
    library = scann.scann_ops_pybind.scann_pybind.__file__
    simd.use_avx2(library, host.processor_features())
    return scann
