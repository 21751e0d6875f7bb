"""Rows with named values, streamed as (file and row, {name: value}): JSON lists, JSON lines, CSV
and TSV with a header, Parquet.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from dpr_jax.data.raw import short
from dpr_jax.data.readers import rows
from dpr_jax.data.readers.opened import OnRead, inner_name
from dpr_jax.data.readers.urls import UrlPath
from dpr_jax.errors import InputError

Rows = Iterator[tuple[str, dict[str, Any]]]


class Separated(NamedTuple):
    """The form of separated values.

    Attributes:
      delimiter: between columns.
      header: whether the first row names them; else they are known by number, from 1.
      literal: told of each row whose quotes are letters (file and line).
    """

    delimiter: str
    header: bool = True
    literal: Callable[[str], None] | None = None


ROWS_PER_READ = 256
_LIST_OF_ROWS = re.compile(r"\s*\[\s*([{\]]|$)")  # else a line is a list of its own
DELIMITERS = {".csv": ",", ".tsv": "\t"}
REPEATED_HEADER = (
    "the header once more; where files were put one after the other, only the first may bring it"
)


def ending(path: Path) -> str:
    """Returns the name's ending in small letters, without those of packing; of an archive, that of
    its file.
    """
    return PurePath(inner_name(path)).suffix.lower()


def read(path: Path, on_read: OnRead | None = None, shape: Separated | None = None) -> Rows:
    """The rows of a file: .csv, .tsv, .parquet by its name's ending; anything else is JSON, one
    list or one row a line.

    Args:
      path: the file.
      on_read: told the bytes read.
      shape: of separated values; None: as the ending says, with a header.

    Raises:
      InputError: the file cannot be read, is empty or broken, or a row has not the columns of the
        header.
    """
    if shape is not None or ending(path) in DELIMITERS:
        return _separated(path, on_read, shape or Separated(DELIMITERS[ending(path)]))
    if ending(path) == ".parquet":
        return _parquet(path)
    if is_json_list(path):
        return _json_list(path, on_read)
    return _json_lines(path, on_read)


def is_json_list(path: Path) -> bool:
    """Returns whether a file is one JSON list of objects."""
    return _LIST_OF_ROWS.match(rows.head(path)) is not None


def _json_list(path: Path, on_read: OnRead | None) -> Rows:
    for number, (line, row) in enumerate(rows.json_objects(path, on_read)):
        yield f"{path} row {number} (line {line})", row


def _json_lines(path: Path, on_read: OnRead | None) -> Rows:
    kind: type = type(None)
    for line, text in rows.lines(path, on_read):
        if not text.strip():
            continue
        where = f"{path}:{line}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: broken JSON, or the file is truncated: {error}; every line must be one"
                " object, {...}"
            ) from None
        kind = list if kind is not dict and isinstance(row, list) else dict
        if not isinstance(row, kind):
            raise InputError(
                f"{where}: every line must be one JSON object, {{...}}, found {short(row)}"
            )
        yield where, by_number(row) if kind is list else row
    if kind is type(None):
        raise InputError(f"{path}: no row; the file is empty or truncated")


def _separated(path: Path, on_read: OnRead | None, shape: Separated) -> Rows:
    table = rows.tsv(path, on_read, shape.delimiter)
    line, header, _ = next(table, (1, [], False))
    names = [name.strip() for name in header]
    if not shape.header:
        names = [*by_number(header)]
        yield f"{path}:{line}", by_number(header)
    elif len({name.lower() for name in names}) < len(names) or not all(names):
        raise InputError(
            f"{path}:{line}: the header must name every column once, found {short(header)}"
        )
    empty = shape.header
    for line, row, as_it_stands in table:
        empty = False
        if row == header and shape.header:
            raise InputError(f"{path}:{line}: {REPEATED_HEADER}")
        if len(row) != len(names):
            width = f"the header names {len(names)} ({short(', '.join(names))})"
            if not shape.header:
                width = f"the first row has {len(names)}"
            raise InputError(f"{path}:{line}: {len(row)} columns; {width}")
        if as_it_stands and shape.literal is not None:
            shape.literal(f"{path}:{line}")
        yield f"{path}:{line}", dict(zip(names, row, strict=True))
    if empty:
        raise InputError(f"{path}: no row after the header; the file is empty or truncated")


def by_number(row: list[Any]) -> dict[str, Any]:
    """Returns the values of a row by the number of their column, from 1."""
    return {str(number): value for number, value in enumerate(row, 1)}


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow; install it with: pip install"
            " 'dpr_jax[parquet]'"
        ) from None
    try:
        opened = path.open("rb", seekable=True) if isinstance(path, UrlPath) else path
        with parquet.ParquetFile(opened) as file:
            number = 0
            for batch in file.iter_batches(ROWS_PER_READ):
                for row in batch.to_pylist():
                    yield f"{path} row {number}", row
                    number += 1
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a Parquet file, truncated or damaged ({short(str(error))}); copy or"
            " download it again"
        ) from None
