"""The prepared data sets on disk: TFDS folders of array_record files, read without TensorFlow.

`corpus` holds the passages; row i is the i-th passage of the file. `questions` holds the questions,
which name their passages by corpus row. Both are written record by record and described with TFDS's
metadata. TFDS's own builders do not serve here. They hold a split in memory, or need TensorFlow
above 1 GB, and 21 million passages have 14 GB. And the bytes that they write differ from run to
run, though a later stage must see that nothing changed.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from dpr_jax import artifacts
from dpr_jax.data.fields import Fields
from dpr_jax.data.raw import Passage
from dpr_jax.errors import REFUSED_WRITING, InputError
from dpr_jax.workdir import WorkDir

FORM = 3  # of the data set `questions`; 2 had no grades, 1 no scores of a teacher
ROWS_PER_SHARD = 500_000
ROWS_PER_READ = 1024
NO_ROWS = np.zeros(0, np.int64)


class Question(NamedTuple):
    """A question; its passages are rows of the corpus.

    Attributes:
      teacher_scores: (row, score) of the passages that a teacher scored, by row so that they stay
        right whatever becomes of the lists.
      grades: (row, grade) of the positives that qrels judge higher than 1; all others have grade 1.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[int, ...]
    hard_negatives: tuple[int, ...]
    negatives: tuple[int, ...]
    teacher_scores: tuple[tuple[int, float], ...] = ()
    grades: tuple[tuple[int, int], ...] = ()

    def grade_by_row(self) -> dict[int, int]:
        """Returns the grade of every positive, 1 or more, by corpus row."""
        grades = dict(self.grades)
        return {row: grades.get(row, 1) for row in self.positives}


# --- reading


class Corpus(Sequence[Passage]):
    """The passages, read from disk by row; cheap to pickle.

    Attributes:
      removed_R: rows whose passages were taken out after all; they keep their place, so that no
        other row moves. int64, ascending.
    """

    def __init__(self, *folders: Path, removed_R: np.ndarray = NO_ROWS) -> None:
        """Takes the folders of one data set or more, whose rows follow each other."""
        self._folders = folders
        self._sources = [_source(folder, "corpus") for folder in folders]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self.removed_R = removed_R

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Corpus, removed_R=self.removed_R), self._folders

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Passage:
        return self.rows([_in_range(row, len(self))])[0]

    def rows(self, rows: Sequence[int]) -> list[Passage]:
        """Several passages at once, in the order of `rows`."""
        rows_R = np.asarray(rows, np.int64)
        part_R = np.searchsorted(self._starts, rows_R, side="right") - 1
        found: dict[int, Passage] = {}
        for part in np.unique(part_R):
            at_P = np.flatnonzero(part_R == part)
            wanted = (rows_R[at_P] - self._starts[part]).tolist()
            records = self._sources[part].__getitems__(wanted)
            found |= zip(at_P.tolist(), map(_passage, records), strict=True)
        return [found[at] for at in range(len(rows_R))]

    @functools.cached_property
    def fields(self) -> Fields:
        """The other columns of the passages."""
        return Fields(self._folders, np.diff(self._starts).tolist())

    def live(self) -> Iterator[Passage]:
        """The passages that were not taken out."""
        removed = set(self.removed_R.tolist())
        return (passage for row, passage in enumerate(self) if row not in removed)

    def ids(self) -> list[str]:
        """All passage ids; reads the whole corpus."""
        return [passage.id for passage in self]

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, len(self), ROWS_PER_READ):
            yield from self.rows(range(start, min(start + ROWS_PER_READ, len(self))))


