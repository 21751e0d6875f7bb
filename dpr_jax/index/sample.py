"""The queries that an index is tuned on, and the others that its recall is certified with."""

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
) -> Sample:
    """Takes queries evenly spaced over the question vectors, or over the corpus where there are
    none; no row is in both parts.

    Args:
      shards: the corpus.
      questions: folder of question vectors, as `dpr encode` leaves vectors; None for none.
      model: fingerprint of the encoder of the corpus.
      certificate: queries to certify with; at most half of what there is, where some are wanted for
        tuning.
      tuning: whether there is something to tune.

    Raises:
      InputError: the question vectors are damaged, too few, unsound or of another model.
    """
    pool, origin = shards, "corpus rows"
    if questions is not None:
        pool, facts = embeddings.open_embeddings(questions)
        if (facts["model"], facts["width"]) != (model, shards[0].shape[1]):
            raise InputError(
                f"index.queries names {questions}, whose vectors are of another model than the"
                " corpus'; encode the questions with the model that encoded the passages"
            )
        origin = f"question vectors in {questions.name}"
    count = sum(len(shard) for shard in pool)
    if count < 1 + tuning:
        raise InputError(
            f"there are {count} {origin} to measure with; tuning takes some and the certificate"
            " others, so give --index.queries a folder with more"
        )
    rows_R = _spaced(count, certificate + (TUNING_QUERIES if tuning else 0))
    queries_RD = embeddings.pick_rows(pool, rows_R)
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


def corpus_rows(shards: list[np.ndarray], wanted: int, gone_R: np.ndarray) -> np.ndarray:
    """At most `wanted` vectors of the corpus, evenly spaced over the rows that are not in `gone_R`:
    float32 [Q, D].
    """
    live_N = np.delete(np.arange(sum(len(shard) for shard in shards)), gone_R)
    return embeddings.pick_rows(shards, live_N[_spaced(len(live_N), wanted)])


def _spaced(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of `count` places, in order."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))
