"""Fuses two rankings of the same questions; pure functions of arrays.

A ranking is `(scores, rows)`: float32 [Q, N] and int64 [Q, N], best first; where it has fewer than
N hits, score -inf and row -1 at the end. The fused one has this form too. Equal scores are ordered
by row, the lower first.
"""

from collections.abc import Callable, Sequence

import numpy as np

Ranking = tuple[np.ndarray, np.ndarray]

DEPTH = 1000  # passages per question that each ranking brings in, at least the k asked for
RANK_CONSTANT = 60  # of Cormack et al.
STEPS_AROUND = 8  # weights tried on each side of the even one, each sqrt(2) of the next


def linear(bm25: Ranking, dense: Ranking, *, weight: float, k: int) -> Ranking:
    """Fuses by BM25 + weight * similarity over the union of both rankings (Karpukhin et al., 2020,
    arXiv 2004.04906, section 5).

    A passage that is in one ranking only gets the lowest score of the other one (0 where that one
    is empty).

    Args:
      bm25: ranking by words.
      dense: ranking by vectors.
      weight: the paper's lambda, above 0.
      k: passages per question.

    Returns:
      scores float32 [Q, k], rows int64 [Q, k].
    """

    def score(lists: list[Ranking], rows_U: np.ndarray) -> np.ndarray:
        parts = []
        for scores_F, rows_F in lists:
            lowest = scores_F[-1] if len(scores_F) else 0.0
            part_U = np.full(len(rows_U), lowest, np.float64)
            part_U[np.searchsorted(rows_U, rows_F)] = scores_F
            parts.append(part_U)
        return parts[0] + weight * parts[1]

    return _fuse((bm25, dense), score, k)


def reciprocal_rank(rankings: Sequence[Ranking], *, k: int) -> Ranking:
    """Fuses by the sum over the rankings of 1 / (60 + rank), 0 where a passage is missing (Cormack
    et al., 2009, SIGIR).

    Args:
      rankings: of the same questions.
      k: passages per question.

    Returns:
      scores float32 [Q, k], rows int64 [Q, k].
    """

    def score(lists: list[Ranking], rows_U: np.ndarray) -> np.ndarray:
        scores_U = np.zeros(len(rows_U))
        for _, rows_F in lists:
            rank_F = np.arange(1, len(rows_F) + 1)
            scores_U[np.searchsorted(rows_U, rows_F)] += 1 / (RANK_CONSTANT + rank_F)
        return scores_U

    return _fuse(rankings, score, k)


def weights_to_try(bm25: Ranking, dense: Ranking) -> list[float]:
    """Returns weights, ascending, around the one at which both rankings' scores have the same
    spread.

    BM25 scores are in the tens and similarities may be in the tenths, so that no fixed list would
    do.
    """
    spread = [_spread(ranking) for ranking in (bm25, dense)]
    even = spread[0] / spread[1] if all(spread) else 1.0
    steps = range(-STEPS_AROUND, STEPS_AROUND + 1)
    return [float(f"{even * 2 ** (step / 2):.3g}") for step in steps]


def _fuse(
    rankings: Sequence[Ranking],
    score: Callable[[list[Ranking], np.ndarray], np.ndarray],
    k: int,
) -> Ranking:
    """Returns the best k per question by `score(lists, rows)`; rows are all that are in a list,
    ascending."""
    count = len(rankings[0][1])
    scores_QK = np.full((count, k), -np.inf, np.float32)
    rows_QK = np.full((count, k), -1, np.int64)
    for question in range(count):
        lists = [_found(ranking, question) for ranking in rankings]
        rows_U = np.unique(np.concatenate([rows_F for _, rows_F in lists]))
        scores_U = score(lists, rows_U)
        best_K = np.lexsort((rows_U, -scores_U))[:k]
        scores_QK[question, : len(best_K)] = scores_U[best_K]
        rows_QK[question, : len(best_K)] = rows_U[best_K]
    return scores_QK, rows_QK


def _found(ranking: Ranking, question: int) -> Ranking:
    """Returns one question's scores [F] and rows [F], without what is missing at the end."""
    scores_QN, rows_QN = ranking
    found_N = rows_QN[question] >= 0
    return scores_QN[question][found_N], rows_QN[question][found_N]


def _spread(ranking: Ranking) -> float:
    """Returns the mean over questions of the standard deviation of a list's scores."""
    lists = [_found(ranking, question)[0] for question in range(len(ranking[0]))]
    return float(np.mean([scores_F.std() for scores_F in lists if len(scores_F)] or [0.0]))
