"""Finds the corpus row of a passage id, without holding 21 million strings."""

from array import array
from collections.abc import Sequence

import numpy as np


class HashedTexts:
    """Texts in the order they came, kept as 64-bit hashes: 8 bytes each, twice that once they are
    looked up.

    Two different texts of 21 million share a hash with a chance of 1 in 80,000.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, text: str) -> None:
        self._hashes.append(hash(text))

    def __len__(self) -> int:
        return len(self._hashes)

    def distinct(self) -> int:
        """Returns the number of different texts."""
        return len(np.unique(np.frombuffer(self._hashes, np.int64)))

    def rows_also_in(self, other: "HashedTexts") -> np.ndarray:
        """Returns the rows of texts that the other has too, int64, ascending."""
        mine_N = np.frombuffer(self._hashes, np.int64)
        return np.flatnonzero(np.isin(mine_N, np.frombuffer(other._hashes, np.int64)))

    def table(self) -> "HashTable":
        """Returns the table to look texts up in; those added later are not in it."""
        hashes_N = np.frombuffer(self._hashes, np.int64)
        order_N = np.argsort(hashes_N, kind="stable")
        return HashTable(hashes_N[order_N], order_N)


class HashTable:
    """Rows of texts by their hashes."""

    def __init__(self, sorted_N: np.ndarray, rows_N: np.ndarray) -> None:
        """Takes the hashes in ascending order, int64 [N], and each one's row, int64 [N]."""
        self._sorted_N, self._rows_N = sorted_N, rows_N

    def rows(self, texts: Sequence[str]) -> list[int]:
        """Returns the first row of every text; -1 where it was never added."""
        wanted = np.array([hash(text) for text in texts], np.int64)
        at = np.searchsorted(self._sorted_N, wanted)
        at = np.minimum(at, len(self._sorted_N) - 1)
        return np.where(self._sorted_N[at] == wanted, self._rows_N[at], -1).tolist()

    def repeats(self) -> list[tuple[int, int]]:
        """Returns (row where it came first, row) of every text that came before, by row."""
        again = np.flatnonzero(self._sorted_N[1:] == self._sorted_N[:-1]) + 1
        first = self._rows_N[np.searchsorted(self._sorted_N, self._sorted_N[again])]
        pairs = zip(first.tolist(), self._rows_N[again].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: pair[1])
