"""Reads the pieces of a SentencePiece model (sentencepiece.bpe.model) without sentencepiece.

The file is a protocol buffer: fields with a number and a kind, one after another
(https://protobuf.dev/programming-guides/encoding). Two of its fields matter here.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from dpr_jax.errors import InputError

PIECE, NORMALIZER = 1, 3  # fields of the model
TEXT, SCORE = 1, 2  # of a piece
CHARSMAP = 2  # of the normalizer
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # kinds


def read_pieces(file: Path) -> tuple[list[tuple[str, float]], bytes | None]:
    """Returns the pieces with their scores, and the table by which characters are normalized.

    Raises:
      InputError: the file is no SentencePiece model, or damaged.
    """
    pieces: list[tuple[str, float]] = []
    charsmap = None
    try:
        for field, value in _fields(file.read_bytes()):
            if field == PIECE:
                said = dict(_fields(value))
                (score,) = struct.unpack("<f", said.get(SCORE, b"\0\0\0\0"))
                pieces.append((said[TEXT].decode("utf-8"), score))
            elif field == NORMALIZER:
                charsmap = dict(_fields(value)).get(CHARSMAP)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
        raise InputError(
            f"{file} is no SentencePiece model, or is damaged; fetch the model folder again"
        ) from None
    if len(pieces) < 4:
        raise InputError(f"{file} holds {len(pieces)} pieces; fetch the model folder again")
    return pieces, charsmap or None


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the number and content of each field; whole numbers as empty bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(data, at)
            yield tag >> 3, b""
            continue
        if kind == LENGTH:
            size, at = _varint(data, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(kind)
        if at + size > len(data):
            raise ValueError(size)
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a whole number, seven bits in each byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(shift)
