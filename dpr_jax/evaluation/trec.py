"""Reads run files in TREC's form, `question Q0 passage rank score tag` per line."""

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpr_jax.errors import InputError


def read_run(
    path: Path, question_rows: Mapping[str, int], passage_rows: Mapping[str, int]
) -> list[np.ndarray]:
    """Reads a run as passages in order, best first, for every question; a run may have no line.

    The order is trec_eval's, so that all numbers agree with it: by score as float32, ties by
    passage id backwards; the rank column is not looked at. Lines of one question need not stand
    together.

    Args:
      path: the run file.
      question_rows: question id -> row of the question; all of them, in order.
      passage_rows: passage id -> row of the corpus.

    Returns:
      One int64 array of corpus rows per question, in the order of the question rows; empty for a
      question that the run lacks.

    Raises:
      InputError: a malformed line, a score that is no finite number, or an unknown question or
        passage, each with file and line; a passage that is there twice for one question.
    """
    found: list[tuple[array, array]] = [(array("q"), array("d")) for _ in range(len(question_rows))]
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            where = f"{path}:{number}"
            fields = line.split()
            if len(fields) != 6:
                raise InputError(
                    f"{where}: {len(fields)} fields; a run line has six: question Q0 passage rank"
                    " score tag"
                )
            question, passage, score = fields[0], fields[2], _score(fields[4], where)
            if question not in question_rows:
                raise InputError(
                    f"{where}: question {question!r} is not among the {len(question_rows):,} test"
                    " questions; remove the run, or make it again from this data"
                )
            if passage not in passage_rows:
                raise InputError(
                    f"{where}: passage {passage!r} is not in the corpus of {len(passage_rows):,}; "
                    "remove the run, or make it again from this data"
                )
            rows, scores = found[question_rows[question]]
            rows.append(passage_rows[passage])
            scores.append(score)
    wanted = {row for rows, _ in found for row in rows}
    passage_ids = {row: id_ for id_, row in passage_rows.items() if row in wanted}
    for question, (rows, _) in zip(question_rows, found, strict=True):
        if len(set(rows)) < len(rows):
            twice, _ = Counter(rows).most_common(1)[0]
            raise InputError(
                f"{path}: passage {passage_ids[twice]!r} is there twice for question {question!r};"
                " a run has each once"
            )
    return [_in_order(rows, scores, passage_ids) for rows, scores in found]


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{where}: score {text!r} is not a finite number")
    return score


def _in_order(rows: array, scores: array, passage_ids: dict[int, str]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a score beyond float32 is infinite there
        score_K = np.array(scores).astype(np.float32).tolist()
    best_first = sorted(
        zip(score_K, (passage_ids[row] for row in rows), rows, strict=True),
        reverse=True,
    )
    return np.array([row for _, _, row in best_first], np.int64)
