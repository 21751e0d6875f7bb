"""A built index that followed its corpus: what was added since lies beside it, what was removed is
left out.

Every engine alike: ScaNN and FAISS can take vectors in and out themselves, but write their whole
  index anew for it (docs/log.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.index import hits
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import engine
from dpr_jax.index.removed import Search, search_without


class LayeredIndex:
    """The engine that the index was built with, exact search over the rows added since, and neither
    finds a removed row.

    Attributes:
      count: rows of the corpus, removed ones included.
      dimension: width of the vectors in it; `engines.load` lays a reduction around it where
        questions are wider.
      settings: what `load` needs again, to be kept by the caller: JSON values. kind, folder and
        settings of the built index; rows, the file of its corpus rows, where it lacks some ("": it
        has the first ones); first_added, the row where the additions begin; added and removed, the
        files of their vectors and of their rows.
    """

    def __init__(self, layers: list["Layer"], settings: dict[str, Any]) -> None:
        self.settings = settings
        self.count, self.dimension = settings["count"], settings["dimension"]
        self._layers = layers

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "LayeredIndex":
        """Opens the layers in `folder`."""
        gone_R = rows_in([folder / name for name in settings["removed"]])
        first_added = settings["first_added"]
        built = engine(settings["kind"]).load(folder / settings["folder"], settings["settings"])
        if settings["rows"]:
            rows_N = np.load(folder / settings["rows"], mmap_mode="r")
            layers = [_of_rows(built.search, rows_N, gone_R)]
        else:
            layers = [_of_range(built.search, range(first_added), gone_R)]
        if settings["added"]:
            files = [folder / name for name in settings["added"]]
            added = ExactIndex([np.load(file, mmap_mode="r") for file in files])
            rows = range(first_added, first_added + added.count)
            layers.append(_of_range(added.search, rows, gone_R))
        return cls(layers, settings)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best hits of all layers; see `ExactIndex.search` for arguments and result."""
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        found = []
        for layer in self._layers:
            scores_QK, at_QK = search_without(
                layer.search, layer.gone_R, queries_QD, k, count=layer.count
            )
            rows_QK = np.where(at_QK < 0, -1, layer.to_corpus(at_QK))
            found.append((scores_QK, rows_QK))
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
        scores_QK, rows_QK = hits.in_order(scores, rows, rows < 0)
        return scores_QK[:, :k], rows_QK[:, :k]


class Layer(NamedTuple):
    """One engine and the corpus rows that it has, which it counts from 0.

    Attributes:
      search: of the engine.
      count: its rows.
      gone_R: those that it must not find, int64, ascending.
      to_corpus: its rows -> rows of the corpus.
    """

    search: Search
    count: int
    gone_R: np.ndarray
    to_corpus: Callable[[np.ndarray], np.ndarray]


def _of_range(search: Search, rows: range, gone_R: np.ndarray) -> Layer:
    here_R = gone_R[(gone_R >= rows.start) & (gone_R < rows.stop)]
    return Layer(search, len(rows), here_R - rows.start, lambda at: at + rows.start)


def _of_rows(search: Search, rows_N: np.ndarray, gone_R: np.ndarray) -> Layer:
    at_R = np.minimum(np.searchsorted(rows_N, gone_R), len(rows_N) - 1)
    here_R = at_R[rows_N[at_R] == gone_R]
    return Layer(search, len(rows_N), here_R, lambda at: rows_N[at])


def rows_in(files: list[Path]) -> np.ndarray:
    """Rows out of several files, int64, ascending."""
    parts = [np.zeros(0, np.int64), *(np.load(file) for file in files)]
    return np.sort(np.concatenate(parts))
