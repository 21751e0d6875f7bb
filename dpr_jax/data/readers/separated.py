"""Tells how separated values are written: delimiter, header, and what their columns are where
nothing names them.

What fits two layouts is refused with both, and with the setting that chooses.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpr_jax.data.raw import short
from dpr_jax.data.readers import columns, labelled, rows, tables
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.data.readers.tables import Separated
from dpr_jax.errors import InputError

ROWS_TO_TELL_BY = 1000
CANDIDATES = {".csv": ",\t;", ".tsv": "\t,"}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_NAME_LIKE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*( [A-Za-z0-9_.-]+)?")


class Written(NamedTuple):
    """The form of a file of separated values, and the roles of its columns.

    Attributes:
      shape: of a table with roles.
      layout: of one without names: `answers`, `ids`, `triples`, `collection`; else empty.
      roles: of its columns by number, where they are known without names.
    """

    shape: Separated
    layout: str = ""
    roles: tuple[str, ...] = ()


def questions(path: Path, chosen: Chosen) -> Written:
    """Tells how a file of questions is written.

    Raises:
      InputError: two layouts fit, or none.
    """
    begin = _begin(path)
    delimiter, cells = _delimited(path, begin, chosen)
    if chosen.by_number():
        return Written(Separated(delimiter, header=False))
    answers = [line.partition("\t")[2] for line in begin]
    if delimiter == "\t" and all(re.match(r'\s*"?\[', one) for one in answers):
        return Written(Separated("\t"), "answers")
    if _is_header(cells[0], chosen):
        return Written(Separated(delimiter))
    _refuse_doubtful_header(path, cells)
    return _without_names(path, cells, delimiter)


def passages(path: Path, chosen: Chosen) -> Written:
    """Tells how a corpus is written.

    Raises:
      InputError: its columns are not known.
    """
    begin = _begin(path)
    delimiter, cells = _delimited(path, begin, chosen)
    if chosen.by_number():
        return Written(Separated(delimiter, header=False))
    first = cells[0]
    if _is_header(first, chosen):
        return Written(Separated(delimiter))
    if delimiter == "\t" and len(first) == 2:
        _refuse_doubtful_header(path, cells)
        return Written(Separated(delimiter), "collection")
    raise InputError(
        f"{path}:1: the first line must be the header id, text, title (tab-separated), found"
        f" {short(first)}; if it is a passage, say what the columns are with --data.columns"
        " id=1 text=2 title=3"
    )


def _begin(path: Path) -> list[str]:
    """Returns the first lines that are not blank."""
    lines = (text.rstrip("\r\n") for _, text in rows.lines(path))
    begin = list(itertools.islice(filter(str.strip, lines), ROWS_TO_TELL_BY))
    if not begin:
        raise InputError(f"{path} is empty")
    return begin


def _delimited(path: Path, begin: list[str], chosen: Chosen) -> tuple[str, list[list[str]]]:
    """Returns the delimiter and the first rows, split without regard to quotes."""
    candidates = CANDIDATES[tables.ending(path)]
    if candidates[0] == "," and re.match(r'[^\t]*\t\s*"?\[', begin[0]):
        candidates = "\t"  # DPR's question/answers, whose name says .csv
    for delimiter in candidates:
        first = _cells(begin[0], delimiter)
        if len(first) > 1 and _is_header(first, chosen):
            break
    else:
        several = [one for one in candidates if one in begin[0]]
        delimiter = several[0] if several else candidates[0]
    return delimiter, [_cells(line, delimiter) for line in begin]


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in line.split(delimiter)]


def _is_header(first: Sequence[str], chosen: Chosen) -> bool:
    """Returns whether the first row names the columns, as far as they are known."""
    names = [columns.normal(cell.strip('"')) for cell in first]
    if {*chosen.role_of, *chosen.ignored} & {*names}:
        return True
    known = [columns.is_name(cell, chosen.kind) for cell in first]
    if len({*names}) < 2 or len({*names}) < len(names):
        return len(names) > 2 and all(known)  # a name twice, which the reader refuses
    telling = "text" if chosen.kind == "passages" else "question"
    tiers = columns.PASSAGE_TIERS if chosen.kind == "passages" else columns.QUESTION_TIERS
    tells = any(name in tier for tier in (*tiers[telling], *tiers["id"]) for name in names)
    name_like = [bool(_NAME_LIKE.fullmatch(cell.strip('"'))) for cell in first]
    return all(known) or (tells and all(name_like))


def _refuse_doubtful_header(path: Path, cells: list[list[str]]) -> None:
    """Refuses a first row that looks like names which are not known."""
    first, others = cells[0], [row for row in cells[1:] if len(row) == len(cells[0])]
    if not others or not all(_NAME_LIKE.fullmatch(cell.strip('"')) for cell in first):
        return
    shapes = [{_shape(row[at]) for row in others} for at in range(len(first))]
    same = [_shape(cell) in shapes[at] for at, cell in enumerate(first)]
    digits = [any(ch.isdigit() for ch in cell) for cell in first]
    if all(same) or any(map(all, zip(same, digits, strict=True))):
        return
    named = " ".join(f"ROLE={cell}" for cell in first)
    raise InputError(
        f"{path}:1: is this a header ({', '.join(first)}) or the first row? Say what the columns"
        f" are: --data.columns {named} for a header, or by number, as ROLE=1 ROLE=2, for a row"
    )


def _shape(cell: str) -> str:
    """Returns a cell with a for a run of letters and 9 for one of digits."""
    return re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", "a", cell))


def _without_names(path: Path, cells: list[list[str]], delimiter: str) -> Written:
    """Tells the layout of questions without header by the forms of their columns."""
    width = len(cells[0])
    even = [row for row in cells if len(row) == width]
    columns_ = [[row[at] for row in even] for at in range(width)]
    words = [all(len(cell.split()) <= 1 for cell in column) for column in columns_]
    numbers = [all(map(_is_label, column)) for column in columns_]
    ids = [
        words[at] and all(re.search(r"\d", cell) for cell in columns_[at]) for at in range(width)
    ]
    if delimiter == "\t" and width == 2:
        if words[0] and not (ids[0] and ids[1]):
            return Written(Separated(delimiter), "ids")
        if not words[0]:
            raise _ambiguous(path, ("id=1 question=2", "question=1 positive=2"), cells[0])
    if delimiter == "\t" and width == 3:
        if numbers[2] and not words[0] and not words[1]:
            return Written(
                Separated(delimiter, header=False), roles=("question", "positive", "label")
            )
        if words[0] and words[1] and (numbers[2] or all(ids)):
            raise InputError(
                f"{path}:1: the rows are ids and judgements ({short(cells[0])}), not questions;"
                " name the file as qrels, such as data.test_qrels, or say what the columns are with"
                " --data.columns"
            )
        if (words[0] and not words[1] and len(even) > 1) or any(numbers):
            ways = ("question=1 positive=2 negative=3", "id=1 question=2 positive=3")
            raise _ambiguous(path, ways, cells[0])
        return Written(Separated(delimiter), "triples")
    ways = ("question=1 positive=2", "question=1 answers=2")
    raise _ambiguous(path, ways, cells[0])


def _is_label(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell)) or cell.lower() in labelled.WORDS


def _ambiguous(path: Path, ways: Sequence[str], row: Sequence[str]) -> InputError:
    """Returns the error for rows that fit two layouts."""
    return InputError(
        f"{path}:1: not a known layout of questions: no header says what the {len(row)} columns"
        f" are ({short(list(row))}); choose with {' or '.join(f'--data.columns {w}' for w in ways)}"
    )
