"""One run under one view of what is right: ranks of first hits, values per question, summary."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.data import ranks
from dpr_jax.data.answers import Match, matcher
from dpr_jax.data.store import Corpus, Question
from dpr_jax.evaluation import metrics

SAMPLES = 2000  # resamplings of the questions for the 95 % intervals
_TEXTS_KEPT = 50_000


class View(NamedTuple):
    """A definition of a right passage.

    Attributes:
      name: `gold` (it is a gold passage) or `answer` (an answer is in its text).
      judged: rows of the questions that count.
      is_hit: (question's row, passage's row) -> whether the passage is right.
      gold: corpus row -> grade of every question's gold passages; None in the view `answer`.
    """

    name: str
    judged: np.ndarray
    is_hit: Callable[[int, int], bool]
    gold: list[dict[int, int]] | None


class Scored(NamedTuple):
    """One run under one view.

    Attributes:
      rank_Q: the rank of each question's first hit, 1 is the top, 0: none.
      values: metric -> value_J, float64, of the questions that count.
    """

    rank_Q: np.ndarray
    values: dict[str, np.ndarray]


def views(questions: Sequence[Question], corpus: Corpus, match: Match) -> list[View]:
    """Returns the views that the questions' labels allow, the gold one first.

    By gold passage the questions that have one count; by answer all of them, as in DPR.
    """
    found = []
    gold = [question.grade_by_row() for question in questions]
    if any(gold):
        judged = np.flatnonzero([bool(rows) for rows in gold])
        found.append(View("gold", judged, lambda q, row: row in gold[q], gold))
    answers = [question.answers for question in questions]
    if any(answers):
        text = lru_cache(_TEXTS_KEPT)(lambda row: corpus[row].text)
        found.append(
            View(
                "answer",
                np.arange(len(questions)),
                lambda q, row: matcher(answers[q], match)(text(row)),
                None,
            )
        )
    return found


def score(view: View, ranked: list[np.ndarray], cutoffs: Sequence[int]) -> Scored:
    """Computes top-k accuracy at the cutoffs and MRR@10; with gold passages also nDCG@10, MAP and
    recall at the cutoffs.

    Args:
      view: what is right.
      ranked: corpus rows of every question, best first.
      cutoffs: the k.
    """
    rank_Q = ranks.first_hits(ranked, view.is_hit)
    rank_J = rank_Q[view.judged]
    values = {f"top-{k}": ranks.top_k(rank_J, k) for k in cutoffs}
    values["MRR@10"] = ranks.reciprocal_rank(rank_J, 10)
    if view.gold is not None:
        measures = {
            "nDCG@10": "nDCG@10",
            "MAP": "AP",
            **{f"recall@{k}": f"R@{k}" for k in cutoffs},
        }
        graded = metrics.graded(
            [ranked[row] for row in view.judged],
            [view.gold[row] for row in view.judged],
            list(measures.values()),
        )
        values.update({name: graded[measure] for name, measure in measures.items()})
    return Scored(rank_Q, values)


def summary(
    view: View,
    scored: Scored,
    compared_with: dict[str, Scored],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Returns the entry of metrics/SET/NAME.json for a run under a view.

    Args:
      view: what is right.
      scored: the run.
      compared_with: other runs by name, for the differences from them.
      samples: resamplings for the intervals.
      seed: of the resamplings.
    """
    value_JM = _table(scored)
    judged = set(view.judged.tolist())
    return {
        "questions": len(judged),
        "metrics": _by_name(scored, metrics.estimate(value_JM, samples=samples, seed=seed)),
        "difference": {
            other: _by_name(
                scored,
                metrics.differences(value_JM, _table(other_scored), samples=samples, seed=seed),
            )
            for other, other_scored in compared_with.items()
        },
        "first_hit_rank": [
            rank if row in judged else None for row, rank in enumerate(scored.rank_Q.tolist())
        ],
    }


def macro_average(
    of_sets: dict[str, list[dict[str, Any]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns view -> run -> metric -> the mean over the sets, each set counting alike.

    Runs, views and metrics that a set lacks are left out.

    Args:
      of_sets: set -> what metrics/SET/NAME.json holds of each run.
    """
    by_run = [{facts["run"]: facts for facts in summaries} for summaries in of_sets.values()]
    averages: dict[str, dict[str, dict[str, float]]] = {}
    for view in ("gold", "answer"):
        for run in by_run[0]:
            found = [facts.get(run, {}).get(view, {}).get("metrics") for facts in by_run]
            if all(found):
                common = [name for name in found[0] if all(name in one for one in found)]
                averages.setdefault(view, {})[run] = {
                    name: float(np.mean([one[name]["value"] for one in found])) for name in common
                }
    return averages


def _table(scored: Scored) -> np.ndarray:
    """Returns the metrics side by side, value_JM."""
    return np.stack(list(scored.values.values()), axis=1)


def _by_name(
    scored: Scored, numbers: Sequence[metrics.Estimate | metrics.Difference]
) -> dict[str, dict[str, float]]:
    """Returns values by metric, rounded: machines differ in the last digits."""
    return {
        metric: {name: round(value, 8) for name, value in found._asdict().items()}
        for metric, found in zip(scored.values, numbers, strict=True)
    }


def curve(
    view: View, scored: Scored, depth: int, *, samples: int, seed: int
) -> list[metrics.Estimate]:
    """Returns top-k accuracy with its interval for k = 1..depth."""
    rank_J = scored.rank_Q[view.judged]
    hit_JK = np.stack([ranks.top_k(rank_J, k + 1) for k in range(depth)], axis=1)
    return metrics.estimate(hit_JK, samples=samples, seed=seed)
