"""The texts to encode: the corpus, or questions of a split or a file."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import EncodeConfig
from dpr_jax.data.asked import open_asked
from dpr_jax.data.store import open_corpus
from dpr_jax.errors import InputError
from dpr_jax.model.dual_encoder import Side
from dpr_jax.model.tokenizer import Text
from dpr_jax.workdir import WorkDir


class Texts(NamedTuple):
    """Rows to encode.

    Attributes:
      side: the tower that they are for; also what one of them is called.
      stage: name of their vectors' artifact.
      count: how many there are.
      read: range of rows -> their ids and texts.
      dtype: of the vectors on disk.
      ids: of all rows, where the vectors' folder should hold them; the corpus holds those of its
        passages.
      settings: what the vectors depend on besides the model's settings, for the manifest.
      inputs: fingerprints, for the manifest.
    """

    side: Side
    stage: str
    count: int
    read: Callable[[range], tuple[list[str], list[Text]]]
    dtype: type[np.floating]
    ids: list[str] | None
    settings: dict[str, Any]
    inputs: dict[str, str]


def open_texts(settings: EncodeConfig, workdir: WorkDir) -> Texts:
    """Opens the passages, or the questions that `encode.questions` names.

    Raises:
      InputError: there are none, or a file cannot be read (by file and line).
    """
    if settings.questions:
        return _questions(settings, workdir)
    return _passages(settings, workdir)


def _passages(settings: EncodeConfig, workdir: WorkDir) -> Texts:
    corpus = open_corpus(workdir)
    if len(corpus) == 0:
        raise InputError(f"{workdir.data / 'corpus'} is empty; check data.passages")

    def read(rows: range) -> tuple[list[str], list[Text]]:
        passages = corpus.rows(rows)
        ids = [passage.id for passage in passages]
        return ids, [(passage.title, passage.text) for passage in passages]

    return Texts(
        side="passage",
        stage="embeddings",
        count=len(corpus),
        read=read,
        dtype=np.float16,
        ids=None,
        settings={},
        inputs={"corpus": artifacts.fingerprint(workdir.data / "manifest.json", "corpus/")},
    )


def _questions(settings: EncodeConfig, workdir: WorkDir) -> Texts:
    """Opens questions; their vectors are float32, as a search takes them."""
    asked = open_asked(workdir, settings.questions)
    questions = list(asked.read())
    ids = [question.id for question in questions]

    def read(rows: range) -> tuple[list[str], list[Text]]:
        return [ids[row] for row in rows], [questions[row].question for row in rows]

    return Texts(
        side="question",
        stage=f"questions/{asked.name}",
        count=len(questions),
        read=read,
        dtype=np.float32,
        ids=ids,
        settings={"questions": asked.name},
        inputs=asked.inputs,
    )
