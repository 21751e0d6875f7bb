"""Building a BM25 index in bounded memory: postings go through files, a block of passages at a
time.

bm25s' own `index` keeps every word of the corpus in memory, about 3 KB per passage of 100 words,
and numbers words in an order that differs from process to process. This keeps the vocabulary, 4
bytes per passage and one block, and the same texts give the same bytes. What it writes is bm25s'
layout: `bm25s.BM25.load(folder, mmap=True)` opens it.
"""

import itertools
import json
import shutil
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax.errors import InputError
from dpr_jax.index import bm25_words

BLOCK_PASSAGES = 20_000  # about 300 MB at 100 words per passage
PARAMETERS = "params.index.json"
VOCABULARY = "vocab.index.json"
# by word, the rows that hold it in ascending order, and the score that it gives each
SCORES, ROWS = "data.csc.index.npy", "indices.csc.index.npy"
STARTS = "indptr.csc.index.npy"  # where each word's begin in these two


def build(
    folder: Path, texts: Iterable[str], *, k1: float, b: float, language: str = bm25_words.ENGLISH
) -> None:
    """Indexes texts; row i is the i-th of them.

    Args:
      folder: where to write; exists.
      texts: title and text of each passage; read once.
      k1: saturation of term frequency, 0 or more.
      b: length normalization, 0 to 1.
      language: of the texts.

    Raises:
      InputError: there is no word to index.
    """
    scratch = folder / "scratch"
    scratch.mkdir()

    # --- words to numbers; the postings of each block, ordered by word, to a file
    vocabulary: dict[str, int] = {}
    holding_V = np.zeros(0, np.int64)  # passages that hold the word
    lengths = array("i")  # words of each passage
    left, blocks = iter(texts), 0
    while block := list(itertools.islice(left, BLOCK_PASSAGES)):
        words_T, lengths_B = _numbered(block, vocabulary, language)
        rows_T = np.repeat(np.arange(len(lengths_B)) + len(lengths), lengths_B)
        keys_T = words_T << 32 | rows_T
        keys_P, counts_P = np.unique(keys_T, return_counts=True)
        np.save(scratch / f"keys-{blocks}.npy", keys_P)
        np.save(scratch / f"counts-{blocks}.npy", counts_P.astype(np.int32))
        added = len(vocabulary) - len(holding_V)
        holding_V = np.pad(holding_V, (0, added))
        holding_V += np.bincount(keys_P >> 32, minlength=len(vocabulary))
        lengths.extend(lengths_B)
        blocks += 1
    if not vocabulary:
        raise InputError(
            "no passage holds a word that BM25 can index (two or more letters, not a stop word);"
            " check the text column of data.passages"
        )

    # --- each posting's score, to its place
    starts_V = np.concatenate([[0], np.cumsum(holding_V)])
    scores_P = _new_array(folder / SCORES, np.float32, int(starts_V[-1]))
    rows_P = _new_array(folder / ROWS, np.int32, int(starts_V[-1]))
    idf_V = np.log1p((len(lengths) - holding_V + 0.5) / (holding_V + 0.5))
    lengths_N = np.frombuffer(lengths, np.int32)
    penalty_of_mean = k1 * b / lengths_N.mean()
    next_V = starts_V[:-1].copy()
    for number in range(blocks):
        keys_P = np.load(scratch / f"keys-{number}.npy")
        counts_P = np.load(scratch / f"counts-{number}.npy")
        words, rows = keys_P >> 32, keys_P & 0xFFFFFFFF
        held_V = np.bincount(words, minlength=len(vocabulary))
        first_V = np.cumsum(held_V) - held_V
        place_P = next_V[words] + np.arange(len(words)) - first_V[words]
        penalty_P = k1 * (1 - b) + penalty_of_mean * lengths_N[rows]
        rows_P[place_P] = rows
        scores_P[place_P] = idf_V[words] * counts_P / (counts_P + penalty_P)
        next_V += held_V
    rows_P.flush()
    scores_P.flush()

    # --- the small files
    np.save(folder / STARTS, starts_V)
    _write_json(folder / VOCABULARY, vocabulary)
    parameters = {
        "k1": k1,
        "b": b,
        "method": "lucene",
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": len(lengths),
    }
    _write_json(folder / PARAMETERS, parameters)
    shutil.rmtree(scratch)


def _numbered(
    block: list[str], vocabulary: dict[str, int], language: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of a block by number, int64 [T], and how many each text has, int64 [B].

    New words join the vocabulary, in an order that is the same in every process.
    """
    if language == bm25_words.ENGLISH:
        found = bm25_words.english(block, return_ids=True)
        vocab, ids_B = found.vocab, found.ids
    else:
        vocab = {}
        words_B = bm25_words.tokenize(block, language)
        ids_B = [[vocab.setdefault(word, len(vocab)) for word in words] for words in words_B]
    # bm25s numbers the words of a block in the order of a set, another in each process
    for word in sorted(vocab.keys() - vocabulary.keys()):
        vocabulary[word] = len(vocabulary)
    number_of = np.zeros(len(vocab), np.int64)
    number_of[list(vocab.values())] = [vocabulary[word] for word in vocab]
    lengths_B = np.array([len(ids) for ids in ids_B], np.int64)
    ids_T = np.fromiter(itertools.chain.from_iterable(ids_B), np.int64, lengths_B.sum())
    return number_of[ids_T], lengths_B


def _new_array(path: Path, dtype: type, length: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
