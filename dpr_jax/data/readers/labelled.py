"""Labelled pairs: rows of a question, a passage, and how relevant it is; the rows of one question
become one.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dpr_jax.data.raw import RawQuestion, short
from dpr_jax.data.readers import teacher
from dpr_jax.errors import InputError

WORDS = {"true": 1.0, "yes": 1.0, "relevant": 1.0, "false": 0.0, "no": 0.0, "irrelevant": 0.0}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def judged(
    row: dict[str, Any], ids: Sequence[str | None], where: str, positive_from: float | None
) -> tuple[list[str | None], list[str | None], tuple[int, ...], teacher.Scored]:
    """Returns positives and negatives by their labels, grades of the positives, and scores.

    Args:
      row: values by role; a label decides where there is a score too.
      ids: of the passages; None for an empty one.
      where: file and row.
      positive_from: least label or score of a positive; None: whole labels of 1 or more.

    Raises:
      InputError: a passage has no label, or one that is no number and neither true nor false, or a
        score without `positive_from`.
    """
    role = "label" if row.get("label") is not None else "score"
    numbers = [_label(one, role, where) for one in _as_list(row.get(role))]
    if len(numbers) != len(ids):
        raise InputError(
            f"{where}: {len(numbers)} {role}s for {len(ids)} passages; each passage needs one"
        )
    positives: list[str | None] = []
    hard: list[str | None] = []
    grades = []
    for id_, number in zip(ids, numbers, strict=True):
        if id_ is None:
            continue
        if _is_positive(number, role, where, positive_from):
            positives.append(id_)
            grades.append(int(number) if number == int(number) and number >= 1 else 1)
        else:
            hard.append(id_)
    pairs = zip(ids, numbers, strict=True) if role == "score" else ()
    scores = tuple((id_, number) for id_, number in pairs if id_ is not None)
    return positives, hard, tuple(grades), scores


def _is_positive(number: float, role: str, where: str, least: float | None) -> bool:
    if least is not None:
        return number >= least
    if number in (0, 1) or (role == "label" and number == int(number)):
        return number > 0
    raise InputError(
        f"{where}: {role} {number:g} does not say whether the passage is relevant; say from which"
        " on it is with --data.positive-from NUMBER, or leave the column out with --data.columns"
        " ignore=COLUMN"
    )


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    return value if isinstance(value, list) else [value]


def _label(value: Any, role: str, where: str) -> float:
    number = float(value) if isinstance(value, int | float) else float("nan")
    if isinstance(value, str):
        text = value.strip().lower()
        number = float(text) if _NUMBER.fullmatch(text) else WORDS.get(text, number)
    if not abs(number) <= teacher.LARGEST:
        raise InputError(
            f"{where}: {role} must be a number, or true or false, found {short(value)}; leave the"
            " column out with --data.columns ignore=COLUMN if it is something else"
        )
    return number


def grouped(rows: Iterator[RawQuestion], *, by_id: bool) -> Iterator[RawQuestion]:
    """Yields one question for all the rows that ask it, in the order of their first; holds all.

    Args:
      rows: of labelled pairs.
      by_id: whether ids tell questions apart; else their texts do.

    Raises:
      InputError: rows of one id have different questions.
    """
    found: dict[str, RawQuestion] = {}
    for row in rows:
        key = row.id if by_id else row.question
        first = found.setdefault(key, row)
        if first is row:
            continue
        if first.question != row.question:
            raise InputError(
                f"{row.where}: question id {row.id!r} has another text at {first.where}; ids must"
                " be unique"
            )
        found[key] = first._replace(
            positives=first.positives + row.positives,
            hard_negatives=first.hard_negatives + row.hard_negatives,
            passages=first.passages + row.passages,
            grades=first.grades + row.grades,
            teacher_scores=first.teacher_scores + row.teacher_scores,
            answers=tuple(dict.fromkeys(first.answers + row.answers)),
        )
    for row in found.values():
        reason = "" if row.positives else "no passage labelled relevant"
        yield row._replace(unusable=row.unusable or reason)
