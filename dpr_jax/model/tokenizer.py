"""Texts to padded token ids, with the `tokenizers` library and padding of our own."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from dpr_jax.errors import InputError
from dpr_jax.model import description
from dpr_jax.model.dual_encoder import Tokens
from dpr_jax.model.tokenizer_files import open_backend

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
        """Returns some of the texts as a batch [count, length]; rows left over are one token 0.

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
    """Texts to token ids: [CLS] question [SEP], and passages as their encoder wants them.

    A passage is [CLS] title [SEP] text [SEP], or one text with a space between the two; without a
    title it is its text. A prompt stands before all of it and counts in its length. A pair that is
    too long loses tokens from the longer part; [CLS] and [SEP] always stay.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        max_tokens: int,
        *,
        join: str = "pair",
        lowercase: bool = False,
        prompt: str = "",
    ) -> None:
        """Takes the library's tokenizer, which is changed.

        Args:
          backend: of the `tokenizers` library.
          max_tokens: the longest row, special tokens included.
          join: "pair" or "space", for titles and texts.
          lowercase: whether texts are lower-cased first.
          prompt: put before every text.
        """
        backend.no_padding()
        if lowercase:  # added tokens are found before, in the text as it is
            rules = [backend.normalizer] if backend.normalizer else []
            lower = tokenizers.normalizers.Lowercase()
            backend.normalizer = tokenizers.normalizers.Sequence([lower, *rules])
        backend.enable_truncation(max_tokens, strategy="longest_first")
        self._backend, self._join, self._prompt = backend, join, prompt
        self.max_tokens = max_tokens

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens with their ids, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def ids(self, texts: Sequence[Text], prompt: str | None = None) -> list[list[int]]:
        """Returns the token ids of each text (or title, text pair), unpadded.

        Args:
          texts: any number.
          prompt: put before them; None: the tokenizer's own.
        """
        prompt = self._prompt if prompt is None else prompt
        seen = [self._one(text, prompt) for text in texts]
        return [row.ids for row in self._backend.encode_batch_fast(seen)]

    def _one(self, text: Text, prompt: str) -> Text:
        """Returns a text as the library is to see it."""
        if isinstance(text, str):
            return prompt + text
        if text[0] and self._join == "pair":
            return prompt + text[0], text[1]
        return prompt + (f"{text[0]} {text[1]}" if text[0] else text[1])

    def rows(self, texts: Sequence[Text], prompt: str | None = None) -> TokenRows:
        """Returns the token ids of many texts, kept small; the arguments are those of `ids`."""
        ids = self.ids(texts, prompt)
        lengths_N = np.array([len(row) for row in ids], np.int32)
        ends_N = np.cumsum(lengths_N, dtype=np.int64)
        ids_T = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
        return TokenRows(ids_T, lengths_N, ends_N - lengths_N)

    def sizes(self, words: Sequence[str]) -> list[int]:
        """Returns how many tokens each word has, special tokens left out."""
        rows = self._backend.encode_batch_fast(list(words), add_special_tokens=False)
        return [len(row.ids) for row in rows]

    def __call__(self, texts: Sequence[Text], length: int) -> Tokens:
        """Returns a batch padded to `length` tokens, no less than the longest text has."""
        return pad(self.ids(texts), length)


def pad(rows: Sequence[Sequence[int]], length: int) -> Tokens:
    """Returns rows of token ids as one int32 array [len(rows), length], zeros after each end."""
    ids_BL = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = row
    return Tokens(ids_BL, np.array([len(row) for row in rows], np.int32))


def load(folder: Path, max_tokens: int, prompt: str = "") -> Tokenizer:
    """Opens the tokenizer of a model folder.

    Args:
      folder: of the encoder.
      max_tokens: the longest row, special tokens included.
      prompt: put before every text.

    Raises:
      InputError: its files are missing, or one is damaged, or says what cannot be done.
    """
    try:
        backend = open_backend(folder)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer in {folder} does not load: {error}") from error
    return Tokenizer(
        backend,
        max_tokens,
        join=description.title_and_text(folder),
        lowercase=description.is_lowercased(folder),
        prompt=prompt,
    )
