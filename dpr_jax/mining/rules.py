"""Rules for hard negatives, as functions of a question and the passages that rank
high for it.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from dpr_jax.config import Filter, Teacher
from dpr_jax.data.answers import has_answer
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError

RUN_WORDS = 5
# From this share of common word runs on a passage counts as a copy of a gold passage.
NEAR_COPY = 0.6
_WORD = re.compile(r"\w+")


class Rules(NamedTuple):
    """The limits that `hard_negatives` keeps.

    Attributes:
      depth: how many to keep.
      match: how an answer is looked for in a text.
      filter: the user's own judgement.
    """

    depth: int
    match: Literal["string", "regex"]
    filter: Filter | None = None


class Ranking(NamedTuple):
    """One source's ranking for one question, best first: scores float32 [K], corpus rows int64
    [K], -1 where there is none.
    """

    scores_K: np.ndarray
    rows_K: np.ndarray


def candidates(
    rankings: Sequence[Ranking],
    gold: int,
    *,
    skip: int,
    relative_margin: float | None,
) -> dict[int, bool]:
    """Returns the rows that several rankings propose, the best of each in turn, and for each row
    whether one of the rankings scores it too near the gold passage.

    The margin is that of NV-Retriever (Moreira et al., 2024, arXiv 2407.15831): what scores about
    as high as the gold passage is often another answer. A gold passage that a ranking does not hold
    scores at most what its last row does, so nothing of it is far enough.

    Args:
      rankings: one a source.
      gold: row of the gold passage.
      skip: leave out so many of the best of each ranking.
      relative_margin: least distance below the gold passage's score, as a share of it; None: any.
    """
    proposed: list[list[tuple[int, bool]]] = []
    for ranking in rankings:
        scores_K, rows_K = ranking
        limit = _limit(ranking, gold, relative_margin)
        near_K = scores_K > limit
        pairs = zip(rows_K[skip:].tolist(), near_K[skip:].tolist(), strict=True)
        proposed.append([(row, near) for row, near in pairs if row >= 0])
    found: dict[int, bool] = {}
    for in_turn in itertools.zip_longest(*proposed):
        for row, near in filter(None, in_turn):
            found[row] = found.get(row, False) or near
    return found


def _limit(ranking: Ranking, gold: int, margin: float | None) -> float:
    """Returns the highest score that is far enough below the gold passage's."""
    if margin is None:
        return np.inf
    at_gold = np.flatnonzero(ranking.rows_K == gold)
    if not len(at_gold):
        return -np.inf
    score = float(ranking.scores_K[at_gold[0]])
    return score - margin * abs(score)


def hard_negatives(
    question: Question,
    candidates: dict[int, bool],
    passage_of: Callable[[int], Passage],
    rules: Rules,
    passed_over: Callable[[str, int], None],
) -> tuple[int, ...]:
    """Returns the first candidates that the rules allow, at most `rules.depth`.

    Args:
      question: with its gold rows and answers.
      candidates: corpus rows in the order to try them, with whether the score is too near the gold
        passage's.
      passage_of: the passage of a row.
      rules: see there.
      passed_over: told the rule and the row of each candidate that is none.

    Raises:
      InputError: the user's filter fails, or does not judge every passage.
    """
    allowed = _allowed(question, candidates, passage_of, rules, passed_over)
    kept: list[int] = []
    while rows := list(itertools.islice(allowed, rules.depth - len(kept))):
        if rules.filter is not None:
            passages = [passage_of(row) for row in rows]
            may_stay = _judge(rules.filter, question, passages)
            for row in itertools.compress(rows, ~may_stay):
                passed_over("refused by mine.filter", row)
            rows = list(itertools.compress(rows, may_stay))
        kept += rows
    return tuple(kept)


def _allowed(
    question: Question,
    candidates: dict[int, bool],
    passage_of: Callable[[int], Passage],
    rules: Rules,
    passed_over: Callable[[str, int], None],
) -> Iterator[int]:
    """Yields the candidates that pass every rule but the user's own, in their order."""
    gold_runs = [word_runs(passage_of(row).text) for row in question.positives]
    for row, near_gold_score in candidates.items():
        if row in question.positives:
            passed_over("gold", row)
        elif near_gold_score:
            passed_over("scoring near the gold passage", row)
        elif near_copy(passage_of(row).text, gold_runs):
            passed_over("near copies of a gold passage", row)
        elif has_answer(question.answers, passage_of(row).text, match=rules.match):
            passed_over("with an answer", row)
        else:
            yield row


def word_runs(text: str) -> frozenset[tuple[str, ...]]:
    """Returns every run of five words of a text, without case and punctuation, or a shorter text
    whole."""
    words = _WORD.findall(text.casefold())
    length = min(RUN_WORDS, len(words))
    starts = range(len(words) - length + 1)
    return frozenset(tuple(words[start : start + length]) for start in starts)


def near_copy(text: str, gold_runs: Sequence[frozenset[tuple[str, ...]]]) -> bool:
    """Returns whether a text and a gold passage have at least 60 % of the shorter one's word runs
    in common.
    """
    runs = word_runs(text)
    return any(len(runs & gold) >= NEAR_COPY * min(len(runs), len(gold)) for gold in gold_runs)


def teacher_scores(
    teacher: Teacher,
    question: Question,
    rows: Sequence[int],
    passage_of: Callable[[int], Passage],
) -> tuple[tuple[int, float], ...]:
    """Returns the user's teacher's scores of some passages, as (row, score).

    Raises:
      InputError: it fails, or does not give every passage a finite number.
    """
    found = _ask(teacher, "mine.teacher", question, [passage_of(row) for row in rows])
    number = np.issubdtype(found.dtype, np.floating) or found.dtype.kind in "iu"
    if found.shape != (len(rows),) or not number or not np.isfinite(found).all():
        raise InputError(
            f"mine.teacher gave {found.dtype}{list(found.shape)} for the {len(rows)} passages of"
            f" question {question.id!r}; it must give one finite number each"
        )
    return tuple(zip(rows, found.astype(float).tolist(), strict=True))


def _judge(keep: Filter, question: Question, passages: list[Passage]) -> np.ndarray:
    """Returns the answers of the user's filter, bool [len(passages)]."""
    mask = _ask(keep, "mine.filter", question, passages)
    if mask.shape != (len(passages),) or mask.dtype != bool:
        raise InputError(
            f"mine.filter gave {mask.dtype}{list(mask.shape)} for the {len(passages)} passages of"
            f" question {question.id!r}; it must give one True or False each"
        )
    return mask


def _ask(
    function: Filter | Teacher, key: str, question: Question, passages: list[Passage]
) -> np.ndarray:
    pairs = [(passage.title, passage.text) for passage in passages]
    try:
        return np.asarray(function(question.question, pairs))
    except Exception as error:  # the user's code, whose traceback says where
        error.add_note(f"{key} failed on question {question.id!r}")
        raise
