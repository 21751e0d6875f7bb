"""The queries that tune an index, and the separate ones that certify its recall."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax.errors import InputError
from dpr_jax.index import embeddings

TUNING_QUERIES = 400
NOTHING = np.zeros(0, np.int64)


class Sample(NamedTuple):
    """Query vectors.

    Attributes:
      certificate_QD: float32, nothing is chosen by them.
      tuning_QD: float32, none where there is nothing to tune.
      origin: what they are, in words.
    """

    certificate_QD: np.ndarray
    tuning_QD: np.ndarray
    origin: str


def draw(
    shards: list[np.ndarray],
    questions: Path | None,
    *,
    model: str,
    certificate: int,
    tuning: bool,
    gone_R: np.ndarray = NOTHING,
) -> Sample:
    """Takes queries evenly spaced over the question vectors, or over the corpus without them.

    No row is in both parts.

    Args:
      shards: the corpus.
      questions: folder of question vectors, as `dpr encode` leaves vectors; None for none.
      model: fingerprint of the encoder of the corpus.
      certificate: queries to certify with; at most half of what there is, where some are wanted for
        tuning.
      tuning: whether there is something to tune.
      gone_R: rows of the corpus that were removed, int64, ascending.

    Raises:
      InputError: the question vectors are damaged, too few, unsound or of another model.
    """
    pool, origin = shards, "corpus rows"
    if questions is not None:
        pool, facts = embeddings.open_embeddings(questions)
        if (facts["model"], facts["width"]) != (model, shards[0].shape[1]):
            raise InputError(
                f"{questions} holds vectors of another model than that of the passages; run `dpr"
                " encode` for both again"
            )
        origin = f"question vectors of {questions.name.rpartition('-')[0]}"
        gone_R = NOTHING
    count = sum(len(shard) for shard in pool) - len(gone_R)
    if count < 1 + tuning:
        raise InputError(
            f"there are {count} {origin} to measure with; tuning takes some and the certificate"
            " others, so name a split with more questions by --index.queries"
        )
    rows_R = _spaced(count, certificate + (TUNING_QUERIES if tuning else 0))
    queries_RD = embeddings.pick_rows(pool, corpus_rows(rows_R, gone_R))
    if questions is not None and not np.isfinite(queries_RD).all():
        raise InputError(
            f"{questions} holds NaN or infinity; delete it and encode the questions again with a"
            " sound model"
        )
    if not tuning:
        return Sample(queries_RD, queries_RD[:0], origin)
    held_out_R = np.zeros(len(rows_R), bool)
    held_out_R[_spaced(len(rows_R), min(certificate, len(rows_R) // 2))] = True
    return Sample(queries_RD[held_out_R], queries_RD[~held_out_R], origin)


def corpus_rows(live_R: np.ndarray, gone_R: np.ndarray) -> np.ndarray:
    """Returns the corpus rows of passages that are numbered without the removed ones."""
    gone_before_R = np.searchsorted(gone_R - np.arange(len(gone_R)), live_R, side="right")
    return live_R + gone_before_R


def _spaced(count: int, wanted: int) -> np.ndarray:
    """Returns at most `wanted` of `count` places, in order."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))
