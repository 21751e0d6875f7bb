"""Questions of the report with their top passages side by side.

They are drawn by rule and seed, wins and losses in their proportion.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from dpr_jax.data.answers import Match, has_answer
from dpr_jax.data.store import Corpus, Question

EXAMPLES = 10  # questions in the report
TOP = 3
WINDOW_CHARS = 360


class Shown(NamedTuple):
    """A passage as the page shows it.

    Attributes:
      rank: 1 is the top; 0 for a gold passage shown beside the runs.
      title: of the passage.
      parts: pieces of its text, (piece, whether it is an answer); joined they are the window shown.
      rest: the whole text where the window is only a part of it, else "".
      is_gold: whether it is a gold passage.
      has_answer: whether an answer is in its text, by the rule that counts.
    """

    rank: int
    title: str
    parts: list[tuple[str, bool]]
    rest: str
    is_gold: bool
    has_answer: bool


class Example(NamedTuple):
    """One question of the report.

    Attributes:
      question: as asked.
      why: `win`, `loss` (at rank 1, the run against the baseline) or `chance`.
      answers: its answers.
      gold: one of its gold passages, or none.
      runs: run -> (rank of its first hit or 0, its top passages).
    """

    question: str
    why: Literal["win", "loss", "chance"]
    answers: tuple[str, ...]
    gold: Shown | None
    runs: dict[str, tuple[int, list[Shown]]]


class Choice(NamedTuple):
    """The examples, and what they were chosen from.

    Attributes:
      run: the run whose wins and losses they are, or "" where there is nothing to compare.
      baseline: against which one, or "".
      wins: questions with `run` right at rank 1 and the baseline wrong.
      losses: the other way round.
      examples: wins, losses, then those drawn by chance from the rest.
    """

    run: str
    baseline: str
    wins: int
    losses: int
    examples: list[Example]


def choose_examples(
    questions: Sequence[Question],
    corpus: Corpus,
    ranked: dict[str, list[np.ndarray]],
    rank_Q: dict[str, np.ndarray],
    *,
    judged: np.ndarray,
    baseline: str,
    match: Match,
    count: int,
    seed: int,
) -> Choice:
    """Half of the questions shown are those where the run and the baseline differ at rank 1, wins
    and losses in their proportion (each at least once, if there is room), half are drawn from all
    others.

    Args:
      questions: the test questions.
      corpus: their passages.
      ranked: run -> corpus rows of every question, best first.
      rank_Q: run -> rank of each question's first hit, 0: none.
      judged: rows of the questions that count.
      baseline: the run to compare with; the other one is `trained`, or the last that is not the
        baseline.
      match: how answers are looked for.
      count: how many questions to show.
      seed: of the draw.
    """
    others = [name for name in ranked if name != baseline]
    run = "trained" if "trained" in others else others[-1] if others else ""
    if baseline not in ranked or not run:
        run = baseline = ""
        wins = losses = judged[:0]
    else:
        right, base_right = rank_Q[run][judged] == 1, rank_Q[baseline][judged] == 1
        wins, losses = judged[right & ~base_right], judged[~right & base_right]
    rng = np.random.default_rng(seed)
    shown_wins, shown_losses = _shares(len(wins), len(losses), count // 2)
    drawn = [
        *(("win", row) for row in rng.permutation(wins)[:shown_wins]),
        *(("loss", row) for row in rng.permutation(losses)[:shown_losses]),
    ]
    rest = np.setdiff1d(judged, [row for _, row in drawn])
    drawn += [("chance", row) for row in rng.permutation(rest)[: count - len(drawn)]]
    examples = [
        _example(int(row), why, questions[int(row)], corpus, ranked, rank_Q, match=match)
        for why, row in drawn
    ]
    return Choice(run, baseline, len(wins), len(losses), examples)


def _shares(wins: int, losses: int, room: int) -> tuple[int, int]:
    """Splits the room between wins and losses in their proportion, each at least 1 if it occurs and
    there is room for both.
    """
    if not wins or not losses or room < 2:
        shown = min(room, max(wins, losses))
        return (shown, 0) if wins >= losses else (0, shown)
    shown_losses = min(max(1, round(room * losses / (wins + losses))), room - 1, losses)
    shown_wins = min(room - shown_losses, wins)
    return shown_wins, shown_losses


def _example(
    row: int,
    why: Literal["win", "loss", "chance"],
    question: Question,
    corpus: Corpus,
    ranked: dict[str, list[np.ndarray]],
    rank_Q: dict[str, np.ndarray],
    *,
    match: Match,
) -> Example:
    def show(rank: int, passage_row: int) -> Shown:
        passage = corpus[passage_row]
        parts, whole = _window(passage.text, question.answers)
        return Shown(
            rank=rank,
            title=passage.title,
            parts=parts,
            rest="" if whole else passage.text,
            is_gold=passage_row in question.positives,
            has_answer=has_answer(question.answers, passage.text, match=match),
        )

    runs = {}
    for name, rows in ranked.items():
        top = [show(i + 1, p) for i, p in enumerate(rows[row][:TOP].tolist())]
        runs[name] = int(rank_Q[name][row]), top
    gold = show(0, question.positives[0]) if question.positives else None
    return Example(question.question, why, question.answers, gold, runs)


def _window(text: str, answers: tuple[str, ...]) -> tuple[list[tuple[str, bool]], bool]:
    """Returns a window of the text around its first literal answer, in pieces, and whether that is
    all.

    The marks help reading; whether the passage counts is has_answer's business, which also sees
    answers written another way.
    """
    literal = "|".join(
        re.escape(answer) for answer in sorted(answers, key=len, reverse=True) if answer.strip()
    )
    pattern = re.compile(rf"(?<!\w)({literal})(?!\w)" if literal else r"(?!)", re.IGNORECASE)
    first = pattern.search(text)
    start = max(0, first.start() - WINDOW_CHARS // 3) if first else 0
    if len(text) <= WINDOW_CHARS:
        start, end = 0, len(text)
    else:
        start, end = _at_blanks(text, start, start + WINDOW_CHARS)
    window = text[start:end]
    parts: list[tuple[str, bool]] = [("… ", False)] if start else []
    at = 0
    for found in pattern.finditer(window):
        parts += [(window[at : found.start()], False), (found.group(), True)]
        at = found.end()
    parts.append((window[at:], False))
    if end < len(text):
        parts.append((" …", False))
    return [part for part in parts if part[0]], start == 0 and end == len(text)


def _at_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Moves both ends to blanks nearby, so that words stay whole; a text without blanks is cut
    where it is.
    """
    if start:
        blank = text.find(" ", start, start + 40)
        start = blank + 1 if blank >= 0 else start
    if end < len(text):
        blank = text.rfind(" ", end - 40, end)
        end = blank if blank >= 0 else end
    return start, min(end, len(text))
