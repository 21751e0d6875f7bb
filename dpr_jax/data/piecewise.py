"""Writes the data set `corpus` piece by piece: a piece of the source is a shard of the data set.

Pieces are read by one process per core, on all hosts of the run. A worker is this module in a new
process, which takes jobs on its input. It imports no JAX, and it ends with the process that started
it. `facts-NUMBER.npz` beside a shard holds what the questions need to know of its passages.
"""

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dpr_jax.data import raw, store
from dpr_jax.data.fields import Collected
from dpr_jax.data.passage_rows import HashedTexts
from dpr_jax.data.raw import Passage
from dpr_jax.data.readers.opened import OnRead, inner_name, opened
from dpr_jax.data.readers.pieces import ByLines, Piece, cut
from dpr_jax.data.readers.rows import OpenQuote
from dpr_jax.errors import InputError

NONE_BAD = 2**31 - 1


class Share(NamedTuple):
    """The pieces that a process writes: every `of`-th one from `index` on, with so many workers."""

    index: int = 0
    of: int = 1
    workers: int = 1


class Outcome(NamedTuple):
    """The end of writing a share.

    Attributes:
      pieces: how many the source has, as far as it was read.
      checksum: crc32 of the unpacked source.
      bad: the first piece of this share that has an error; NONE_BAD for none.
      error: its error.
    """

    pieces: int
    checksum: int
    bad: int = NONE_BAD
    error: InputError | None = None

    @property
    def is_cut_wrong(self) -> bool:
        """Returns whether the first bad piece ends within a row; then its error means nothing."""
        return isinstance(self.error, OpenQuote)


class Seen:
    """Ids and texts of passages, as hashes, and their fields, taken as the passages go by."""

    def __init__(self) -> None:
        self.ids, self.texts, self.empty = HashedTexts(), HashedTexts(), 0
        self.fields = Collected()

    def noting(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for passage in passages:
            self.ids.add(passage.id)
            self.texts.add(passage.text)
            self.empty += raw.is_blank(passage.text)
            self.fields.add(passage)
            yield passage


class _Job(NamedTuple):
    source: ByLines
    literal: Any  # the `detect.Literal` that source.read tells
    piece: Piece
    folder: Path


def write(
    path: Path,
    source: ByLines,
    literal: Any,
    folder: Path,
    on_read: OnRead | None = None,
    *,
    share: Share,
) -> Outcome:
    """Writes the shards of a share, and the facts of each.

    Args:
      path: the file of the corpus.
      source: its form.
      literal: told by `source.read` of rows whose quotes are letters.
      folder: where the shards go.
      on_read: told the bytes read.
      share: which pieces, and by how many workers.

    Raises:
      InputError: the file cannot be read.
      OSError: the disk is full.
    """
    count, checksum, ended = 0, 0, False

    def jobs() -> Iterator[_Job]:
        nonlocal count, checksum, ended
        with opened(path, on_read) as file:
            form = {"header": source.header, "quoted": source.quoted}
            for piece in cut(file, str(path), inner_name(path), **form):
                count += 1
                checksum = zlib.crc32(piece.content, checksum)
                if piece.number % share.of == share.index:
                    yield _Job(source, literal, piece, folder)

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_done(jobs(), share.workers)) as done:
        for piece, error in done:
            if isinstance(error, OpenQuote) and piece.is_last:
                error = InputError(str(error))
            if isinstance(error, InputError):
                return Outcome(count, checksum, piece.number, error)
            if error is not None:
                raise error
    return Outcome(count, checksum)


def gather(folder: Path, literal: Any) -> tuple[Seen, list[tuple[int, int]]]:
    """Returns the facts of all passages, and (rows, bytes) of each shard; deletes their files.

    Args:
      folder: where all shards are.
      literal: gets the number of rows whose quotes are letters.
    """
    seen, shards = Seen(), []
    if literal is not None:
        literal.__init__()
    for file in sorted(folder.glob("facts-*.npz")):
        with np.load(file) as facts:
            seen.ids.extend(facts["ids"])
            seen.texts.extend(facts["texts"])
            seen.fields.extend(facts)
            rows, size, empty, letters = facts["counts"].tolist()
            example = str(facts["example"])
        seen.empty += empty
        shards.append((rows, size))
        if literal is not None:
            literal.count += letters
            literal.example = literal.example or example
        file.unlink()
    return seen, shards


# --- this process and its workers


def _done(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[Piece, Exception | None]]:
    """Yields each piece and its error, in order, as the shards are written."""
    begin = [*itertools.islice(jobs, 2)]
    if workers == 1 or len(begin) < 2:
        for job in itertools.chain(begin, jobs):
            yield job.piece, _write(job)
        return
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_Worker()))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(lambda: pool.shutdown(cancel_futures=True))

        def work(job: _Job) -> Exception | None:
            worker = idle.get()
            try:
                return worker.run(job)
            finally:
                idle.put(worker)

        waiting: deque[tuple[Piece, Future[Exception | None]]] = deque()
        for job in itertools.chain(begin, jobs):
            waiting.append((job.piece._replace(content=b""), pool.submit(work, job)))
            while len(waiting) > workers or (waiting and waiting[0][1].done()):
                piece, future = waiting.popleft()
                yield piece, future.result()
        for piece, future in waiting:
            yield piece, future.result()


class _Worker:
    """A new process that writes pieces."""

    def __enter__(self) -> Self:
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpr_jax.data.piecewise"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # idle, or with a job that nobody waits for
        self._process.communicate()

    def run(self, job: _Job) -> Exception | None:
        try:
            pickle.dump(job, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            return InputError(
                f"prepare: a process that read {job.piece} ended with {self._process.wait()}; where"
                " memory is short, take fewer cores (taskset)"
            )


def _write(job: _Job) -> Exception | None:
    """Writes a shard and its facts; returns the error, if there was one."""
    piece, seen = job.piece, Seen()
    if job.literal is not None:
        job.literal.__init__()
    passages = (passage for _, passage in job.source.read(piece, None))
    try:
        size = store.write_corpus_shard(job.folder, piece.number, seen.noting(passages))
        letters = job.literal.count if job.literal is not None else 0
        np.savez(
            job.folder / f"facts-{piece.number:05d}.npz",
            ids=seen.ids.hashes(),
            texts=seen.texts.hashes(),
            counts=np.array([len(seen.ids), size, seen.empty, letters]),
            example=np.array(job.literal.example if letters else ""),
            **seen.fields.saved(),
        )
    except (InputError, OSError) as error:
        return error
    return None


def _main() -> None:
    """Takes jobs on the input, and answers each with its error, until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    with contextlib.suppress(EOFError):
        while True:
            error = _write(pickle.load(sys.stdin.buffer))
            pickle.dump(error, answers)
            answers.flush()


if __name__ == "__main__":
    _main()