class Questions(Sequence[Question]):
    """The questions of one split, or some rows of it in a row, read from disk by row; cheap to
    pickle.
    """

    def __init__(self, folder: Path, split: str, rows: range | None = None) -> None:
        self._folder, self._split = folder, split
        self._source = _source(folder, split)
        self._rows = range(len(self._source)) if rows is None else rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Questions, (self._folder, self._split, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Question:
        return _question(self._source[self._rows[_in_range(row, len(self))]])

    def __iter__(self) -> Iterator[Question]:
        for start in range(0, len(self), ROWS_PER_READ):
            rows = self._rows[start : start + ROWS_PER_READ]
            yield from map(_question, self._source.__getitems__(rows))

    def part(self, rows: range) -> "Questions":
        """Some of them, by their rows here."""
        return Questions(self._folder, self._split, self._rows[rows.start : rows.stop])


def open_corpus(workdir: WorkDir) -> Corpus:
    """The prepared corpus.

    Raises:
      InputError: it is missing or a file of it has another size than when it was written.
    """
    _check(workdir.data / "manifest.json", "corpus")
    return Corpus(workdir.data / "corpus")


def open_questions(workdir: WorkDir, split: str, mined: Path | None = None) -> Questions:
    """The prepared questions.

    Args:
      split: train, dev or test.
      mined: folder of those with mined hard negatives (train and dev).

    Raises:
      InputError: they are missing, damaged, of another version, or the config names no file for
        this split.
    """
    folder = mined or workdir.data
    manifest = folder / "manifest.json"
    facts = _check(manifest, "questions")
    if (form := artifacts.form_of(facts)) != FORM:
        raise InputError(
            f"{folder / 'questions'} was written by another version of dpr_jax, in form {form};"
            f" this one reads form {FORM}: {artifacts.remedy_for(manifest)}"
        )
    split = facts.get("test_sets", {}).get(split, split)
    if split not in facts["questions"]:
        there = ", ".join(facts["questions"]) or "no questions"
        raise InputError(
            f"{folder / 'questions'} has no split {split!r}, only {there}; name a file of such"
            f" questions: `dpr prepare --data.{split} FILE {workdir.flag}`"
        )
    return Questions(folder / "questions", split)


def splits(workdir: WorkDir) -> tuple[str, ...]:
    """Returns the splits of the prepared questions; of several test sets, their names."""
    questions = artifacts.read_json(workdir.data / "manifest.json")["questions"]
    return (*(name for name in ("train", "dev") if name in questions), *test_sets(workdir))


def test_sets(workdir: WorkDir) -> tuple[str, ...]:
    """Returns the names of the prepared sets of test questions; "test" for a single one."""
    facts = artifacts.read_json(workdir.data / "manifest.json")
    return tuple(facts.get("test_sets") or (["test"] if "test" in facts["questions"] else ()))


def wants_mining(workdir: WorkDir, enabled: bool | None) -> bool:
    """Returns whether training takes mined hard negatives: as asked, else where the data have
    none.
    """
    if enabled is not None:
        return enabled
    return not artifacts.read_json(workdir.data / "manifest.json").get("hard_negatives")


def train_sets(workdir: WorkDir) -> list[tuple[str, range]]:
    """The files that the training questions are of, each with its rows; empty where there is one
    file.

    Mining keeps the rows as they are.
    """
    listed = artifacts.read_json(workdir.data / "manifest.json").get("train_sets", [])
    ends = itertools.accumulate(count for _, count in listed)
    return [
        (name, range(end - count, end)) for (name, count), end in zip(listed, ends, strict=True)
    ]


def _passage(record: dict[str, Any]) -> Passage:
    return Passage(record["id"].decode(), record["title"].decode(), record["text"].decode())


def _question(record: dict[str, Any]) -> Question:
    return Question(
        id=record["id"].decode(),
        question=record["question"].decode(),
        answers=tuple(answer.decode() for answer in record["answers"]),
        positives=tuple(int(row) for row in record["positives"]),
        hard_negatives=tuple(int(row) for row in record["hard_negatives"]),
        negatives=tuple(int(row) for row in record["negatives"]),
        teacher_scores=tuple(
            (int(row), float(score))
            for row, score in zip(record["scored"], record["scores"], strict=True)
        ),
        grades=tuple(
            (int(row), int(grade))
            for row, grade in zip(record["graded"], record["grades"], strict=True)
        ),
    )


def _in_range(row: int, count: int) -> int:
    """array_record raises another error, at which iteration would not stop, and takes no negative
    row.
    """
    if not 0 <= row < count:
        raise IndexError(f"row {row} of {count}")
    return row


def _source(folder: Path, split: str) -> Any:
    return tfds.builder_from_directory(str(folder)).as_data_source(split=split)


def _check(manifest: Path, name: str) -> dict[str, Any]:
    """Refuses what is missing or cut short; bits that flip in a file are found by array_record's
    own checksums.
    """
    facts = artifacts.read_json(manifest)
    for file, entry in facts["files"].items():
        path = manifest.parent / file
        if file.startswith(name + "/") and (
            not path.exists() or path.stat().st_size != entry["bytes"]
        ):
            raise InputError(
                f"{path} is missing or damaged; {artifacts.remedy_for(manifest, str(manifest))}"
            )
    return facts


# --- writing


def write_corpus(folder: Path, passages: Iterable[Passage]) -> list[Path]:
    """Writes the data set `corpus`, in the order given, in bounded memory; returns its files."""
    records = (passage._asdict() for passage in passages)
    return _write(folder / "corpus", _corpus_features(), {"corpus": records})


def write_corpus_shard(folder: Path, number: int, passages: Iterable[Passage]) -> int:
    """Writes one shard of the data set `corpus` into its folder; returns the bytes of its records.

    `describe_corpus` makes a data set of all shards.
    """
    lists = lists_of(_corpus_features())
    path = _shard_path(folder, "corpus", number)
    return _write_shard(path, (serialized(one._asdict(), lists) for one in passages))[1]


def describe_corpus(folder: Path, shards: list[tuple[int, int]]) -> list[Path]:
    """Writes what TFDS reads beside the shards of the data set `corpus`; returns all its files.

    Args:
      folder: of the data set, with its shards.
      shards: rows and bytes of each.
    """
    return _describe(folder, _corpus_features(), {"corpus": shards})


def _corpus_features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in Passage._fields})


