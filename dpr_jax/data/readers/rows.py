"""Rows of text files, plain or packed, streamed: lines, separated values, the objects of a JSON
list. Errors name file and line.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dpr_jax.data.readers.opened import OnRead, opened
from dpr_jax.data.readers.pieces import Piece
from dpr_jax.errors import InputError

HEAD_BYTES = 1 << 16
CHUNK_CHARS = 1 << 20
SEPARATED = {"\t": "tab", ",": "comma"}
OBJECT_LIMIT_CHARS = 1 << 28  # a JSON object that has not ended by then never will
CSV_FIELD_LIMIT = 2**31 - 1
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # stands where a file begins, also one that was put after another
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
END = "\0"  # follows the last line; found inside a field, a quote was left open


class OpenQuote(InputError):
    """A quote that is opened and never closed; of a piece of a file, perhaps behind it."""


def lines(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[int, str]]:
    """Yields number and text of every line, with its line end.

    Raises:
      InputError: the file cannot be read, its lines end in CR alone, or one is not UTF-8 or holds a
        NUL byte.
    """
    with opened(path, on_read) as file:
        for count, raw in enumerate(file, 1):
            number = path.line(count) if isinstance(path, Piece) else count
            while raw.startswith(BYTE_ORDER_MARK):
                raw = raw[len(BYTE_ORDER_MARK) :]
            if number == 1 and not raw.endswith(b"\n") and b"\r" in raw.strip():
                raise InputError(
                    f"{path}:1: the lines end in CR alone; they must end in LF or CRLF: convert the"
                    f" file with: tr '\\r' '\\n' < {path.name} > NEW"
                )
            if b"\0" in raw:
                raise InputError(
                    f"{path}:{number}: holds a NUL byte; the file must be a text in UTF-8"
                )
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from None


def head(path: Path) -> str:
    """Returns the beginning of a file, to tell its layout by; what is not UTF-8 is replaced.

    Raises:
      InputError: the file cannot be read.
    """
    with opened(path, None) as file:
        return file.read(HEAD_BYTES).decode(errors="replace").lstrip("\ufeff")


def tsv(
    path: Path, on_read: OnRead | None = None, delimiter: str = "\t"
) -> Iterator[tuple[int, list[str], bool]]:
    """Yields first line and fields of every row that is not blank, and whether quotes are letters.

    A field in quotes (") may hold delimiters, line ends and doubled quotes, as in CSV. Files that
    were written without quoting have lines that cannot be CSV: text follows a closing quote, or a
    quote stays open though this line and the next have all columns of the first row. Such lines
    are taken as they stand.

    Raises:
      InputError: as `lines`, or a quote is opened and never closed.
    """
    csv.field_size_limit(CSV_FIELD_LIMIT)
    source = lines(path, on_read)
    ahead: list[tuple[int, str]] = []  # the line that was looked at to judge the one before
    width = 0
    while True:
        line, text = ahead.pop() if ahead else next(source, (0, ""))
        if not line:
            return
        fields, as_they_stand = _plain(text, delimiter), False
        if '"' in text:
            complete = len(fields) == width
            quoted, is_open = _quoted(text, delimiter)
            if is_open:
                ahead += itertools.islice(source, 1)
                following = [_plain(one, delimiter) for _, one in ahead]
                columns = width or len(fields)
                as_they_stand = (
                    (complete or not width)
                    and delimiter == "\t"
                    and all(len(one) == columns for one in following)
                )
                if not as_they_stand:
                    more = itertools.chain(
                        [text], (ahead.pop()[1] for _ in [*ahead]), _texts(source)
                    )
                    fields = _spanning(more, delimiter, f"{path}:{line}")
            elif quoted and (len(quoted) == width or not complete):
                fields = quoted
            elif complete or not width:
                as_they_stand = True
            else:
                raise InputError(
                    f"{path}:{line}: not a row of {SEPARATED[delimiter]}-separated values: text"
                    " follows a closing quote; double the quotes inside a field"
                )
        if fields != [""]:
            width = width or len(fields)
            yield line, fields, as_they_stand


def as_letters(text: str, delimiter: str = "\t") -> list[str]:
    """Returns the fields of a line whose quotes are letters, but for a field that only a CSV writer
    makes: in quotes, with every quote inside doubled.
    """
    fields = _plain(text, delimiter)
    if '""' not in text:
        return fields
    return [
        field[1:-1].replace('""', '"') if _DOUBLED.fullmatch(field) else field for field in fields
    ]


def _plain(text: str, delimiter: str) -> list[str]:
    return text.rstrip("\r\n").split(delimiter)


def _quoted(text: str, delimiter: str) -> tuple[list[str], bool]:
    """Returns the fields of a line as CSV, empty if it is none, and whether a quote stays open."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True)), False
    except csv.Error:
        try:
            row = next(csv.reader([text, END], delimiter=delimiter))
        except csv.Error:  # a CR within a field
            return [], False
        return [], row[-1].endswith(END)


def _texts(source: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, text in source:
        yield text
    yield END


def _spanning(texts: Iterator[str], delimiter: str, where: str) -> list[str]:
    """Returns the fields of a row with line ends inside quotes; takes no more lines than it has."""
    try:
        row = next(csv.reader(texts, delimiter=delimiter))
    except csv.Error as error:
        raise InputError(
            f"{where}: not a row of {SEPARATED[delimiter]}-separated values: {error}"
        ) from None
    if END in row[-1]:
        raise OpenQuote(
            f'{where}: a quote (") is opened and never closed; a field that begins with a'
            " quote must end with one"
        )
    return row


def json_objects(
    path: Path, on_read: OnRead | None = None, within: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """First line and value of every object in a file that is one JSON list of objects; holds one
    object at a time.

    Args:
      path: the file.
      on_read: told the bytes read.
      within: the file is an object, and the list is its value of this name.

    Raises:
      InputError: the file cannot be read, is not such a list, or ends before the list does.
    """
    with opened(path, on_read) as file:
        text = _JsonText(path, file)
        if within:
            text.enter(within)
        text.take("[", "must be one JSON list of questions, [{...}, ...]")
        if text.peek() == "]":
            text.take("]", "")
        else:
            separator = ","
            while separator == ",":
                yield text.take_object()
                separator = text.take(",]", "a comma or ] must follow a question")
        if within:
            text.leave()
        if text.peek():
            raise InputError(f"{path}:{text.line}: more after the end of the JSON text")


class _JsonText:
    """A JSON text that is read piece by piece."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.line = 1
        self._path = path
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0

    def peek(self) -> str:
        """Returns the next character that is not white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self.line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._refill():
                return ""

    def take(self, expected: str, rule: str) -> str:
        """Passes over one of the expected characters and returns it."""
        found = self.peek()
        if not found or found not in expected:
            self._refuse(found, rule)
        self._at += 1
        return found

    def enter(self, key: str) -> None:
        """Passes over `{` and every value up to that of `key`."""
        self.take("{", f'must be one JSON object with a list "{key}"')
        while self._key() != key:
            self._value()
            self.take(",", f'must be one JSON object with a list "{key}"')

    def leave(self) -> None:
        """Passes over the values that follow, and `}`."""
        while self.take(",}", "a comma or } must follow the list") == ",":
            self._key()
            self._value()

    def take_object(self) -> tuple[int, dict[str, Any]]:
        """Passes over one object; returns its first line and its value."""
        found = self.peek()
        if found != "{":
            self._refuse(found, "a question, {...}, must stand here")
        line = self.line
        return line, self._value()

    def _key(self) -> str:
        found = self.peek()
        if found != '"':
            self._refuse(found, "a name in quotes must stand here")
        key = self._value()
        self.take(":", "a colon must follow a name")
        return key

    def _value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # a number at the end of what is read may go on
                if end == len(self._text) and self._refill():
                    continue
                break
            except json.JSONDecodeError as error:
                if len(self._text) - self._at < OBJECT_LIMIT_CHARS and self._refill():
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                raise InputError(
                    f"{self._path}:{line}: broken JSON, or the file is truncated: {error.msg}"
                ) from None
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{self._path}:{self.line}: not a value that can be read: {error}"
                ) from None
        self.line += self._text.count("\n", self._at, end)
        self._at = end
        return value

    def _refill(self) -> bool:
        """Forgets what was taken and reads as much again; returns whether there was more."""
        left = self._text[self._at :]
        try:
            more = self._file.read(max(CHUNK_CHARS, len(left)))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._path} after line {self.line}: not UTF-8 ({error.reason}); save the file as"
                " UTF-8"
            ) from None
        self._text, self._at = left + more, 0
        return more != ""

    def _refuse(self, found: str, rule: str) -> None:
        what = f"found {found!r}" if found else "the file ends; it is empty or truncated"
        raise InputError(f"{self._path}:{self.line}: {rule}, but {what}")
