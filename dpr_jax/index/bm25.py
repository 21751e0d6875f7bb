"""BM25 over words (bm25s), passages as title and text; words are as bm25_words cuts them.

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

from dpr_jax import artifacts, console
from dpr_jax.config import Bm25Config
from dpr_jax.console import progress
from dpr_jax.index import bm25_build, bm25_words
from dpr_jax.workdir import WorkDir

MANIFEST = "manifest.json"
BLOCK_SCORES = 512
FORM = 2  # 1 knew English alone


class Bm25:
    """An index of words, opened by `load`."""

    def __init__(self, index: Any, language: str) -> None:
        self._index, self._language = index, language
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
            for words in bm25_words.tokenize(questions, self._language)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(search_one, range(len(words)), words))
        return scores_QK, rows_QK


def settings_of(config: Bm25Config) -> dict[str, Any]:
    """Returns the settings that an index depends on; a language only where it is set.

    These are the keyword arguments of `find` and `build_if_missing`.
    """
    language = {"language": config.language} if config.language else {}
    return {"k1": config.k1, "b": config.b, **language}


def find(workdir: WorkDir, corpus: str, **settings: Any) -> Path:
    """Returns the folder of the index over a corpus, there or not.

    Args:
      workdir: mining and retrievers share what is in it.
      corpus: fingerprint of the corpus.
      settings: as `settings_of` returns them.
    """
    return workdir.place("bm25", _origin(corpus, settings))


def build_if_missing(
    workdir: WorkDir,
    texts: Iterable[str],
    *,
    count: int,
    corpus: str,
    sample: Iterable[str] = (),
    **settings: Any,
) -> Path:
    """Builds the index over a corpus unless it is there, and returns its folder.

    Args:
      workdir: as for `find`.
      texts: title and text of each passage; not read where the index is there.
      count: how many there are, for the progress shown.
      corpus: fingerprint of the corpus.
      sample: some of the texts, to find the language by; not read where it is named.
      settings: as `settings_of` returns them.

    Raises:
      InputError: there is no word to index.
    """
    folder, origin = find(workdir, corpus, **settings), _origin(corpus, settings)
    if artifacts.is_fresh(folder / MANIFEST, origin):
        return folder
    language = settings.get("language") or bm25_words.find_language(sample)
    how = "as bm25.language says" if "language" in settings else "found from the corpus"
    console.say(f"bm25: {language} ({how}): {bm25_words.described(language)}")
    with (
        progress("BM25 index", count, "passages") as advance,
        artifacts.atomic_dir(folder) as partial,
    ):

        def told() -> Iterable[str]:
            for text in texts:
                yield text
                advance()

        numbers = {"k1": settings["k1"], "b": settings["b"]}
        bm25_build.build(partial, told(), **numbers, language=language)
        files = list(partial.iterdir())
        artifacts.write_manifest(
            partial / MANIFEST, origin, files, passages=count, language=language
        )
    return folder


def load(folder: Path) -> Bm25:
    """Opens an index, memory-mapped, after checking its files against their checksums.

    Raises:
      InputError: there is no index in `folder`, or a file of it is damaged (by name).
    """
    language = artifacts.verify(folder / MANIFEST)["language"]
    index = bm25_words.bm25s().BM25.load(folder, mmap=True, show_progress=False)
    return Bm25(index, language)


def _origin(corpus: str, settings: dict[str, Any]) -> dict[str, Any]:
    return artifacts.made_from("bm25", settings, {"corpus": corpus}, form=FORM)


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
