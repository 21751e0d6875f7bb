"""Finds passages by row, with a cache, and by id, with a table of hashes."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from dpr_jax.data.fields import Value
from dpr_jax.data.passage_rows import HashTable, text_hash
from dpr_jax.data.readers.formats import Passage
from dpr_jax.data.store import ROWS_PER_READ, Corpus

MOST_CHARS = 50_000_000


class PassageCache:
    """Reads passages by row and keeps the last ones: reading takes as long as a search.

    Not safe for several threads.
    """

    def __init__(self, corpus: Corpus, most_chars: int = MOST_CHARS) -> None:
        self._corpus, self._left = corpus, most_chars
        self._kept: OrderedDict[int, Passage] = OrderedDict()

    def rows(self, rows: Iterable[int]) -> dict[int, Passage]:
        """Returns the passages of some rows."""
        found = {row: self._kept[row] for row in rows if row in self._kept}
        missing = [row for row in rows if row not in found]
        for row in found:
            self._kept.move_to_end(row)
        for row, passage in zip(missing, self._corpus.rows(missing), strict=True):
            found[row] = self._kept[row] = passage
            self._left -= len(passage.text)
        while self._left < 0:
            _, passage = self._kept.popitem(last=False)
            self._left += len(passage.text)
        return found


class NotRead(Exception):
    """Raised while the ids of the corpus are being read."""


class PassageIds:
    """Maps ids to rows in 16 bytes per passage; reads them in the background at the first use."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._table: HashTable | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def find(self, id_: str, *, wait_s: float) -> tuple[Passage, dict[str, Value]] | None:
        """Returns the passage of this id with its fields, None where there is none; to be called in
        a thread.

        Args:
          id_: of the passage.
          wait_s: longest wait for the ids to be read.

        Raises:
          NotRead: they are not read yet.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="dpr-ids", daemon=True)
                self._thread.start()
        if self._table is None:
            self._thread.join(wait_s)
        if self._table is None:
            raise NotRead
        [row] = self._table.rows([id_])
        if row < 0:
            return None
        passage = self._corpus[row]
        if passage.id != id_:  # another id may have the same hash
            return None
        return passage, self._corpus.fields.of(row)

    def close(self) -> None:
        """Stops the reading thread, which would otherwise crash the interpreter's exit."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        count = len(self._corpus)
        hashes_N = np.empty(count, np.int64)
        for start in range(0, count, ROWS_PER_READ):
            stop = min(start + ROWS_PER_READ, count)
            if self._closed:
                return
            passages = self._corpus.rows(range(start, stop))
            hashes_N[start:stop] = [text_hash(passage.id) for passage in passages]
            time.sleep(0)  # requests go first
        live_N = np.delete(np.arange(count), self._corpus.removed_R)
        order_N = live_N[np.argsort(hashes_N[live_N], kind="stable")]
        self._table = HashTable(hashes_N[order_N], order_N)
