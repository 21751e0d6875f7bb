"""A built index with the changes of its corpus laid over it.

What was added is searched exactly beside it; what was removed is left out. This holds for every
engine: ScaNN and FAISS can add and remove vectors themselves, but write their whole index anew for
it (docs/log.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.index import hits
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.removed import SearchFunction, search_without


class IndexPart(NamedTuple):
    """One engine and the corpus rows that it has, which it counts from 0.

    Attributes:
      search: of the engine.
      count: its rows.
      gone_R: those that it must not find, int64, ascending.
      to_corpus: its rows -> rows of the corpus.
    """

    search: SearchFunction
    count: int
    gone_R: np.ndarray
    to_corpus: Callable[[np.ndarray], np.ndarray]


class LayeredIndex:
    """A built index and exact search over the rows added since; neither finds a removed row.

    Attributes:
      count: rows of the corpus, removed ones included.
      dimension: width of the vectors in it.
      settings: those of the built index.
    """

    def __init__(
        self,
        built: Any,
        *,
        rows_N: np.ndarray | None,
        first_added: int,
        added: list[np.ndarray],
        gone_R: np.ndarray,
    ) -> None:
        """Takes an opened engine and what changed since it was built.

        Args:
          built: has `search`, `count`, `dimension` and `settings`.
          rows_N: corpus rows of its rows, int64, ascending; None: the first ones.
          first_added: corpus row where the additions begin.
          added: their vectors in corpus order, [rows, dimension].
          gone_R: removed rows, int64, ascending.
        """
        self.settings, self.dimension = built.settings, built.dimension
        self.count = first_added + sum(map(len, added))
        if rows_N is None:
            self._parts = [_of_range(built.search, range(first_added), gone_R)]
        else:
            self._parts = [_of_rows(built.search, rows_N, gone_R)]
        if added:
            rows = range(first_added, self.count)
            self._parts.append(_of_range(ExactIndex(added).search, rows, gone_R))

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best hits of all parts; see `ExactIndex.search`."""
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        found = []
        for part in self._parts:
            scores_QK, at_QK = search_without(
                part.search, part.gone_R, queries_QD, k, count=part.count
            )
            found.append((scores_QK, np.where(at_QK < 0, -1, part.to_corpus(at_QK))))
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
        scores_QK, rows_QK = hits.in_order(scores, rows, rows < 0)
        return scores_QK[:, :k], rows_QK[:, :k]


def _of_range(search: SearchFunction, rows: range, gone_R: np.ndarray) -> IndexPart:
    here_R = gone_R[(gone_R >= rows.start) & (gone_R < rows.stop)]
    return IndexPart(search, len(rows), here_R - rows.start, lambda at: at + rows.start)


def _of_rows(search: SearchFunction, rows_N: np.ndarray, gone_R: np.ndarray) -> IndexPart:
    at_R = np.minimum(np.searchsorted(rows_N, gone_R), len(rows_N) - 1)
    here_R = at_R[rows_N[at_R] == gone_R]
    return IndexPart(search, len(rows_N), here_R, lambda at: rows_N[at])


def rows_in(files: list[Path]) -> np.ndarray:
    """Returns the rows in several files, int64, ascending."""
    parts = [np.zeros(0, np.int64), *(np.load(file) for file in files)]
    return np.sort(np.concatenate(parts))
