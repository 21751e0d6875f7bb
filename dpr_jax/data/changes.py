"""The log of changes: passages that were added to the corpus since it was prepared, or removed.

Each change is a folder of its own, changes/00001, 00002, ..., written whole and never altered. An
addition holds a data set `corpus`, whose rows follow those before it; a removal holds rows.
Training, mining and inspection know the corpus as it was prepared. A search knows its changes too.
"""

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import Config, DataConfig
from dpr_jax.console import progress, say
from dpr_jax.data import named, raw, store
from dpr_jax.data.corpus import write_corpus
from dpr_jax.data.passage_rows import HashTable
from dpr_jax.data.readers import detect, opened, rows
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.urls import located
from dpr_jax.data.store import Corpus, Question
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir

MANIFEST = "manifest.json"
REMOVED = "removed.npy"


class Log(NamedTuple):
    """The changes in their order.

    Attributes:
      folders: one per change.
      prints: a hash of the corpus as it was prepared, after the first change, and so on.
    """

    folders: tuple[Path, ...]
    prints: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Identifies the corpus with these changes."""
        return self.prints[-1]

    def first(self, count: int) -> "Log":
        """Returns the log as it was after so many changes."""
        return Log(self.folders[:count], self.prints[: count + 1])

    def additions(self) -> list[tuple[int, Path]]:
        """Returns the changes that added passages: (number, from 1; folder of their data set)."""
        return [
            (number, folder / "corpus")
            for number, folder in enumerate(self.folders, 1)
            if not (folder / REMOVED).exists()
        ]

    def live(self, prepared: int) -> list[int]:
        """Returns how many passages there were at first, after the first change, and so on.

        Args:
          prepared: passages of the corpus as it was prepared.
        """
        steps = [artifacts.read_json(folder / MANIFEST)["passages"] for folder in self.folders]
        added = {number for number, _ in self.additions()}
        signed = [step if number in added else -step for number, step in enumerate(steps, 1)]
        return list(itertools.accumulate([prepared, *signed]))

    def removed_R(self) -> np.ndarray:
        """Returns the rows that were removed, int64, ascending."""
        files = [one / REMOVED for one in self.folders if (one / REMOVED).exists()]
        parts = [np.load(file) for file in files]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))


def read(workdir: WorkDir) -> Log:
    """Reads the changes of a work directory.

    Raises:
      InputError: a change is missing, or the corpus was prepared anew, from other files, after it.
    """
    folders = tuple(sorted(workdir.changes.glob("[0-9]" * 5)))
    prints = [artifacts.fingerprint(workdir.data / "manifest.json", "corpus/")]
    for folder in folders:
        made_from = artifacts.read_json(folder / MANIFEST)["made_from"]
        if made_from["inputs"]["before"] != prints[-1]:
            raise InputError(
                f"{folder} is a change to another corpus than {workdir.data / 'corpus'} with the"
                f" changes before it; prepare the former files again, or delete {workdir.changes}"
                " and make the changes anew"
            )
        here = artifacts.fingerprint(folder / MANIFEST)
        prints.append(hashlib.sha256(f"{prints[-1]} {here}".encode()).hexdigest())
    return Log(folders, tuple(prints))


def open_corpus(workdir: WorkDir, log: Log) -> Corpus:
    """Opens the corpus with these changes.

    Raises:
      InputError: it is missing, or a file of it or of a change is damaged.
    """
    prepared = store.open_corpus(workdir)
    if not log.folders:
        return prepared
    for folder in log.folders:
        remedy = f"put it back from a copy, or delete {workdir.changes} and make the changes anew"
        artifacts.verify(folder / MANIFEST, remedy)
    return Corpus(
        workdir.data / "corpus",
        *(folder for _, folder in log.additions()),
        removed_R=log.removed_R(),
    )


def with_current(question: Question, corpus: Corpus, passage_rows: dict[str, int]) -> Question:
    """Replaces gold passages that were removed by what was added under the same id.

    Args:
      question: as it was prepared.
      corpus: with its changes.
      passage_rows: passage id -> its last row.
    """
    if not len(corpus.removed_R):
        return question
    gone = np.isin(question.positives, corpus.removed_R)
    return question._replace(
        positives=tuple(
            passage_rows[corpus[row].id] if removed else row
            for row, removed in zip(question.positives, gone, strict=True)
        )
    )


def add(config: Config, workdir: WorkDir, passages: str) -> None:
    """Records new passages; a run that was killed before it is recorded leaves nothing.

    Args:
      config: its `data` says how documents are cut.
      workdir: whose corpus it is.
      passages: a file or folder in any layout that data.passages may have.

    Raises:
      InputError: the file is missing, of no known layout, or broken (file and line), or a passage's
        id is taken.
    """
    path = located(passages)
    with opened.readable(passages):
        there = path.exists()
    if not there:
        raise InputError(f"{passages} does not exist; dpr index add takes a file of passages")
    kept = ("split_words", "split_tokens", "split_stride_tokens", "columns")
    data = DataConfig(passages, **{name: getattr(config.data, name) for name in kept})
    documents: Counter[str] = Counter()
    found, _ = named.recognised(data, config.model.init, documents, columns_of_any=True)
    source = found["passages"]
    say(f"index add: {passages} is {detect.described(source)}")
    settings = {
        "layout": source.layout,
        "columns": source.columns,
        "cut": named.cut_settings(data, config.model.init, {"passages": source}),
    }
    inputs = {"passages": source.fingerprint()}
    log = read(workdir)
    if _is_last(log, "add", settings, inputs):
        say(f"index add: the passages of {passages} are the last change already")
        return
    corpus = open_corpus(workdir, log)
    with artifacts.atomic_dir(_next(workdir, log)) as folder:
        facts, files = write_corpus(source, folder)
        _refuse_taken(source, facts.table, corpus)
        origin = _origin(log, "add", settings, inputs)
        artifacts.write_manifest(folder / MANIFEST, origin, files, passages=facts.passages)
    say(f"index add: {facts.passages:,} passages ({source.layout})")


def remove(workdir: WorkDir, ids: str) -> None:
    """Records that passages are removed.

    Args:
      workdir: whose corpus it is.
      ids: a file with one passage id per line, or a pipe.

    Raises:
      InputError: the file is missing or empty, a passage is not in the corpus (file and line), or
        none would be left.
    """
    with _read_once(Path(ids).expanduser()) as path:
        log = read(workdir)
        inputs = {"ids": artifacts.checksum(path)}
        if _is_last(log, "remove", {}, inputs):
            say(f"index remove: the passages of {ids} are the last change already")
            return
        wanted = _ids(path, ids)
    corpus = open_corpus(workdir, log)
    gone = set(corpus.removed_R.tolist())
    found: dict[str, int] = {}
    with progress("index remove", len(corpus), "passages") as advance:
        for row, passage in enumerate(corpus):
            if passage.id in wanted and row not in gone:
                found[passage.id] = row
            advance()
    for id_, where in wanted.items():
        if id_ not in found:
            raise InputError(f"{where}: passage {id_!r} is not in the corpus; take the line out")
    if len(found) + len(gone) == len(corpus):
        raise InputError(f"{ids} names every passage; an index needs at least one")
    with artifacts.atomic_dir(_next(workdir, log)) as folder:
        np.save(folder / REMOVED, np.sort(np.array([*found.values()], np.int64)))
        origin = _origin(log, "remove", {}, inputs)
        files = [folder / REMOVED]
        artifacts.write_manifest(folder / MANIFEST, origin, files, passages=len(found))
    say(f"index remove: {len(found):,} passages")


def _origin(log: Log, verb: str, settings: dict, inputs: dict[str, str]) -> dict:
    """Returns what a change that follows `log` is made from."""
    return artifacts.made_from(verb, settings, inputs | {"before": log.fingerprint})


def _is_last(log: Log, verb: str, settings: dict, inputs: dict[str, str]) -> bool:
    """Checks whether the last change is this one, made by a command that was killed after it."""
    if not log.folders:
        return False
    origin = _origin(log.first(len(log.folders) - 1), verb, settings, inputs)
    return artifacts.is_fresh(log.folders[-1] / MANIFEST, origin)


def _next(workdir: WorkDir, log: Log) -> Path:
    return workdir.changes / f"{len(log.folders) + 1:05d}"


@contextlib.contextmanager
def _read_once(path: Path) -> Iterator[Path]:
    """Yields a path that can be read again and again: of a pipe, a copy of what it gives."""
    if not path.is_fifo():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dpr-index-") as folder:
        copy = Path(folder) / "ids"
        with path.open("rb") as pipe, copy.open("wb") as file:
            shutil.copyfileobj(pipe, file)
        yield copy


def _ids(path: Path, name: str) -> dict[str, str]:
    """Reads the ids of a file: id -> file, by the user's name for it, and line."""
    found = {}
    for number, line in rows.lines(path):
        where = f"{name}:{number}"
        if line.strip():
            found[raw.one_word(line.strip(), "passage id", where)] = where
    if not found:
        raise InputError(f"{name} is empty; a line holds the id of a passage to remove")
    return found


def _refuse_taken(source: Source, added: HashTable, corpus: Corpus) -> None:
    """Raises an error where an added id is that of a passage in the corpus."""
    gone = set(corpus.removed_R.tolist())
    with progress("index add: ids", len(corpus), "passages") as advance:
        for start in range(0, len(corpus), store.ROWS_PER_READ):
            stop = min(start + store.ROWS_PER_READ, len(corpus))
            ids = [one.id for one in corpus.rows(range(start, stop))]
            for row, id_, at in zip(range(start, stop), ids, added.rows(ids), strict=True):
                if at != -1 and row not in gone:
                    where, _ = next(itertools.islice(source.read(None), at, None))
                    raise InputError(
                        f"{where}: passage id {id_!r} is in the corpus already; remove it first to"
                        " give it another text, or take the row out"
                    )
            advance(stop - start)
