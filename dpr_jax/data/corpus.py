"""Writes the data set `corpus`, each passage once."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import console, host
from dpr_jax.data import piecewise, store
from dpr_jax.data.passage_rows import HashTable
from dpr_jax.data.piecewise import Seen, Share
from dpr_jax.data.raw import Passage
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.errors import InputError

MEGABYTE = 1_000_000


class CorpusFacts(NamedTuple):
    """Facts of the corpus that the questions need, and that are reported.

    Attributes:
      table: passage id -> row.
      passages: how many there are.
      repeated_texts: those whose text another one has.
      empty_texts: those without text, or with white space and control characters alone.
      repeats: rows of the source that repeat an id with its title and text, and were left out.
    """

    table: HashTable
    passages: int
    repeated_texts: int
    empty_texts: int
    repeats: int


def write_corpus(
    source: Source, folder: Path, pieces: Path | None = None
) -> tuple[CorpusFacts, list[Path]]:
    """Writes the data set `corpus` of a source of passages, one that stands there twice once.

    Args:
      source: of the passages.
      folder: where the folder of the data set goes.
      pieces: folder of shards and facts that `piecewise.write` wrote; None: nothing was written.

    Raises:
      InputError: there is no passage, a row is broken, or an id occurs twice with different texts
        (file and line).
    """
    out = folder / "corpus"
    if pieces:
        pieces.rename(out)
    elif source.by_lines:
        _write_pieces(source, out)
    if out.exists():
        seen, shards = piecewise.gather(out, source.literal)
        files = store.describe_corpus(out, shards)
    else:
        seen = Seen()
        with reading("prepare corpus", source) as on_read:
            passages = (passage for _, passage in _passages(source, on_read))
            files = store.write_corpus(folder, seen.noting(passages))
    repeats = seen.ids.table().repeats()
    if repeats:
        repeated = out.rename(folder / "repeated")
        written = store.Corpus(repeated)
        _refuse_other_texts(source, written, repeats)
        again = {row for _, row in repeats}
        fields, seen = seen.fields, Seen()
        once = (passage for row, passage in enumerate(written) if row not in again)
        files = store.write_corpus(folder, seen.noting(once))
        shutil.rmtree(repeated)
        files += fields.write(folder, without=again)
    else:
        files += seen.fields.write(folder)
    facts = CorpusFacts(
        table=seen.ids.table(),
        passages=len(seen.ids),
        repeated_texts=len(seen.ids) - seen.texts.distinct(),
        empty_texts=seen.empty,
        repeats=len(repeats),
    )
    return facts, files


def _write_pieces(source: Source, out: Path) -> None:
    """Writes the shards of a corpus that is a file of lines; none where it cannot be cut."""
    share = Share(workers=host.cores())
    with reading("prepare corpus", source) as on_read:
        path, form, literal = source.files[0], source.by_lines, source.literal
        outcome = piecewise.write(path, form, literal, out, on_read, share=share)
    if outcome.error and not outcome.is_cut_wrong:
        raise outcome.error
    if outcome.error or not outcome.pieces:
        shutil.rmtree(out)


def _passages(source: Source, on_read: OnRead) -> Iterator[tuple[str, Passage]]:
    """Yields the passages; raises an error where there is none."""
    passages = source.read(on_read)
    first = next(passages, None)
    if first is None:
        names = ", ".join(str(path) for path in source.files)
        raise InputError(
            f"{names}: no passage in {source.layout}; the corpus is empty, data.passages is not"
            " set to a file that has some"
        )
    yield first
    yield from passages


def _refuse_other_texts(
    source: Source, written: store.Corpus, repeats: list[tuple[int, int]]
) -> None:
    """Raises an error where a repeated id has another title or text than the first time."""
    for start in range(0, len(repeats), store.ROWS_PER_READ):
        pairs = repeats[start : start + store.ROWS_PER_READ]
        firsts, laters = (written.rows(rows) for rows in zip(*pairs, strict=True))
        for pair, first, later in zip(pairs, firsts, laters, strict=True):
            if first != later:
                _refuse_repeat(source, *pair)


def _refuse_repeat(source: Source, first: int, second: int) -> None:
    """Raises the error for an id with two texts; reads the corpus again for the line numbers."""
    found = []
    for row, (where, passage) in enumerate(source.read(None)):
        if row in (first, second):
            found.append((where, passage.id))
        if row == second:
            break
    (first_where, id_), (second_where, other) = found
    assert id_ == other, f"{id_!r} and {other!r} have the same 64-bit hash; run again"
    first_line = first_where.replace(f"{source.files[0]}:", "line ")
    raise InputError(
        f"{second_where}: passage id {id_!r} occurs twice, first at {first_line} with another"
        " text; ids must be unique"
    )


@contextlib.contextmanager
def reading(title: str, source: Source) -> Iterator[OnRead]:
    """Progress in megabytes of the files; yields what is to be told the bytes read."""
    done_bytes = 0
    total_bytes = sum(path.stat().st_size for path in source.files)
    with console.progress(title, total_bytes // MEGABYTE, "MB") as advance:

        def on_read(count: int) -> None:
            nonlocal done_bytes
            before, done_bytes = done_bytes // MEGABYTE, done_bytes + count
            if done_bytes // MEGABYTE > before:
                advance(done_bytes // MEGABYTE - before)

        yield on_read
