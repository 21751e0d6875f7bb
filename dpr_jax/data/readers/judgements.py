"""Reads relevance judgements: TREC's, BEIR's, MS MARCO's triples of ids."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax.data.raw import short
from dpr_jax.data.readers import rows, tables
from dpr_jax.errors import InputError

QRELS_HEADS = ("query-id", "query_id", "qid", "query", "topic")
LINES_TO_TELL_BY = 1000

_WHOLE = re.compile(r"(-?\d{1,9})(?:\.0*)?", re.ASCII)
RULE = "qrels are lines of question-id, 0, passage-id, relevance"
_ITERATION = re.compile(r"\d+|Q0|-", re.IGNORECASE | re.ASCII)  # TREC's second column
_SMALL = re.compile(r"-?(?:\d|10)(?:\.\d*)?", re.ASCII)  # a grade, no passage's id


class Judgement(NamedTuple):
    """The grade of a passage for a question, and the line of the file that gives it."""

    grade: int
    line: int


class Qrels(NamedTuple):
    """Relevance judgements of one file.

    Attributes:
      path: the file.
      positives: question id -> passage id -> its judgement, where the grade is 1 or more.
      negatives: question id -> ids of irrelevant passages, where the file is one of triples.
      contradictions: file, line and content of each judgement that differs from an earlier one.
    """

    path: Path
    positives: dict[str, dict[str, Judgement]]
    negatives: dict[str, list[str]]
    contradictions: list[str]

    def where(self, question_id: str, passage_id: str) -> str:
        """Returns file:line of a positive."""
        return f"{self.path}:{self.positives[question_id][passage_id].line}"


def read_qrels(path: Path) -> Qrels:
    """Reads judgements: TREC's `question-id 0 passage-id grade`, BEIR's `question-id passage-id
    grade`, or MS MARCO's triples of ids, `question-id positive negative`.

    A header is passed over. Without one, three columns are judgements where the third holds small
    whole numbers alone, else triples. Grades are whole numbers, as in trec_eval (1.0 is 1); 1 or
    more makes the passage gold. Of two judgements of one passage the first counts.

    Raises:
      InputError: a line without three or four columns or unlike the lines before it, a grade that
        is no whole number, or no judgement at all.
    """
    layout = _qrels_layout(path)
    qrels = Qrels(path, {}, {}, [])
    judged: dict[str, dict[str, Judgement]] = {}
    for line, columns in _qrels_rows(path):
        question_id, passage_id, grade = _judgement(columns, layout, f"{path}:{line}")
        found = judged.setdefault(question_id, {})
        first = found.setdefault(passage_id, Judgement(grade, line))
        if first.grade != grade:
            qrels.contradictions.append(
                f"{path}:{line}: passage {passage_id!r} of question {question_id!r} has grade"
                f" {grade}, and {first.grade} in line {first.line}"
            )
        if layout == "triples":
            qrels.negatives.setdefault(question_id, []).append(columns[2])
    if not judged:
        raise InputError(f"{path} is empty; {RULE}")
    for question_id, found in judged.items():
        if positives := {id_: one for id_, one in found.items() if one.grade > 0}:
            qrels.positives[question_id] = positives
    return qrels


def described(path: Path) -> str:
    """Returns one line: the layout of a file of qrels, its columns, and its first row.

    Raises:
      InputError: the file cannot be read, or its first row is no judgement.
    """
    layout = _qrels_layout(path)
    line, columns = next(_qrels_rows(path), (0, []))
    if not line:
        raise InputError(f"{path} is empty; {RULE}")
    question, passage, grade = _judgement(columns, layout, f"{path}:{line}")
    if layout == "triples":
        return (
            "MS MARCO triples of ids (question: 1, positive: 2, negative: 3); first row: question"
            f" {question}, gold {passage}, negative {columns[2]}"
        )
    places = (3, 4) if layout == "TREC" else (2, 3)
    at = "question: 1, passage: {}, grade: {}".format(*places)
    return (
        f"{layout} qrels ({at}); first row: question {question}, passage {passage}, grade {grade}"
    )


def _qrels_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line and columns of every line that is neither blank nor the header."""
    comma = tables.ending(path) == ".csv"
    first = True
    for line, text in rows.lines(path, None):
        by = "," if comma else "\t" if "\t" in text.strip() else None
        columns = [one.strip() for one in text.strip().split(by)]
        if any(columns) and not (first and columns[0].lower() in QRELS_HEADS):
            yield line, columns
        first = first and not any(columns)


def _qrels_layout(path: Path) -> str:
    """Returns TREC, BEIR or triples, by the first lines."""
    begin = [columns for _, columns in itertools.islice(_qrels_rows(path), LINES_TO_TELL_BY)]
    if any(len(columns) != 3 for columns in begin):
        return "TREC"
    if all(_SMALL.fullmatch(grade) for *_, grade in begin):
        return "BEIR"
    # `question 0 passage` lacks its grade
    return "TREC" if all(second in ("0", "Q0") for _, second, _ in begin) else "triples"


def _judgement(columns: list[str], layout: str, where: str) -> tuple[str, str, int]:
    """Returns question id, passage id and grade of a line."""
    fits = len(columns) == (4 if layout == "TREC" else 3)
    if fits and layout == "TREC":
        fits = _ITERATION.fullmatch(columns[1]) is not None
    if not fits or not all(len(column.split()) == 1 for column in columns):
        raise InputError(
            f"{where}: a line is question-id, 0, passage-id, relevance (BEIR: without the 0), each"
            f" one word, found {short(columns)}"
        )
    if layout == "triples":
        return columns[0], columns[1], 1
    whole = _WHOLE.fullmatch(columns[-1])
    if not whole:
        raise InputError(
            f"{where}: the last column, relevance of a passage-id, must be a whole number, found"
            f" {short(columns[-1])}; write 0, 1, 2 ... for it"
        )
    return columns[0], columns[-2], int(whole[1])
