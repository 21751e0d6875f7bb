"""Questions that are asked of a corpus: a prepared split, or a file of questions in any layout that
`dpr prepare` reads.
"""

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
      place: the folder that what is made of them belongs in; "" for the test questions, so that
        others never replace theirs.
      count: how many there are.
      read: starts to read them from the first one on.
      inputs: fingerprints, for the manifest.
    """

    name: str
    place: str
    count: int
    read: Callable[[], Iterator[Question]]
    inputs: dict[str, str]


def open_asked(workdir: WorkDir, *, split: str, file: str) -> Asked:
    """The questions of `file`, or of `split` where `file` is empty.

    Raises:
      InputError: there are none, a file is of no known layout, a row of it is broken (file and
        line), or an id occurs twice.
    """
    return _of_file(Path(file)) if file else _of_split(workdir, split)


def _of_split(workdir: WorkDir, split: str) -> Asked:
    questions = open_questions(workdir, split)
    if len(questions) == 0:
        raise InputError(f"the split {split!r} has no questions; check data.{split}")
    place = "" if split == "test" else split
    return Asked(split, place, len(questions), lambda: iter(questions), {})


def _of_file(path: Path) -> Asked:
    source = recognise.questions(path)
    inputs = {"questions": artifacts.checksum(path)}

    def read() -> Iterator[Question]:
        for row in raw.unique(source.read(None)):
            if not row.unusable:
                yield Question(row.id, row.question, row.answers, (), (), ())

    # once through before anything is searched: what is wrong with the last line is better known now
    # than after hours
    count = sum(1 for _ in read())
    if count == 0:
        raise InputError(f"{path} has no questions; give a file that holds some")
    name = path.name.removesuffix(".gz").removesuffix(tables.ending(path))
    return Asked(name, name, count, read, inputs)
