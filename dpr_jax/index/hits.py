"""Checks of queries and the order of hits, the same for every engine."""

import numpy as np

from dpr_jax.errors import InputError


def check_queries(queries_QD: np.ndarray, dimension: int) -> np.ndarray:
    """Returns the queries as contiguous float32 [Q, dimension].

    Raises:
      InputError: the width is another, or a row is not finite (ScaNN would answer NaN, or not at
        all).
    """
    queries_QD = np.ascontiguousarray(queries_QD, np.float32)
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dimension:
        raise InputError(
            f"question vectors have shape {queries_QD.shape}, the index holds vectors of width"
            f" {dimension}; encode questions with the model that encoded the passages"
        )
    finite_Q = np.isfinite(queries_QD).all(axis=1)
    if not finite_Q.all():
        raise InputError(
            f"question vector {int(np.argmin(finite_Q)):,} holds NaN or infinity; the question"
            " encoder's weights are unsound"
        )
    return queries_QD


def in_order(
    scores_QK: np.ndarray, rows_QK: np.ndarray, missing_QK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts hits by score, then by row; what is missing gets score -inf and row -1, at the end.

    Args:
      scores_QK: float, higher is better.
      rows_QK: corpus rows.
      missing_QK: bool, where the engine found nothing.

    Returns:
      (scores float32 [Q, K], rows int64 [Q, K]).
    """
    scores_QK = np.where(missing_QK, -np.inf, scores_QK).astype(np.float32)
    rows_QK = np.where(missing_QK, -1, rows_QK.astype(np.int64))
    order_QK = np.lexsort((rows_QK, -scores_QK), axis=1)
    return (
        np.take_along_axis(scores_QK, order_QK, axis=1),
        np.take_along_axis(rows_QK, order_QK, axis=1),
    )


def widen(scores_QK: np.ndarray, rows_QK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills up to k columns with missing hits, where the corpus has fewer than k passages."""
    short = ((0, 0), (0, k - scores_QK.shape[1]))
    return (
        np.pad(scores_QK, short, constant_values=-np.inf),
        np.pad(rows_QK, short, constant_values=-1),
    )
