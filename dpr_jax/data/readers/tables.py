"""Rows with named values, streamed as (file and row, {name: value}): JSON lists, JSON lines, CSV
and TSV with a header, Parquet.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_jax.data.raw import short
from dpr_jax.data.readers import rows
from dpr_jax.data.readers.rows import OnRead
from dpr_jax.errors import InputError

Rows = Iterator[tuple[str, dict[str, Any]]]

ROWS_PER_READ = 256
DELIMITERS = {".csv": ",", ".tsv": "\t"}
REPEATED_HEADER = (
    "the header once more; where files were put one after the other, only the first may bring it"
)


def ending(path: Path) -> str:
    """The name's ending in small letters, without .gz or .bz2."""
    packed = path.suffix in (".gz", ".bz2")
    return (path.with_suffix("") if packed else path).suffix.lower()


def read(path: Path, on_read: OnRead | None = None) -> Rows:
    """The rows of a file, by its name's ending: .csv, .tsv, .parquet; anything else is JSON, one
    list or one object a line.

    Raises:
      InputError: the file cannot be read, is empty or broken, or a row has not the columns of the
        header.
    """
    if ending(path) in DELIMITERS:
        return _separated(path, on_read, DELIMITERS[ending(path)])
    if ending(path) == ".parquet":
        return _parquet(path)
    if rows.head(path).lstrip().startswith("["):
        return _json_list(path, on_read)
    return _json_lines(path, on_read)


def _json_list(path: Path, on_read: OnRead | None) -> Rows:
    for number, (line, row) in enumerate(rows.json_objects(path, on_read)):
        yield f"{path} row {number} (line {line})", row


def _json_lines(path: Path, on_read: OnRead | None) -> Rows:
    empty = True
    for line, text in rows.lines(path, on_read):
        if not text.strip():
            continue
        empty = False
        where = f"{path}:{line}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: broken JSON, or the file is truncated: {error}; every line must be one"
                " object, {...}"
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: every line must be one JSON object, {{...}}, found {short(row)}"
            )
        yield where, row
    if empty:
        raise InputError(f"{path}: no row; the file is empty or truncated")


def _separated(path: Path, on_read: OnRead | None, delimiter: str) -> Rows:
    table = rows.tsv(path, on_read, delimiter)
    line, header, _ = next(table, (1, [], False))
    names = [name.strip().lower() for name in header]
    if len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"{path}:{line}: the header must name every column once, found {short(header)}"
        )
    for line, row, _ in table:
        if row == header:
            raise InputError(f"{path}:{line}: {REPEATED_HEADER}")
        if len(row) != len(names):
            raise InputError(
                f"{path}:{line}: {len(row)} columns; the header names {len(names)}"
                f" ({short(', '.join(names))})"
            )
        yield f"{path}:{line}", dict(zip(names, row, strict=True))


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
        with parquet.ParquetFile(path) as file:
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
