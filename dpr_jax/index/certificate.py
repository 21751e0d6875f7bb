"""What an index finds of the exact result, measured in a fresh process."""

from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax.index import worker
from dpr_jax.index.exact import ExactIndex
from dpr_jax.index.removed import search_without

RECALL_AT = 100
NOTHING = np.zeros(0, np.int64)


def measure(
    kind: str,
    folder: Path,
    settings: dict[str, Any],
    shards: list[np.ndarray],
    queries: int,
    *,
    gone_R: np.ndarray = NOTHING,
) -> tuple[float, float]:
    """Share of the exact top 100 that the index in `folder` finds, loaded in a fresh process, and the queries it answers a second.

    The queries are corpus rows, evenly spaced. A hit that scores as much as the exact 100th is right, whichever row it is: a corpus
    with equal passages has more than one exact answer.

    Args:
      kind: of the engine.
      folder: of the index.
      settings: what the engine's `load` needs.
      shards: the vectors of all rows, in corpus order.
      queries: how many to ask.
      gone_R: rows that were removed, int64, ascending; neither asked nor a right answer.
    """
    live_N = np.delete(np.arange(sum(len(shard) for shard in shards)), gone_R)
    k = min(RECALL_AT, len(live_N))
    sample_Q = np.linspace(0, len(live_N) - 1, queries).astype(np.int64)
    queries_QD = rows_of(shards, live_N[np.unique(sample_Q)])
    exact = ExactIndex(shards)
    exact_QK, _ = search_without(exact.search, gone_R, queries_QD, k, count=exact.count)
    rows_QK, queries_per_s = worker.ask(kind, folder, settings, queries_QD, k)
    right = 0
    for query_D, exact_K, rows_K in zip(queries_QD, exact_QK, rows_QK, strict=True):
        found = np.setdiff1d(rows_K[rows_K >= 0], gone_R)
        scores_K = rows_of(shards, found) @ query_D
        rounding = 1e-5 * np.abs(exact_K).max()
        right += int((scores_K >= exact_K[-1] - rounding).sum())
    return right / exact_QK.size, queries_per_s


def rows_of(shards: list[np.ndarray], rows_R: np.ndarray) -> np.ndarray:
    """Single rows of the corpus, float32 [R, D]."""
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    shard_R = np.searchsorted(starts, rows_R, side="right") - 1
    picked = [
        shards[shard][row - starts[shard]]
        for shard, row in zip(shard_R, rows_R, strict=True)
    ]
    return np.array(picked, np.float32).reshape(len(rows_R), shards[0].shape[1])