def write_questions(folder: Path, splits: dict[str, Iterable[Question]]) -> list[Path]:
    """Writes the data set `questions`, every split in the order given; returns its files."""
    features = {
        "id": tfds.features.Text(),
        "question": tfds.features.Text(),
        "answers": tfds.features.Sequence(tfds.features.Text()),
        "positives": tfds.features.Sequence(np.int64),
        "hard_negatives": tfds.features.Sequence(np.int64),
        "negatives": tfds.features.Sequence(np.int64),
        "scored": tfds.features.Sequence(np.int64),
        "scores": tfds.features.Sequence(np.float32),
        "graded": tfds.features.Sequence(np.int64),
        "grades": tfds.features.Sequence(np.int64),
    }
    records = {split: map(question_record, rows) for split, rows in splits.items()}
    return _write(folder / "questions", tfds.features.FeaturesDict(features), records)


def question_record(question: Question) -> dict[str, Any]:
    """Returns a question by the names of its features; pairs stand in two lists each."""
    record = question._asdict()
    scores, grades = record.pop("teacher_scores"), record.pop("grades")
    return record | {
        "scored": [row for row, _ in scores],
        "scores": [score for _, score in scores],
        "graded": [row for row, _ in grades],
        "grades": [grade for _, grade in grades],
    }


def _write(
    folder: Path,
    features: tfds.features.FeaturesDict,
    splits: dict[str, Iterable[dict[str, Any]]],
) -> list[Path]:
    folder.mkdir(parents=True)
    lists = lists_of(features)
    written: dict[str, list[tuple[int, int]]] = {}
    for split, rows in splits.items():
        left = (serialized(row, lists) for row in rows)
        shards = written.setdefault(split, [])
        for first in left:
            rest = itertools.islice(left, ROWS_PER_SHARD - 1)
            path = _shard_path(folder, split, len(shards))
            shards.append(_write_shard(path, itertools.chain([first], rest)))
    return _describe(folder, features, written)


def _template(folder: Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(folder),
        dataset_name=folder.name,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )


def _shard_path(folder: Path, split: str, number: int) -> Path:
    template = _template(folder).replace(split=split)
    return template.sharded_filepath(shard_index=number, num_shards=None)


def _describe(
    folder: Path,
    features: tfds.features.FeaturesDict,
    splits: dict[str, list[tuple[int, int]]],
) -> list[Path]:
    """Writes what TFDS reads beside the shards; returns all files."""
    template = _template(folder)
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[rows for rows, _ in shards],
            num_bytes=sum(size for _, size in shards),
            filename_template=template,
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        filename_template=template,
        check_data=False,
        disable_shuffling=True,
    )
    return sorted(folder.iterdir())


def lists_of(features: tfds.features.FeaturesDict) -> dict[str, str]:
    """In which list of a tf.train.Feature the values of each feature stand."""
    kinds = {"O": "bytes_list", "i": "int64_list", "f": "float_list"}
    infos = features.get_serialized_info()
    return {name: kinds[np.dtype(info.np_dtype).kind] for name, info in infos.items()}


def serialized(row: dict[str, Any], lists: dict[str, str]) -> bytes:
    """A row as a tf.train.Example, in the bytes that TFDS's own serializer makes of it in five
    times the time.
    """
    example = tf_example_pb2.Example()
    for name, value in row.items():
        values = (value,) if isinstance(value, str) else value
        if lists[name] == "bytes_list":
            values = [text.encode() for text in values]
        one_list = getattr(example.features.feature[name], lists[name])
        one_list.SetInParent()  # an empty list is no missing one
        one_list.value.extend(values)
    # a record's fields come in another order in every process, unless told
    return example.SerializeToString(deterministic=True)


def _write_shard(path: Path, records: Iterable[bytes]) -> tuple[int, int]:
    """Writes one file; how many records and bytes went in."""
    count = size = 0
    try:
        with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
            for record in records:
                writer.write(record)
                count, size = count + 1, size + len(record)
    except RuntimeError as error:  # which array_record makes of what the system says
        for code in REFUSED_WRITING:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from None
        raise
    return count, size
