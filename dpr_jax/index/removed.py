"""Leaves removed rows out of an engine's hits, by asking it for more hits than are wanted."""

from collections.abc import Callable

import numpy as np

from dpr_jax.index import hits

# (queries float32 [Q, D], k) -> (scores float32 [Q, k], rows int64 [Q, k]), missing hits -inf and
# -1 at the end
SearchFunction = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def search_without(
    search: SearchFunction, gone_R: np.ndarray, queries_QD: np.ndarray, k: int, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best hits that are not in `gone_R`.

    The engine is asked for twice as many hits until every question has k. So only a question whose
    best passages were removed costs more.

    Args:
      search: of an engine.
      gone_R: rows that must not be found, int64.
      queries_QD: float32.
      k: hits per query.
      count: rows that the engine has.

    Returns:
      (scores float32 [Q, k], rows int64 [Q, k]); where no k others are found, score -inf and row
      -1.
    """
    if not len(gone_R):
        return search(queries_QD, k)
    scores_QK = np.full((len(queries_QD), k), -np.inf, np.float32)
    rows_QK = np.full((len(queries_QD), k), -1, np.int64)
    left_Q = np.arange(len(queries_QD))
    most = min(k + len(gone_R), count)  # among so many there are k that stayed
    asked = min(2 * k, most)
    while len(left_Q):
        scores_LA, rows_LA = search(queries_QD[left_Q], asked)
        exhausted_L = rows_LA[:, -1] < 0
        found = hits.in_order(scores_LA, rows_LA, (rows_LA < 0) | np.isin(rows_LA, gone_R))
        wide = min(k, asked)
        scores_QK[left_Q, :wide], rows_QK[left_Q, :wide] = (part[:, :wide] for part in found)
        short_L = (found[1] >= 0).sum(axis=1) < k
        if asked == most:
            break
        left_Q = left_Q[short_L & ~exhausted_L]
        asked = min(2 * asked, most)
    return scores_QK, rows_QK
