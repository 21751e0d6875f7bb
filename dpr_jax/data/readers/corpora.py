"""Readers of corpora besides DPR's own: objects with id, title and text in any table, and MS
MARCO's collection.
"""

from collections.abc import Iterator
from pathlib import Path

from dpr_jax.data import raw
from dpr_jax.data.raw import Passage, one_word
from dpr_jax.data.readers import rows, tables
from dpr_jax.data.readers.rows import OnRead
from dpr_jax.errors import InputError


def read_passage_objects(
    path: Path, on_read: OnRead | None = None
) -> Iterator[tuple[str, Passage]]:
    """{id, title, text}, under the names that BEIR, Tevatron, Pyserini and others give them; a
    passage without id is known by its content.

    Raises:
      InputError: the file cannot be read, a row has no text, or an id is not one word.
    """
    for where, row in tables.read(path, on_read):
        yield where, raw.passage(row, "the passage", where)


def read_collection(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """MS MARCO's `id TAB text`, without header and without quoting.

    Raises:
      InputError: a line without two columns, an id that is not one word, or a file that cannot be
        read.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        columns = text.rstrip("\r\n").split("\t")
        if columns == [""]:
            continue
        if len(columns) != 2:
            raise InputError(
                f"{where}: {len(columns)} columns; a line is a passage id, a tab, and its text"
            )
        yield where, Passage(one_word(columns[0], "passage id", where), "", columns[1])
