"""BM25 against its formula in NumPy."""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.index import bm25

TEXTS = [
    "Cats The cat sat on the mat; another cat looked on.",
    "Dogs Dogs and cats: a dog is no cat.",
    "Birds A bird in the hand is worth two in the bush",
    "",
    "Cats The cat sat on the mat; another cat looked on.",
    "Trains Trains stop where the railway ends",
]


def words(text: str) -> list[str]:
    stem = Stemmer.Stemmer("english").stemWord
    found = re.findall(r"\b\w\w+\b", text.lower())
    return [stem(word) for word in found if word not in STOPWORDS_EN]


def formula(texts: list[str], question: str, k1: float, b: float) -> np.ndarray:
    """The score of every text, in float64."""
    bags = [Counter(words(text)) for text in texts]
    lengths_N = np.array([bag.total() for bag in bags])
    scores_N = np.zeros(len(texts))
    for word in words(question):
        counts_N = np.array([bag[word] for bag in bags])
        holding = (counts_N > 0).sum()
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        saturation_N = counts_N + k1 * (1 - b + b * lengths_N / lengths_N.mean())
        scores_N += idf * counts_N / saturation_N
    return scores_N


def expected_hits(scores_N: np.ndarray, k: int) -> list[int]:
    """By score, then by row; only what shares a word with the question."""
    order = sorted(range(len(scores_N)), key=lambda row: (-scores_N[row], row))
    rows = [row for row in order if scores_N[row] > 0][:k]
    return rows + [-1] * (k - len(rows))


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (2.0, 0.0)])
def test_scores_are_the_formula(k1: float, b: float) -> None:
    questions = [
        "which cat sat?",
        "cats cats dog",
        "the railway",
        "the of",
        "zebra",
        "",
    ]
    index = bm25.build(TEXTS, k1=k1, b=b)
    scores_QK, rows_QK = index.search(questions, 4)
    assert scores_QK.dtype == np.float32 and rows_QK.dtype == np.int64
    for question, scores_K, rows_K in zip(questions, scores_QK, rows_QK, strict=True):
        scores_N = formula(TEXTS, question, k1, b)
        assert rows_K.tolist() == expected_hits(scores_N, 4)
        wanted_K = np.where(rows_K >= 0, scores_N[rows_K], -np.inf)
        np.testing.assert_allclose(scores_K, wanted_K, rtol=1e-5)


def test_equal_scores_go_by_row_also_at_the_cut() -> None:
    index = bm25.build(["cat"] * 50 + ["cat cat dog"] + ["bird"] * 50, k1=0.9, b=0.4)
    for k in (1, 5, 49):
        _, rows_QK = index.search(["cat"], k)
        tied = [row for row in rows_QK[0].tolist() if row != 50]
        assert tied == sorted(tied) == list(range(len(tied)))


def test_real_rows_are_the_formula(nq_small_workdir: tuple[Config, WorkDir]) -> None:
    _, workdir = nq_small_workdir
    texts = [one.title_and_text for one in store.open_corpus(workdir)]
    questions = [one.question for one in store.open_questions(workdir, "dev")]
    index = bm25.build(iter(texts), k1=0.9, b=0.4)
    scores_QK, _ = index.search(questions, 20)
    for question, scores_K in zip(questions, scores_QK, strict=True):
        best_N = np.sort(formula(texts, question, 0.9, 0.4))[::-1]
        # float32 sums of a dozen terms
        np.testing.assert_allclose(scores_K, best_N[:20], rtol=1e-5)


def test_saved_index_answers_the_same_after_a_move(tmp_path: Path) -> None:
    index = bm25.build(TEXTS, k1=0.9, b=0.4)
    index.save(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = bm25.load(tmp_path / "there")
    assert loaded.count == index.count == len(TEXTS)
    for kept, found in zip(
        index.search(["cat on a mat"], 9),
        loaded.search(["cat on a mat"], 9),
        strict=True,
    ):
        np.testing.assert_array_equal(kept, found)
    for file in (tmp_path / "there").iterdir():
        assert file.suffix in (".json", ".npy")
        if file.suffix == ".npy":
            np.load(file, allow_pickle=False)


def test_no_questions() -> None:
    scores_QK, rows_QK = bm25.build(TEXTS, k1=0.9, b=0.4).search([], 3)
    assert scores_QK.shape == rows_QK.shape == (0, 3)


def test_nothing_to_index_and_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no passage holds a word"):
        bm25.build(["the of", ""], k1=0.9, b=0.4)
    with pytest.raises(InputError, match="no BM25 index"):
        bm25.load(tmp_path)
