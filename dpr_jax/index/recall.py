"""Computes the recall of an engine against exact search."""

import numpy as np

from dpr_jax.index.embeddings import pick_rows

RECALL_AT = 100
ROUNDING = 1e-5  # of float32 scores, relative


def recall(
    shards: list[np.ndarray],
    queries_QD: np.ndarray,
    exact_QK: np.ndarray,
    rows_QK: np.ndarray,
) -> np.ndarray:
    """Computes the share of the exact top K that was found, per query.

    A hit that scores as much as the exact last one is right, whichever row it is: a corpus with
    equal passages has more than one exact answer.

    Args:
      shards: the vectors in corpus order, [rows, D].
      queries_QD: float32.
      exact_QK: float32, scores of the exact top K, best first.
      rows_QK: int64, what was found; -1 is no hit, and a row counts once.

    Returns:
      float64 [Q], each in [0, 1].
    """
    rows_QK = np.sort(rows_QK, axis=1)
    right_QK = rows_QK >= 0
    right_QK[:, 1:] &= rows_QK[:, 1:] != rows_QK[:, :-1]
    lowest_Q = exact_QK[:, -1] - ROUNDING * np.abs(exact_QK).max(axis=1)
    for query_D, lowest, rows_K, right_K in zip(
        queries_QD, lowest_Q, rows_QK, right_QK, strict=True
    ):
        right_K[right_K] = pick_rows(shards, rows_K[right_K]) @ query_D >= lowest
    return right_QK.sum(axis=1) / exact_QK.shape[1]
