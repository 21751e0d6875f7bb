"""BM25 over words (bm25s): English stop words left out, English stemming (PyStemmer), passages as
title and text.

The score of a passage is the sum over the question's words, each as often as it occurs there, of
log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length)), Lucene's
form of Robertson and Zaragoza (2009): N passages, n of them with the word, f times in this one,
lengths in words that are indexed.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import progress
from dpr_jax.index import bm25_build
from dpr_jax.workdir import WorkDir

MANIFEST = "manifest.json"
BLOCK_SCORES = 512


class Bm25:
    """An index of words, opened by `load`."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.count = index.scores["num_docs"]

    def search(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best passages per question; of equal scores the lower row is first.

        Takes 4 bytes per passage for each CPU core, and the result: ask in batches where questions
        are many.

        Args:
          questions: texts.
          k: hits per question.

        Returns:
          (scores float32 [Q, k], rows int64 [Q, k]). A passage without any word of the question is
          no hit: where there are fewer than k hits, score -inf and row -1.
        """
        scores_QK = np.full((len(questions), k), -np.inf, np.float32)
        rows_QK = np.full((len(questions), k), -1, np.int64)

        def search_one(number: int, words: np.ndarray) -> None:
            scores_N = self._index.get_scores_from_ids(words)
            rows = _best(scores_N, k)
            scores_QK[number, : len(rows)] = scores_N[rows]
            rows_QK[number, : len(rows)] = rows

        words = [
            np.array(self._index.get_tokens_ids(words), np.int64)
            for words in bm25_build.tokenize(list(questions), return_ids=False)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(search_one, range(len(words)), words))
        return scores_QK, rows_QK


def find(workdir: WorkDir, corpus: str, *, k1: float, b: float) -> Path:
    """Returns the folder of the index over a corpus, there or not.

    Args:
      workdir: mining and retrievers share what is in it.
      corpus: fingerprint of the corpus.
      k1: as for `bm25_build.build`.
      b: likewise.
    """
    return workdir.place("bm25", _origin(corpus, k1, b))


def build_if_missing(
    workdir: WorkDir,
    texts: Iterable[str],
    *,
    count: int,
    corpus: str,
    k1: float,
    b: float,
) -> Path:
    """Builds the index over a corpus unless it is there, and returns its folder.

    Args:
      workdir: as for `find`.
      texts: title and text of each passage; not read where the index is there.
      count: how many there are, for the progress shown.
      corpus: fingerprint of the corpus.
      k1: as for `bm25_build.build`.
      b: likewise.

    Raises:
      InputError: there is no word to index.
    """
    folder, origin = find(workdir, corpus, k1=k1, b=b), _origin(corpus, k1, b)
    if artifacts.is_fresh(folder / MANIFEST, origin):
        return folder
    with (
        progress("BM25 index", count, "passages") as advance,
        artifacts.atomic_dir(folder) as partial,
    ):

        def told() -> Iterable[str]:
            for text in texts:
                yield text
                advance()

        bm25_build.build(partial, told(), k1=k1, b=b)
        files = list(partial.iterdir())
        artifacts.write_manifest(partial / MANIFEST, origin, files, passages=count)
    return folder


def load(folder: Path) -> Bm25:
    """Opens an index, memory-mapped, after checking its files against their checksums.

    Raises:
      InputError: there is no index in `folder`, or a file of it is damaged (by name).
    """
    artifacts.verify(folder / MANIFEST)
    return Bm25(bm25_build.bm25s().BM25.load(folder, mmap=True, show_progress=False))


def _origin(corpus: str, k1: float, b: float) -> dict[str, Any]:
    return artifacts.made_from("bm25", {"k1": k1, "b": b}, {"corpus": corpus})


def _best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Returns the rows of the k largest scores above 0, the lower row first among equals."""
    least = 0.0
    blocks = len(scores_N) // BLOCK_SCORES
    if blocks >= k:  # the k-th best is no less than the k-th best of the blocks' maxima
        maxima = scores_N[: blocks * BLOCK_SCORES].reshape(blocks, -1).max(axis=1)
        least = np.partition(maxima, -k)[-k]
    rows = np.flatnonzero(scores_N >= least if least > 0 else scores_N > 0)
    if len(rows) > k:
        scores = scores_N[rows]
        kth = np.partition(scores, -k)[-k]
        above, equal = rows[scores > kth], rows[scores == kth]
        rows = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    return rows[np.argsort(-scores_N[rows], kind="stable")]
