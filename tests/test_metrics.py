"""Metrics on tables worked out by hand, agreement with trec_eval, and intervals."""

import ir_measures
import numpy as np
import pytest

from dpr_jax.data import ranks
from dpr_jax.evaluation import metrics


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# Five questions: hits at rank 1, 3, none in the list, an empty list, 11.
RANKED = [rows(7, 1, 2), rows(3, 4, 7), rows(1, 2, 3), rows(), rows(*range(20, 30), 7)]
GOLD = [{7}] * 5
RANK_Q = np.array([1, 3, 0, 0, 11])


def test_first_hits() -> None:
    found = ranks.first_hits(RANKED, lambda q, row: row in GOLD[q])
    np.testing.assert_array_equal(found, RANK_Q)


def test_first_hits_asks_no_further_than_the_first_hit() -> None:
    asked = []
    ranks.first_hits([rows(5, 6, 7)], lambda q, row: asked.append(row) or row == 6)
    assert asked == [5, 6]


@pytest.mark.parametrize(
    ("k", "share"), [(1, 0.2), (2, 0.2), (3, 0.4), (10, 0.4), (11, 0.6), (100, 0.6)]
)
def test_top_k_is_a_share_of_all_questions(k: int, share: float) -> None:
    assert ranks.top_k(RANK_Q, k).mean() == pytest.approx(share)


def test_reciprocal_rank() -> None:
    at_10 = ranks.reciprocal_rank(RANK_Q, 10)
    np.testing.assert_allclose(at_10, [1, 1 / 3, 0, 0, 0])
    at_11 = ranks.reciprocal_rank(RANK_Q, 11)
    np.testing.assert_allclose(at_11, [1, 1 / 3, 0, 0, 1 / 11])


def test_mean_reciprocal_rank() -> None:
    rows_QK = np.array([[5, 6, 7], [5, 6, 7], [5, -1, -1]])
    gold = [(7, 6), (5,), (1,)]
    assert ranks.mean_reciprocal_rank(rows_QK, gold) == pytest.approx((1 / 2 + 1) / 3)


def test_graded_by_hand() -> None:
    # Gold passages 1 and 2; found at ranks 1 and 3; the second question finds one of its two at
    # rank 2; the third has no list.
    values = metrics.graded(
        [rows(1, 9, 2), rows(9, 2, 8), rows()],
        [{1: 1, 2: 1}, {1: 1, 2: 1}, {1: 1}],
        ["nDCG@10", "R@1", "R@3"],
    )
    ideal = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(
        values["nDCG@10"],
        [(1 + 1 / np.log2(4)) / ideal, (1 / np.log2(3)) / ideal, 0],
        atol=1e-6,
    )
    np.testing.assert_allclose(values["R@1"], [0.5, 0, 0])
    np.testing.assert_allclose(values["R@3"], [1, 0.5, 0])


def test_all_agree_with_trec_eval() -> None:
    """Over more questions than one block holds, some without a list."""
    rng = np.random.default_rng(0)
    questions, passages = 1100, 60
    ranked = [rng.permutation(passages)[: rng.integers(0, 40)] for _ in range(questions)]
    gold = [
        {int(p): int(rng.integers(1, 4)) for p in rng.permutation(passages)[: rng.integers(1, 9)]}
        for _ in range(questions)
    ]
    qrels = {str(q): {str(p): grade for p, grade in gold[q].items()} for q in range(questions)}
    run = {
        str(q): {str(p): float(100 - i) for i, p in enumerate(ranked[q].tolist())}
        for q in range(questions)
        if len(ranked[q])
    }
    names = ["nDCG@10", "R@5", "Success@1", "Success@5", "Success@20", "RR@10"]
    wanted = {
        str(measure): value
        for measure, value in ir_measures.calc_aggregate(
            map(ir_measures.parse_measure, names), qrels, run
        ).items()
    }
    rank_Q = ranks.first_hits(ranked, lambda q, row: row in gold[q])
    graded = metrics.graded(ranked, gold, ["nDCG@10", "R@5"])
    ours = {
        **{name: value.mean() for name, value in graded.items()},
        **{f"Success@{k}": ranks.top_k(rank_Q, k).mean() for k in (1, 5, 20)},
        "RR@10": ranks.reciprocal_rank(rank_Q, 10).mean(),
    }
    assert ours == pytest.approx(wanted, abs=1e-9)


def test_interval_of_a_share_is_the_binomial_one() -> None:
    value_Q = np.repeat([1.0, 0.0], [120, 280])
    [mean] = metrics.estimate(value_Q[:, None], samples=4000, seed=1)
    assert mean.value == 0.3
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert mean.low == pytest.approx(0.3 - half, abs=0.005)
    assert mean.high == pytest.approx(0.3 + half, abs=0.005)


def test_interval_is_the_same_each_time_and_metric_by_metric() -> None:
    value_QM = np.random.default_rng(2).random((50, 3))
    together = metrics.estimate(value_QM, samples=300, seed=5)
    alone = [metrics.estimate(value_QM[:, [m]], samples=300, seed=5)[0] for m in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together == metrics.estimate(value_QM, samples=300, seed=5)
    assert together != metrics.estimate(value_QM, samples=300, seed=6)


def test_small_blocks_resample_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CELLS_AT_ONCE", 1000)
    value_Q = np.repeat([1.0, 0.0], [60, 140])
    [mean] = metrics.estimate(value_Q[:, None], samples=3001, seed=1)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 200)
    assert (mean.high - mean.low) / 2 == pytest.approx(half, abs=0.006)


def test_interval_of_what_never_varies_has_no_width() -> None:
    assert metrics.estimate(np.ones((9, 1)), samples=100, seed=0) == [(1.0, 1.0, 1.0)]


def test_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    """The run finds all that the baseline finds, and 20 questions of 400 more."""
    base_Q = np.repeat([1.0, 0.0], [200, 200])
    value_Q = np.repeat([1.0, 0.0], [220, 180])
    [gap] = metrics.differences(value_Q[:, None], base_Q[:, None], samples=4000, seed=3)
    assert gap.value == pytest.approx(0.05)
    half = 1.96 * np.sqrt(0.05 * 0.95 / 400)
    assert gap.low == pytest.approx(0.05 - half, abs=0.004)
    assert gap.high == pytest.approx(0.05 + half, abs=0.004)
    assert gap.p_value == pytest.approx(1 / 4001)  # 2 ** -19: no flip comes near


def test_p_value_is_the_sign_tests() -> None:
    """8 wins, 2 losses: two-sided binomial p is 112 / 1024; ties change nothing."""
    delta_Q = np.repeat([1.0, -1.0, 0.0], [8, 2, 30])
    [gap] = metrics.differences(delta_Q[:, None], np.zeros((40, 1)), samples=40_000, seed=4)
    assert gap.p_value == pytest.approx(112 / 1024, abs=0.01)


def test_no_difference_has_p_value_one() -> None:
    same = np.ones((10, 1))
    assert metrics.differences(same, same, samples=50, seed=0) == [(0, 0, 0, 1)]
