"""Texts to padded token ids, with the `tokenizers` library and padding of our own."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from dpr_jax.errors import InputError
from dpr_jax.model.dual_encoder import Tokens

Text = str | tuple[str, str]


class TokenRows(NamedTuple):
    """The token ids of many texts, one after another: four bytes a token, where lists take forty.

    Attributes:
      ids_T: int32 ids of all texts.
      lengths_N: int32 number of tokens of each text.
      starts_N: int64, where the ids of each text begin.
    """

    ids_T: np.ndarray
    lengths_N: np.ndarray
    starts_N: np.ndarray

    def padded(self, rows: np.ndarray, count: int, length: int) -> Tokens:
        """Some of the texts as a batch [count, length]; rows that are left over are a single token
        0.

        Args:
          rows: which texts, at most `count`, none longer than `length`.
        """
        lengths_B = np.ones(count, np.int32)
        lengths_B[: len(rows)] = self.lengths_N[rows]
        filled_BL = np.arange(length) < lengths_B[: len(rows), None]
        at_BL = self.starts_N[rows, None] + np.arange(length)
        ids_BL = np.zeros((count, length), np.int32)
        ids_BL[: len(rows)][filled_BL] = self.ids_T[at_BL[filled_BL]]
        return Tokens(ids_BL, lengths_B)


class Tokenizer:
    """[CLS] question [SEP], [CLS] title [SEP] text [SEP], or [CLS] text [SEP] for a passage without
    title.

    A pair that is too long loses tokens from the longer part; [CLS] and [SEP] always stay.
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_tokens: int) -> None:
        """Takes the library's tokenizer (which is changed) and the longest row in tokens, special
        tokens included.
        """
        backend.no_padding()
        backend.enable_truncation(max_tokens, strategy="longest_first")
        self._backend = backend
        self.max_tokens = max_tokens

    def ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each text (or title, text pair), unpadded."""
        single = [text if isinstance(text, str) or text[0] else text[1] for text in texts]
        return [row.ids for row in self._backend.encode_batch_fast(single)]

    def rows(self, texts: Sequence[Text]) -> TokenRows:
        """Token ids of many texts, kept small."""
        ids = self.ids(texts)
        lengths_N = np.array([len(row) for row in ids], np.int32)
        ends_N = np.cumsum(lengths_N, dtype=np.int64)
        ids_T = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
        return TokenRows(ids_T, lengths_N, ends_N - lengths_N)

    def sizes(self, words: Sequence[str]) -> list[int]:
        """How many tokens each word has, special tokens left out."""
        rows = self._backend.encode_batch_fast(list(words), add_special_tokens=False)
        return [len(row.ids) for row in rows]

    def __call__(self, texts: Sequence[Text], length: int) -> Tokens:
        """A batch padded to `length` tokens, which is at least `max_tokens` or every text's
        length.
        """
        return pad(self.ids(texts), length)


def pad(rows: Sequence[Sequence[int]], length: int) -> Tokens:
    """Rows of token ids as one int32 array [len(rows), length], zeros after each row's end."""
    ids_BL = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = row
    return Tokens(ids_BL, np.array([len(row) for row in rows], np.int32))


def load(folder: Path, max_tokens: int) -> Tokenizer:
    """Opens tokenizer.json, or BERT's vocab.txt where that is all there is.

    Raises:
      InputError: neither file is there, or it is damaged.
    """
    fast, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if fast.exists():
            return Tokenizer(tokenizers.Tokenizer.from_file(str(fast)), max_tokens)
        if vocab.exists():
            backend = tokenizers.BertWordPieceTokenizer(str(vocab), lowercase=_lowercase(folder))
            return Tokenizer(backend._tokenizer, max_tokens)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer in {folder} does not load: {error}") from error
    raise InputError(f"{folder} holds no tokenizer.json or vocab.txt; copy it there")


def _lowercase(folder: Path) -> bool:
    """BERT's own default is to lower-case, unless tokenizer_config.json says otherwise."""
    settings = folder / "tokenizer_config.json"
    if not settings.exists():
        return True
    return json.loads(settings.read_text()).get("do_lower_case", True)
