"""Measures in a fresh process how much of the exact result an index finds."""

from pathlib import Path

import numpy as np

from dpr_jax.index import worker
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import Parts
from dpr_jax.index.recall import RECALL_AT, recall
from dpr_jax.index.removed import search_without


def measure(
    folder: Path,
    parts: Parts,
    shards: list[np.ndarray],
    queries_QD: np.ndarray,
    *,
    gone_R: np.ndarray,
) -> tuple[float, float]:
    """Loads an index in a fresh process, and compares its hits with those of exact search.

    Args:
      folder: of the index.
      parts: what it consists of.
      shards: the vectors of all rows, in corpus order.
      queries_QD: what to ask, float32; nothing of the index was chosen by them.
      gone_R: rows that were removed, int64, ascending; no right answer.

    Returns:
      (share of the exact top 100 that it finds, queries that it answers per second).
    """
    exact = ExactIndex(shards)
    k = min(RECALL_AT, exact.count - len(gone_R))
    exact_QK, _ = search_without(exact.search, gone_R, queries_QD, k, count=exact.count)
    rows_QK, queries_per_s = worker.search_fresh(folder, parts, queries_QD, k)
    rows_QK[np.isin(rows_QK, gone_R)] = -1
    return float(recall(shards, queries_QD, exact_QK, rows_QK).mean()), queries_per_s
