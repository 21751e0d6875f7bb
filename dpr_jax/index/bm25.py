"""BM25 over words (bm25s): English stop words left out, English stemming (PyStemmer), passages as title and text.

The score of a passage is the sum over the question's words, each as often as it occurs there, of
log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length)), Lucene's form of Robertson and Zaragoza (2009):
N passages, n of them with the word, f times in this one, lengths in words that are indexed.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import Stemmer

from dpr_jax.errors import InputError


class Bm25:
    """An index of words; made by `build` or `load`."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.count = index.scores["num_docs"]

    def save(self, folder: Path) -> None:
        """Writes .npy and .json files into `folder`."""
        self._index.save(folder, show_progress=False)

    def search(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages a question; of equal scores the lower row is first.

        Args:
          questions: texts.
          k: hits a question.

        Returns:
          (scores float32 [Q, k], rows int64 [Q, k]). A passage without any word of the question is no hit: where there are fewer than k
          hits, score -inf and row -1.
        """
        scores_QK = np.full((len(questions), k), -np.inf, np.float32)
        rows_QK = np.full((len(questions), k), -1, np.int64)

        def search_one(number: int, words: list[str]) -> None:
            known = self._index.get_tokens_ids(words)
            scores_N = self._index.get_scores_from_ids(known)
            rows = _best(scores_N, k)
            scores_QK[number, : len(rows)] = scores_N[rows]
            rows_QK[number, : len(rows)] = rows

        words = _tokenize(questions, return_ids=False)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(search_one, range(len(words)), words))
        return scores_QK, rows_QK


def build(texts: Iterable[str], *, k1: float, b: float) -> Bm25:
    """Indexes texts; row i is the i-th of them.

    Args:
      texts: title and text of each passage; read once, so they may be streamed. Building takes about 3 KB of memory a passage of 100 words.
      k1: saturation of term frequency, 0 or more.
      b: length normalization, 0 to 1.

    Raises:
      InputError: there is no word to index.
    """
    tokens = _tokenize(texts, return_ids=True)
    if not tokens.vocab:
        raise InputError(
            "no passage holds a word that BM25 can index (two or more letters, not a stop word); check the text column of data.passages"
        )
    index = _bm25s().BM25(k1=k1, b=b, method="lucene")
    index.index(tokens, show_progress=False)
    return Bm25(index)


def load(folder: Path) -> Bm25:
    """Opens what `save` wrote, memory-mapped.

    Raises:
      InputError: there is no index in `folder`.
    """
    if not (folder / "params.index.json").exists():
        raise InputError(f"{folder} holds no BM25 index")
    return Bm25(_bm25s().BM25.load(folder, mmap=True, show_progress=False))


def _tokenize(texts: Iterable[str], *, return_ids: bool) -> Any:
    """bm25s' Tokenized of ids and vocabulary, or the words themselves, list[list[str]]."""
    return _bm25s().tokenize(
        texts,
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=return_ids,
        show_progress=False,
    )


def _best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest scores above 0, the lower row first among equals."""
    rows = np.flatnonzero(scores_N > 0)
    if len(rows) > k:
        scores = scores_N[rows]
        kth = np.partition(scores, -k)[-k]
        above, equal = rows[scores > kth], rows[scores == kth]
        rows = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    return rows[np.argsort(-scores_N[rows], kind="stable")]


def _bm25s() -> ModuleType:
    # It computes with JAX when imported, and the processes of a run must have joined before that.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s
