"""The questions of a run: a prepared split, or a file of questions in any layout that `dpr prepare` reads."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.data import raw, recognise, tables
from dpr_jax.data.store import Question, open_questions
from dpr_jax.errors import InputError


class Asked(NamedTuple):
    """Questions to answer, read from disk as they are needed.

    Attributes:
      name: the split, or the file's name without endings.
      folder: where their runs lie; those of the test questions in runs/ itself, others beside them, where they do not replace these.
      count: how many there are.
      read: starts to read them from the first one on.
      inputs: fingerprints, for the manifest.
    """

    name: str
    folder: Path
    count: int
    read: Callable[[], Iterator[Question]]
    inputs: dict[str, str]


def open_asked(workdir: WorkDir, *, split: str, file: str) -> Asked:
    """The questions of `file`, or of `split` where `file` is empty.

    Raises:
      InputError: there are none, a file is of no known layout, a row of it is broken (file and line), or an id occurs twice.
    """
    return _of_file(workdir, Path(file)) if file else _of_split(workdir, split)


def _of_split(workdir: WorkDir, split: str) -> Asked:
    questions = open_questions(workdir, split)
    if len(questions) == 0:
        raise InputError(f"the split {split!r} has no questions; check data.{split}")
    folder = workdir.runs if split == "test" else workdir.runs / split
    return Asked(split, folder, len(questions), lambda: iter(questions), {})


def _of_file(workdir: WorkDir, path: Path) -> Asked:
    source = recognise.questions(path)
    inputs = {"questions": artifacts.checksum(path)}

    def read() -> Iterator[Question]:
        for row in raw.unique(source.read(None)):
            if not row.unusable:
                yield Question(row.id, row.question, row.answers, (), (), ())

    # once through before anything is searched: what is wrong with the last line is better known now than after hours
    count = sum(1 for _ in read())
    if count == 0:
        raise InputError(f"{path} has no questions; retrieve.questions must hold some")
    name = path.name.removesuffix(".gz").removesuffix(tables.ending(path))
    return Asked(name, workdir.runs / name, count, read, inputs)
