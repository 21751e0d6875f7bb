"""Cuts a text file into pieces of whole rows, which are read on their own, in any order.

Where a file is cut depends on its content alone. So it is cut alike on every machine, and by any
number of processes.
"""

from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

PIECE_BYTES = 1 << 26  # unpacked; of DPR's Wikipedia 100,000 passages
LINES_TO_LOOK = 50  # for one without quotes


class ByLines(NamedTuple):
    """The form of a file that can be cut.

    Attributes:
      read: yields its rows; takes a path or a `Piece`, and a function told the bytes read. It can
        be sent to another process.
      header: whether the first line that is not blank belongs to every piece.
      quoted: whether a row may go on over several lines within quotes.
    """

    read: Callable[[Any, Callable[[int], None] | None], Iterator[Any]]
    header: bool
    quoted: bool


class Piece(NamedTuple):
    """Some rows of a file that follow each other; readers take it as a path.

    Attributes:
      path: of the file, for messages.
      name: of the file, without endings of packing.
      number: of the piece, from 0.
      content: the header, and the rows.
      header_lines: lines of the header.
      first_line: number of the first line behind the header in the file.
      is_last: whether the file ends with it.
    """

    path: str
    name: str
    number: int
    content: bytes
    header_lines: int
    first_line: int
    is_last: bool

    def __str__(self) -> str:
        return self.path

    @property
    def suffix(self) -> str:
        return PurePath(self.name).suffix

    def is_file(self) -> bool:
        return False  # it is no archive

    def line(self, number: int) -> int:
        """Returns the number in the file of a line of the piece; both count from 1."""
        if number <= self.header_lines:
            return number
        return number - self.header_lines - 1 + self.first_line


def cut(file: BinaryIO, path: str, name: str, *, header: bool, quoted: bool) -> Iterator[Piece]:
    """Yields the pieces of a file.

    With `quoted` a piece ends behind an even number of quotes, where it can at a line without any.
    That is the end of a row in all files that are written as CSV. In others it may not be: then
    reading the piece raises `rows.OpenQuote`, and nothing can be said of the pieces behind it.

    Args:
      file: unpacked, with `peek`.
      path: of the file, for messages.
      name: of the file, without endings of packing.
      header, quoted: as in `ByLines`.
    """
    head: list[bytes] = []
    while header and (not head or not head[-1].strip()) and (line := file.readline()):
        head.append(line)
    begin, at, number = b"".join(head), 1 + len(head), 0
    while content := file.read(PIECE_BYTES):
        parts, more_bytes, lines = [content], 0, 0
        last = file.readline()
        parts.append(last)
        odd = (content.count(b'"') + last.count(b'"')) % 2
        last = content.rpartition(b"\n")[2] + last
        # a line without quotes is never taken for an open one; some files have none
        while quoted and last and more_bytes < PIECE_BYTES:
            if not odd and (b'"' not in last or lines > LINES_TO_LOOK):
                break
            last = file.readline()
            parts.append(last)
            odd = (odd + last.count(b'"')) % 2
            more_bytes, lines = more_bytes + len(last), lines + 1
        content = b"".join(parts)
        if content.strip():
            is_last = not file.peek(1)
            yield Piece(path, name, number, begin + content, len(head), at, is_last)
            number += 1
        at += content.count(b"\n")
