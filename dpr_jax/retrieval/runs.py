"""Writing a run in the two forms that other tools read: TREC's, and DPR's retrieval output."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np

from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError


class Hit(NamedTuple):
    """One retrieved passage."""

    passage: Passage
    score: float
    has_answer: bool


def falling(scores_K: np.ndarray) -> np.ndarray:
    """Scores as float32 that fall strictly, each changed as little as possible.

    trec_eval and its kin read scores as float32, sort by them, and break ties by passage id, not by rank: equal scores would come out
    in another order than the one written.

    Args:
      scores_K: float32, best first.
    """
    falling_K = scores_K.astype(np.float32)
    for i in range(1, len(falling_K)):
        below = np.nextafter(falling_K[i - 1], np.float32(-np.inf))
        falling_K[i] = min(falling_K[i], below)
    return falling_K


def write_trec(file: TextIO, question: Question, hits: Sequence[Hit], tag: str) -> None:
    """Writes `question Q0 passage rank score tag` lines; ranks start at 1, nine digits give each float32 back exactly.

    Raises:
      InputError: an id holds white space, which this format cannot hold.
    """
    for rank, hit in enumerate(hits, start=1):
        for owner, value in (("question", question.id), ("passage", hit.passage.id)):
            if len(value.split()) != 1:
                raise InputError(
                    f"{owner} id {value!r} is empty or holds white space, which a TREC run cannot hold; rename it in the data"
                )
        file.write(f"{question.id} Q0 {hit.passage.id} {rank} {hit.score:.9g} {tag}\n")


class JsonRun:
    """Writes DPR's retrieval output, a JSON list with one entry a question, without holding it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._before = "[\n"

    def add(self, question: Question, hits: Sequence[Hit]) -> None:
        """Appends one question with its passages."""
        entry: dict[str, Any] = {
            "question": question.question,
            "answers": list(question.answers),
            "ctxs": [
                {
                    "id": hit.passage.id,
                    "title": hit.passage.title,
                    "text": hit.passage.text,
                    "score": hit.score,
                    "has_answer": hit.has_answer,
                }
                for hit in hits
            ],
        }
        self._file.write(self._before + json.dumps(entry, ensure_ascii=False))
        self._before = ",\n"

    def end(self) -> None:
        """Closes the list."""
        self._file.write("\n]\n" if self._before == ",\n" else "[]\n")
