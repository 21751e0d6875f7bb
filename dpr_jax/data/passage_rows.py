"""Finds the corpus row of a passage id, without holding 21 million strings."""

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np


def text_hash(text: str) -> int:
    """Returns 64 bits of a text, as int64; Python's own hash differs from process to process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class HashedTexts:
    """Texts in the order they came, kept as 64-bit hashes: 8 bytes each, twice that once they are
    looked up.

    Two different texts of 21 million share a hash with a chance of 1 in 80,000.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, text: str) -> None:
        self._hashes.append(text_hash(text))

    def extend(self, hashes_N: np.ndarray) -> None:
        """Adds texts by their hashes, int64 [N]."""
        self._hashes.frombytes(hashes_N.astype(np.int64).tobytes())

    def hashes(self) -> np.ndarray:
        """Returns the hashes in the order in which the texts came, int64 [N]."""
        return np.frombuffer(self._hashes, np.int64)

    def __len__(self) -> int:
        return len(self._hashes)

    def distinct(self) -> int:
        """Returns the number of different texts."""
        return len(np.unique(self.hashes()))

    def rows_also_in(self, other: "HashedTexts") -> np.ndarray:
        """Returns the rows of texts that the other has too, int64, ascending."""
        return np.flatnonzero(np.isin(self.hashes(), other.hashes()))

    def table(self) -> "HashTable":
        """Returns the table to look texts up in; those added later are not in it."""
        hashes_N = self.hashes()
        order_N = np.argsort(hashes_N, kind="stable")
        return HashTable(hashes_N[order_N], order_N)


class HashTable:
    """Rows of texts by their hashes."""

    def __init__(self, sorted_N: np.ndarray, rows_N: np.ndarray) -> None:
        """Takes the hashes in ascending order, int64 [N], and each one's row, int64 [N]."""
        self._sorted_N, self._rows_N = sorted_N, rows_N

    def rows(self, texts: Sequence[str]) -> list[int]:
        """Returns the first row of every text; -1 where it was never added."""
        wanted = np.array([text_hash(text) for text in texts], np.int64)
        at = np.searchsorted(self._sorted_N, wanted)
        at = np.minimum(at, len(self._sorted_N) - 1)
        return np.where(self._sorted_N[at] == wanted, self._rows_N[at], -1).tolist()

    def repeats(self) -> list[tuple[int, int]]:
        """Returns (row where it came first, row) of every text that came before, by row."""
        again = np.flatnonzero(self._sorted_N[1:] == self._sorted_N[:-1]) + 1
        first = self._rows_N[np.searchsorted(self._sorted_N, self._sorted_N[again])]
        pairs = zip(first.tolist(), self._rows_N[again].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: pair[1])
