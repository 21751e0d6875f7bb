"""A teacher's scores of a question's passages, as rows of files have them: what a cross-encoder
said, for distillation.

Two forms are read. `pos_scores` and `neg_scores` are lists beside those of the passages
(FlagEmbedding). `scores`, `score`, `labels` or `label` is one value for the whole row
(sentence-transformers): a number is the margin of the positive over the only negative; a list holds
a score of every passage, or a margin over every negative. A margin tells scores but for a constant,
which no distillation needs.

A context's own `score` in DPR's files is not read: there it is BM25's.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpr_jax.data.raw import first_of, short
from dpr_jax.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # float32 is what scores are kept in
LABELS = ("scores", "score", "labels", "label")

Scored = tuple[tuple[str, float], ...]  # (passage id, score)


def beside_passages(
    row: dict[str, Any],
    positives: Sequence[str | None],
    negatives: Sequence[str | None],
    where: str,
) -> Scored:
    """Returns the scores under pos_scores and neg_scores; none where a row has neither.

    Args:
      row: of a file.
      positives: ids of the row's positive passages as they stand there; None for one without text,
        which is no passage.
      negatives: likewise.
      where: file and row.

    Raises:
      InputError: a list has another length than that of its passages, or holds what is no number.
    """
    found: list[tuple[str | None, float]] = []
    for key, ids in (("pos_scores", positives), ("neg_scores", negatives)):
        scores = _numbers(row.get(key), key, where)
        if not scores:
            continue
        if len(scores) != len(ids):
            raise InputError(
                f"{where}: {key} has {len(scores)} numbers for {len(ids)} passages; it must have"
                " one each, or be left out"
            )
        found += zip(ids, scores, strict=True)
    return tuple((id_, score) for id_, score in found if id_ is not None)


def of_row(
    row: dict[str, Any],
    positives: Sequence[str | None],
    negatives: Sequence[str | None],
    where: str,
) -> Scored:
    """Returns the scores under one of LABELS; none without such a value, or without negatives.

    Args:
      row: of a file.
      positives: as for `beside_passages`.
      negatives: likewise.
      where: file and row.

    Raises:
      InputError: the value is neither a number nor a list of numbers, or fits neither all passages
        nor all negatives.
    """
    name = next((key for key in LABELS if row.get(key) is not None), "")
    if not name or not negatives:
        return ()
    scores = _numbers(first_of(row, LABELS), name, where)
    ids = [*positives, *negatives]
    if len(positives) == 1 and len(scores) == len(negatives):
        scores = [0.0, *(-margin for margin in scores)]
    if len(scores) != len(ids):
        raise InputError(
            f"{where}: {name} has {len(scores)} numbers for {len(ids)} passages; a teacher gives a"
            " score to each, or the margin of a single positive over each negative; name the"
            " column otherwise if it is something else"
        )
    pairs = zip(ids, scores, strict=True)
    return tuple((id_, score) for id_, score in pairs if id_ is not None)


def _numbers(value: Any, what: str, where: str) -> list[float]:
    """Returns a number or list of numbers, also from a text of a CSV file; [] where it is empty."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value) if value.strip() else None
    if value is None:
        return []
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not plain or not abs(number) <= LARGEST:
            raise InputError(
                f"{where}: {what} must be a teacher's score, a finite number, or a list of such,"
                f" found {short(value)}; name the column otherwise if it is something else"
            )
    return [float(number) for number in numbers]
