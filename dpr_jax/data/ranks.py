"""Ranks of first hits and what follows from them: pure functions of arrays.

A run is one list of corpus rows per question, best first.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np


def first_hits(ranked: Iterable[np.ndarray], is_hit: Callable[[int, int], bool]) -> np.ndarray:
    """Finds the rank of the first hit of each question.

    Args:
      ranked: int64 corpus rows per question, best first.
      is_hit: (question's row, passage's row) -> whether the passage counts as found; called only
        up to the first hit.

    Returns:
      rank_Q, int64: 1 is the top; 0 where there is no hit.
    """
    ranks = []
    for question, rows in enumerate(ranked):
        hits = (rank for rank, row in enumerate(rows.tolist(), 1) if is_hit(question, row))
        ranks.append(next(hits, 0))
    return np.array(ranks, np.int64)


def top_k(rank_Q: np.ndarray, k: int) -> np.ndarray:
    """Tells per question whether the first hit is among the first k.

    Returns:
      value_Q in {0.0, 1.0}, float64; its mean is top-k accuracy.
    """
    return ((rank_Q > 0) & (rank_Q <= k)).astype(np.float64)


def reciprocal_rank(rank_Q: np.ndarray, cutoff: int) -> np.ndarray:
    """Divides 1 by the rank of the first hit, per question.

    Returns:
      value_Q in [0, 1], float64, 0 where the hit is beyond the cutoff; its mean is MRR@cutoff.
    """
    return top_k(rank_Q, cutoff) / np.maximum(rank_Q, 1)


def mean_reciprocal_rank(rows_QK: np.ndarray, gold: Sequence[Collection[int]]) -> float:
    """Computes MRR@K of rankings of one length.

    Args:
      rows_QK: int64 corpus rows, best first; -1 where a list is shorter.
      gold: gold rows of each question.
    """
    rank_Q = first_hits(rows_QK, lambda question, row: row in gold[question])
    return float(reciprocal_rank(rank_Q, rows_QK.shape[1]).mean())
