"""Metrics of a run with their intervals and p-values: pure functions of arrays.

A run is `ranked`: one int64 array of corpus rows per question, best first. Each metric is one value
per question, value_Q; its mean over the questions is the metric, a bootstrap over the questions its
95 % interval. Runs over the same questions are compared in pairs: the same resampling for both, so
that what is hard for both does not count as uncertainty of their difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import ir_measures
import numpy as np

_CELLS_AT_ONCE = 4_000_000  # of a matrix [resamplings, questions]: 32 MB
_QUESTIONS_AT_ONCE = 1_000  # in ir_measures' dicts


class Estimate(NamedTuple):
    """A mean over questions with its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference of two means with its 95 % bootstrap interval and p-value (sign-flip
    test, two-sided).
    """

    value: float
    low: float
    high: float
    p_value: float


# --- one value per question


def graded(
    ranked: Sequence[np.ndarray],
    gold: Sequence[Mapping[int, int]],
    measures: Sequence[str],
) -> dict[str, np.ndarray]:
    """Computes measures that look at all gold passages, by trec_eval (through ir_measures).

    nDCG is trec_eval's ndcg_cut, whose gain is the grade itself (Jaervelin and Kekaelaeinen, 2002);
    all other measures take every gold passage alike.

    Args:
      ranked: corpus rows per question, best first.
      gold: corpus row -> grade (1 or more) of each question's gold passages, at least one.
      measures: in ir_measures' notation, such as `nDCG@10`, `R@100`.

    Returns:
      measure -> value_Q; 0 for a question that the run lacks.
    """
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    values = {name: np.zeros(len(ranked)) for name in measures}
    for start in range(0, len(ranked), _QUESTIONS_AT_ONCE):
        block = range(start, min(start + _QUESTIONS_AT_ONCE, len(ranked)))
        qrels = {str(q): {str(row): grade for row, grade in gold[q].items()} for q in block}
        run = {
            str(q): {str(row): -float(i) for i, row in enumerate(ranked[q].tolist())}
            for q in block
            if len(ranked[q])
        }
        for result in ir_measures.iter_calc(list(parsed), qrels, run):
            values[parsed[result.measure]][int(result.query_id)] = result.value
    return values


# --- what chance could have made of it


def estimate(value_QM: np.ndarray, *, samples: int, seed: int) -> list[Estimate]:
    """Returns the means of M metrics over the same questions, with 95 % bootstrap intervals.

    Args:
      value_QM: float64, one row a question, at least one.
      samples: resamplings of the questions, shared by all metrics.
      seed: of the resampling; equal seeds and question counts draw the same questions.
    """
    questions = len(value_QM)
    sums_SM = np.concatenate(
        [_draws(questions, rows, rng) @ value_QM for rows, rng in _blocks(questions, samples, seed)]
    )
    means_SM = sums_SM / questions  # divided last: sums of hits are exact
    low_M, high_M = np.quantile(means_SM, (0.025, 0.975), axis=0)
    means_M = value_QM.mean(axis=0)
    return [Estimate(*map(float, three)) for three in zip(means_M, low_M, high_M, strict=True)]


def differences(
    value_QM: np.ndarray, baseline_QM: np.ndarray, *, samples: int, seed: int
) -> list[Difference]:
    """Returns the gain of a run over the baseline on the same questions, for M metrics.

    The interval is a bootstrap over questions of the paired difference. The p-value is the share of
    `samples` random flips of the signs of the differences whose mean is as far from 0 as the one
    seen (the one seen counted in, so that it is never 0).

    Args:
      value_QM: float64, the run's values.
      baseline_QM: float64, the baseline's for the same questions and metrics.
      samples: resamplings, and sign flips.
      seed: of both.
    """
    delta_QM = value_QM - baseline_QM
    means = estimate(delta_QM, samples=samples, seed=seed)
    seen_M = abs(delta_QM.sum(axis=0)) - 1e-9  # sums in another order differ by less
    as_far_M = np.ones(delta_QM.shape[1])
    for rows, rng in _blocks(len(delta_QM), samples, seed):
        sign_SQ = rng.integers(0, 2, (rows, len(delta_QM)), np.int8) * 2.0 - 1.0
        as_far_M += (abs(sign_SQ @ delta_QM) >= seen_M).sum(axis=0)
    p_values = as_far_M / (1 + samples)
    return [Difference(*mean, float(p)) for mean, p in zip(means, p_values, strict=True)]


def _blocks(width: int, samples: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    """Splits `samples` rows of `width` cells into blocks that fit in memory, all drawn from one
    generator.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, samples, at_once):
        yield min(at_once, samples - start), rng


def _draws(questions: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each question is drawn in each of `rows` resamplings: float64 [S, Q]."""
    drawn_SQ = rng.integers(0, questions, (rows, questions))
    drawn_SQ += np.arange(rows)[:, None] * questions
    count_SQ = np.bincount(drawn_SQ.ravel(), minlength=rows * questions)
    return count_SQ.reshape(rows, questions).astype(np.float64)
