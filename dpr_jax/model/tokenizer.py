"""Texts to padded token ids, with the `tokenizers` library and padding of our own."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from dpr_jax.errors import InputError
from dpr_jax.model import description
from dpr_jax.model.dual_encoder import Tokens

Text = str | tuple[str, str]
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


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
    """Texts to token ids: [CLS] question [SEP], and passages as their encoder wants them.

    A passage is [CLS] title [SEP] text [SEP], or one text with a space between the two; without a
    title it is its text. A pair that is too long loses tokens from the longer part; [CLS] and [SEP]
    always stay.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        max_tokens: int,
        *,
        join: str = "pair",
        lowercase: bool = False,
    ) -> None:
        """Takes the library's tokenizer, which is changed.

        Args:
          backend: of the `tokenizers` library.
          max_tokens: the longest row, special tokens included.
          join: "pair" or "space", for titles and texts.
          lowercase: whether texts are lower-cased first.
        """
        backend.no_padding()
        backend.enable_truncation(max_tokens, strategy="longest_first")
        self._backend, self._join, self._lowercase = backend, join, lowercase
        self.max_tokens = max_tokens

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens with their ids, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """Returns the token ids of each text (or title, text pair), unpadded."""
        return [row.ids for row in self._backend.encode_batch_fast(list(map(self._one, texts)))]

    def _one(self, text: Text) -> Text:
        """Returns a text as the library is to see it."""
        if not isinstance(text, str):
            title, body = text
            if not title:
                text = body
            elif self._join == "space":
                text = f"{title} {body}"
        if not self._lowercase:
            return text
        return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())

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
    """Opens tokenizer.json, or BERT's vocab.txt with what tokenizer_config.json says of it.

    Raises:
      InputError: neither file is there, or one is damaged, or says what cannot be done.
    """
    fast, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if fast.exists():
            backend = tokenizers.Tokenizer.from_file(str(fast))
        elif vocab.exists():
            backend = _of_vocabulary(folder)
        else:
            raise InputError(f"{folder} holds no tokenizer.json or vocab.txt; copy it there")
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer in {folder} does not load: {error}") from error
    return Tokenizer(
        backend,
        max_tokens,
        join=description.title_and_text(folder),
        lowercase=description.is_lowercased(folder),
    )


def _of_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """Returns BERT's tokenizer over vocab.txt, with the settings that transformers honours."""
    said = _settings(folder, "tokenizer_config.json")
    special = {
        name: _content(said.get(name) or _settings(folder, "special_tokens_map.json").get(name))
        or default
        for name, default in SPECIAL_TOKENS.items()
    }
    backend = tokenizers.BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        **special,
        lowercase=said.get("do_lower_case", True),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=said.get("tokenize_chinese_chars", True),
    )
    added = {text: int(id_) for text, id_ in _settings(folder, "added_tokens.json").items()}
    for id_, token in said.get("added_tokens_decoder", {}).items():
        added[_content(token)] = int(id_)
    for text, id_ in sorted(added.items(), key=lambda one: one[1]):
        known = backend.token_to_id(text)
        if known is None:
            token = tokenizers.AddedToken(text, normalized=False)
            backend.add_special_tokens([token])
            known = backend.token_to_id(text)
        if known != id_:
            raise InputError(
                f"{folder}: its added token {text!r} has id {id_}, but the vocabulary gives it"
                f" {known}; save the tokenizer as tokenizer.json (transformers: save_pretrained)"
            )
    return backend._tokenizer


def _settings(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _content(token: Any) -> str:
    """Returns the text of a token, which is a string or an object with its content."""
    return token["content"] if isinstance(token, dict) else token or ""
