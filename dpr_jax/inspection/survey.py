"""Counts prepared data: lengths, repeats, answers in gold passages, overlap of test with train."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dpr_jax.data.answers import has_answer
from dpr_jax.data.passage_rows import HashedTexts
from dpr_jax.data.raw import comparable
from dpr_jax.data.store import Corpus, Question, Questions

SAMPLE = 20_000
BARS = 16
EXAMPLES = 20

SizesOf = Callable[[Sequence[Any]], list[int]]  # texts, or (title, text) -> tokens


def evenly(count: int, sample: int = SAMPLE) -> list[int]:
    """Returns at most `sample` rows of `count`, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(count, sample)).round()).astype(int).tolist()


def lengths(sizes: Sequence[int], limit: int) -> dict[str, Any]:
    """Returns mean, quantiles and histogram of lengths in tokens.

    Args:
      sizes: at least one length.
      limit: where the encoder cuts a text.

    Returns:
      `over_limit` is the share of texts that are cut; `bars` holds the shares of lengths in [0,
        width), [width, 2 width), ..., the last
      of which is open above.
    """
    sizes_N = np.asarray(sizes)
    width = 1
    while width * BARS < np.quantile(sizes_N, 0.99):
        width *= 2
    counts = np.bincount(np.minimum(sizes_N // width, BARS - 1), minlength=1)
    return {
        "texts": len(sizes_N),
        "mean": float(sizes_N.mean()),
        "median": int(np.median(sizes_N)),
        "p95": int(np.quantile(sizes_N, 0.95)),
        "max": int(sizes_N.max()),
        "limit": limit,
        "over_limit": float((sizes_N > limit).mean()),
        "width": width,
        "bars": (counts / len(sizes_N)).tolist(),
    }


def corpus(
    passages: Corpus, sizes_of: SizesOf, limit: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Counts over all passages; lengths over a sample.

    Args:
      passages: the corpus.
      sizes_of: tokens of each (title, text).
      limit: tokens at which a passage is cut.
      advance: told the passages done.
    """
    texts, without_text, without_title = HashedTexts(), 0, 0
    for passage in passages:
        texts.add(passage.text)
        without_text += not passage.text.strip()
        without_title += not passage.title.strip()
        advance(1)
    sample = passages.rows(evenly(len(passages)))
    return {
        "passages": len(passages),
        "repeated_texts": len(texts) - texts.distinct(),
        "without_text": without_text,
        "without_title": without_title,
        "tokens": lengths(sizes_of([(one.title, one.text) for one in sample]), limit),
    }


class SplitHashes(NamedTuple):
    """Hashes that are compared between splits; 24 bytes per question.

    Attributes:
      texts: the questions, without case and punctuation.
      gold_rows: corpus rows of all gold passages.
      gold_questions: the question's row of each of them.
    """

    texts: HashedTexts
    gold_rows: "array[int]"
    gold_questions: "array[int]"


def split(
    questions: Questions,
    passages: Corpus,
    sizes_of: SizesOf,
    limit: int,
    match: Literal["string", "regex"],
) -> tuple[dict[str, Any], SplitHashes]:
    """Counts over all questions; lengths, and answers found in the text of a gold passage, over a
    sample.

    Args:
      questions: of one split.
      passages: the corpus.
      sizes_of: tokens of each question.
      limit: tokens at which a question is cut.
      match: how an answer is looked for.
    """
    asked = SplitHashes(HashedTexts(), array("q"), array("q"))
    judged, answered, negatives = 0, 0, 0
    chosen, sample = set(evenly(len(questions))), []
    for row, question in enumerate(questions):
        asked.texts.add(comparable(question.question))
        asked.gold_rows.extend(question.positives)
        asked.gold_questions.extend([row] * len(question.positives))
        judged += bool(question.positives)
        answered += bool(question.answers)
        negatives += len(question.hard_negatives)
        if row in chosen:
            sample.append(question)
    checkable = [one for one in sample if one.answers and one.positives]
    facts = {
        "questions": len(questions),
        "repeated": len(asked.texts) - asked.texts.distinct(),
        "with_gold": judged,
        "with_answers": answered,
        "hard_negatives": negatives / len(questions),
        "checked_for_answers": len(checkable),
        "answer_in_gold": sum(_answered(one, passages, match) for one in checkable),
        "tokens": lengths(sizes_of([one.question for one in sample]), limit),
    }
    return facts, asked


def _answered(question: Question, passages: Corpus, match: Literal["string", "regex"]) -> bool:
    texts = [passage.text for passage in passages.rows(question.positives)]
    return any(has_answer(question.answers, text, match=match) for text in texts)


def overlap(questions: Questions, asked: SplitHashes, seen: SplitHashes) -> dict[str, Any]:
    """Counts the questions of a split whose text or gold passage is in another split too.

    Texts are compared without case and punctuation.

    Args:
      questions: those of the split, for examples.
      asked: what `split` found of it.
      seen: the same of the split that was trained on, or tuned on.
    """
    repeated_N = asked.texts.rows_also_in(seen.texts)
    is_seen_N = np.isin(asked.gold_rows, seen.gold_rows)
    with_seen_gold = np.unique(np.asarray(asked.gold_questions)[is_seen_N])
    return {
        "of": len(questions),
        "questions": len(repeated_N),
        "with_seen_gold": len(with_seen_gold),
        "examples": [questions[row].question for row in repeated_N[:EXAMPLES].tolist()],
    }
