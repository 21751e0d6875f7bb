"""Fusion of rankings, worked out by hand."""

import numpy as np
import pytest

from dpr_jax.retrieval import fusion
from dpr_jax.retrieval.fusion import Ranking


def ranking(*lists: list[tuple[int, float]], width: int = 3) -> Ranking:
    """(row, score) pairs of each question, best first."""
    scores_QN = np.full((len(lists), width), -np.inf, np.float32)
    rows_QN = np.full((len(lists), width), -1, np.int64)
    for question, hits in enumerate(lists):
        for place, (row, score) in enumerate(hits):
            rows_QN[question, place], scores_QN[question, place] = row, score
    return scores_QN, rows_QN


BM25 = ranking([(7, 12.0), (2, 9.0), (5, 3.0)], [(1, 4.0)], [])
DENSE = ranking([(2, 0.5), (9, 0.25), (7, -0.5)], [(3, 0.5), (1, 0.25)], [(8, 0.5), (4, 0.25)])


def test_linear_sum_by_hand() -> None:
    """Weight 4. What a list lacks counts as its lowest: 3 and -0.5; 4 and 0.25; 0 for the question
    that BM25 finds nothing for.

    Question 0: row 2 is 9 + 2, row 7 is 12 - 2, row 9 is 3 + 1, row 5 is 3 - 2. Question 1: row 3
      is 4 + 2, row 1 is 4 + 1.
    """
    scores_QK, rows_QK = fusion.linear(BM25, DENSE, weight=4.0, k=3)
    assert rows_QK.tolist() == [[2, 7, 9], [3, 1, -1], [8, 4, -1]]
    inf = -np.inf
    wanted = [[11, 10, 4], [6, 5, inf], [2, 1, inf]]
    np.testing.assert_array_equal(scores_QK, wanted)
    assert (scores_QK.dtype, rows_QK.dtype) == (np.float32, np.int64)


def test_reciprocal_ranks_by_hand() -> None:
    """Row 2: ranks 2 and 1; row 7: 1 and 3; row 9: 2 of the dense one alone; row 5: 3 of BM25
    alone.
    """
    scores_QK, rows_QK = fusion.reciprocal_rank([BM25, DENSE], k=4)
    assert rows_QK.tolist() == [[2, 7, 9, 5], [1, 3, -1, -1], [8, 4, -1, -1]]
    np.testing.assert_allclose(scores_QK[0], [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])
    np.testing.assert_allclose(scores_QK[1, :2], [1 / 61 + 1 / 62, 1 / 61])


def test_equal_scores_are_ordered_by_row() -> None:
    one, other = ranking([(9, 1.0), (4, 0.0)]), ranking([(4, 1.0), (9, 0.0)])
    assert fusion.linear(one, other, weight=1.0, k=2)[1].tolist() == [[4, 9]]
    assert fusion.reciprocal_rank([one, other], k=2)[1].tolist() == [[4, 9]]


def test_extreme_weights_are_one_ranking_alone() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(50)[:10] for _ in range(2)]
    scores = [-np.sort(-rng.random(10)) for _ in range(2)]
    one, other = (
        ranking(list(zip(r.tolist(), s.tolist(), strict=True)), width=10)
        for r, s in zip(rows, scores, strict=True)
    )
    nearly_bm25 = fusion.linear(one, other, weight=1e-9, k=9)[1][0]
    assert nearly_bm25.tolist() == rows[0][:9].tolist()
    nearly_dense = fusion.linear(one, other, weight=1e9, k=9)[1][0]
    assert nearly_dense.tolist() == rows[1][:9].tolist()


def test_weights_scale_with_the_scores() -> None:
    """Spread 3 against 0.5 in the only lists of two: the even weight is 6."""
    words, vectors = ranking([(1, 8.0), (2, 2.0)]), ranking([(1, 1.0), (2, 0.0)])
    weights = fusion.weights_to_try(words, vectors)
    assert weights[len(weights) // 2] == pytest.approx(6.0)
    assert (weights[0], weights[-1]) == (0.375, 96.0)
    assert weights == sorted(weights)


def test_weights_where_nothing_spreads() -> None:
    nothing = ranking([])
    assert fusion.weights_to_try(nothing, nothing)[8] == 1.0
