"""Searching around removed rows, against brute force over what is left."""

import numpy as np
import pytest

from dpr_jax.index import hits
from dpr_jax.index.removed import search_without

COUNT = 300


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float32)


def brute_force(queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores_QN = queries_QD @ vectors().T
    rows_QN = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores_QN, rows_QN, axis=1), rows_QN
    return hits.widen(*found, k)


@pytest.mark.parametrize("gone", [0, 1, 40, 299, 300])
@pytest.mark.parametrize("k", [1, 10, 299, 400])
def test_equals_a_search_of_what_is_left(gone: int, k: int) -> None:
    queries_QD = vectors()[::20]
    # the best hits of the first question are all gone: it has to ask further than the others
    best_N = brute_force(queries_QD[:1], COUNT)[1][0]
    gone_R = np.sort(best_N[:gone])
    scores_QK, rows_QK = search_without(brute_force, gone_R, queries_QD, k, count=COUNT)
    assert scores_QK.shape == rows_QK.shape == (len(queries_QD), k)
    for question, rows_K in enumerate(brute_force(queries_QD, COUNT)[1]):
        left = rows_K[~np.isin(rows_K, gone_R)][:k]
        np.testing.assert_array_equal(rows_QK[question, : len(left)], left)
        assert (rows_QK[question, len(left) :] == -1).all()
        assert np.isneginf(scores_QK[question, len(left) :]).all()


def test_an_engine_that_finds_no_more_is_not_asked_again() -> None:
    asked = []

    def three_hits(queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        return hits.widen(*brute_force(queries_QD, 3), k)

    queries_QD = vectors()[:1]
    gone_R = brute_force(queries_QD, 1)[1][0]
    rows_QK = search_without(three_hits, gone_R, queries_QD, 4, count=COUNT)[1]
    assert (rows_QK[0] >= 0).tolist() == [True, True, False, False]
    assert asked == [5]
