"""Questions of a TFDS data set, named `tfds:NAME#SPLIT`: question and answers
(natural_questions_open, trivia_qa), or SQuAD's rows.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dpr_jax.console import console, say
from dpr_jax.data import raw
from dpr_jax.data.raw import RawQuestion, answer_texts, question_text, short
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.errors import InputError

PREFIX = "tfds:"
REASON_CHARS = 160


def questions(name: str) -> Source:
    """The questions of one split, which TFDS has on this machine as array_record, or can download
    and write without TensorFlow.

    Args:
      name: `tfds:NAME#SPLIT`, as in `tfds:squad/v2.0#validation`; SPLIT may be a slice, as in
        `train[:90%]`.

    Raises:
      InputError: the name lacks its split, TFDS knows no such data set or cannot get it, or its
        rows are no questions.
    """
    dataset, _, split = name.removeprefix(PREFIX).partition("#")
    if not dataset or not split:
        raise InputError(
            f"{name}: a TFDS data set is named with its split, as tfds:natural_questions_open#train"
        )
    builder, source = _opened(dataset, split)
    if "question" not in builder.info.features:
        raise InputError(
            f"{name}: its rows have no question, only {short(', '.join(builder.info.features))}"
        )

    def read(on_read: OnRead | None) -> Iterator[RawQuestion]:
        for row in range(len(source)):
            yield _question(_plain(source[row]), row, f"{name} row {row}")

    return Source(f"TFDS {builder.info.full_name}#{split}", (), read)


def _opened(dataset: str, split: str) -> tuple[tfds.core.DatasetBuilder, Any]:
    # Builders are other people's code: they fail in ways of their own, on the network, on a missing
    # TensorFlow, on an unknown split.
    try:
        with _quietly():
            builder = tfds.builder(dataset, file_format="array_record")
            if not builder.is_prepared():
                say(
                    f"prepare: {PREFIX}{dataset} is downloaded into {builder.data_dir}; without a"
                    " network TFDS gives up after some minutes"
                )
                builder.download_and_prepare()
            return builder, builder.as_data_source(split)
    except Exception as error:
        raise InputError(
            f"{PREFIX}{dataset}#{split} cannot be had ({type(error).__name__}: {_reason(error)});"
            " check the name. TFDS downloads it the first time: where there is a network, or"
            f" TensorFlow if it asks for that, write it with `tfds build {dataset}"
            " --file_format=array_record`, and set TFDS_DATA_DIR to its folder"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences what TFDS prints: a warning per try of a download, and bars in log files."""
    talkers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [one.level for one in talkers]
    for one in talkers:
        one.setLevel(logging.ERROR)
    tfds.display_progress_bar(enable=console.is_terminal)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for one, level in zip(talkers, levels, strict=True):
            one.setLevel(level)
        tfds.display_progress_bar(enable=True)


def _reason(error: Exception) -> str:
    """Returns the text of an error on one line; of a connection that failed, what failed in the
    end.
    """
    within = getattr(error.args[0] if error.args else None, "reason", None)
    lines = str(within or error).strip().splitlines()
    return lines[0][:REASON_CHARS] if lines else ""


def _question(row: dict[str, Any], number: int, where: str) -> RawQuestion:
    answers = raw.first_of(row, ("answers", "answer"))
    if isinstance(answers, dict):  # SQuAD has text, TriviaQA aliases
        answers = raw.first_of(answers, ("text", "aliases"))
    passages = ()
    if row.get("context"):
        title = (row.get("title") or "").replace("_", " ")
        passages = (raw.by_content(title, row["context"].strip()),)
    return RawQuestion(
        id=str(number),
        question=question_text(row["question"], where),
        answers=answer_texts(list(dict.fromkeys(answers or [])), where),
        where=where,
        positives=tuple(passage.id for passage in passages),
        passages=passages,
        unusable="marked impossible" if row.get("is_impossible") else "",
    )


def _plain(value: Any) -> Any:
    """Turns TFDS's bytes and arrays into texts and lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | np.ndarray):
        return [_plain(inner) for inner in value]
    return value
