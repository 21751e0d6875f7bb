"""Questions that are asked of a corpus: a prepared split, or a file of questions in any layout that
`dpr prepare` reads.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import artifacts, recipes
from dpr_jax.config import DataConfig
from dpr_jax.console import say
from dpr_jax.data import raw
from dpr_jax.data.readers import detect, opened, tables
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.data.readers.urls import located
from dpr_jax.data.store import Question, open_questions, splits
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir


class Asked(NamedTuple):
    """Questions to answer, read from disk as they are needed.

    Attributes:
      name: of the set: the split, or the file by name and content. Runs lie under runs/NAME/.
      count: how many there are.
      read: starts to read them from the first one on.
      inputs: fingerprints, for the manifest.
    """

    name: str
    count: int
    read: Callable[[], Iterator[Question]]
    inputs: dict[str, str]


def open_asked(workdir: WorkDir, split_or_file: str) -> Asked:
    """Opens the questions of a prepared split, or of a file.

    Raises:
      InputError: there are none, a file is of no known layout, a row of it is broken (file and
        line), or an id occurs twice.
    """
    if split_or_file in (*splits(workdir), "train", "dev", "test"):
        return _of_split(workdir, split_or_file)
    return _of_file(located(split_or_file), recipes.load_workdir(workdir).data)


def _of_split(workdir: WorkDir, split: str) -> Asked:
    questions = open_questions(workdir, split)
    if len(questions) == 0:
        raise InputError(f"the split {split!r} has no questions; check data.{split}")
    manifest = workdir.data / "manifest.json"
    stored = artifacts.read_json(manifest).get("test_sets", {}).get(split, split)
    inputs = {"questions": artifacts.fingerprint(manifest, f"questions/questions-{stored}.")}
    return Asked(split, len(questions), lambda: iter(questions), inputs)


def _of_file(path: Path, data: DataConfig) -> Asked:
    with opened.readable(str(path)):
        is_folder = path.is_dir()
    if is_folder:
        path = detect.beir(path, "test")["test"]
    chosen = Chosen("questions", data.columns, "questions")
    source = detect.questions(path, chosen, data.positive_from)
    say(f"questions: {path} is {detect.described(source)}")
    sha256 = artifacts.checksum(path)

    def read() -> Iterator[Question]:
        for row in raw.unique(source.read(None)):
            if not row.unusable:
                yield Question(row.id, row.question, row.answers, (), (), ())

    # all of it before anything is searched: better an error now than after hours
    count = sum(1 for _ in read())
    if count == 0:
        raise InputError(f"{path} has no questions; give a file that holds some")
    name = opened.inner_name(path).removesuffix(tables.ending(path))
    return Asked(f"{name}-{sha256[:8]}", count, read, {"questions": sha256})
