"""What an index finds of the exact result, measured in a fresh process."""

from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax.index import worker
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.recall import RECALL_AT, recall
from dpr_jax.index.removed import search_without
from dpr_jax.index.sample import NOTHING


def measure(
    kind: str,
    folder: Path,
    settings: dict[str, Any],
    shards: list[np.ndarray],
    queries_QD: np.ndarray,
    *,
    gone_R: np.ndarray = NOTHING,
) -> tuple[float, float]:
    """Share of the exact top 100 that the index in `folder` finds, loaded in a fresh process, and
    the queries it answers a second.

    Args:
      kind: of the engine.
      folder: of the index.
      settings: what the engine's `load` needs.
      shards: the vectors of all rows, in corpus order.
      queries_QD: what to ask, float32; nothing of the index was chosen by them.
      gone_R: rows that were removed, int64, ascending; no right answer.
    """
    exact = ExactIndex(shards)
    k = min(RECALL_AT, exact.count - len(gone_R))
    exact_QK, _ = search_without(exact.search, gone_R, queries_QD, k, count=exact.count)
    rows_QK, queries_per_s = worker.ask(kind, folder, settings, queries_QD, k)
    rows_QK[np.isin(rows_QK, gone_R)] = -1
    return recall(shards, queries_QD, exact_QK, rows_QK).mean(), queries_per_s
