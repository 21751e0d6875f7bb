"""Texts to padded token ids, with the `tokenizers` library and padding of our own."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken
from tokenizers.models import WordPiece

from dpr_jax.errors import InputError
from dpr_jax.model import description
from dpr_jax.model.dual_encoder import Tokens

Text = str | tuple[str, str]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "cls", "pad", "mask")}
TOKENIZER_CLASSES = (  # that are BERT's
    "BertTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRReaderTokenizer",
)


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
        if lowercase:  # added tokens are found before, in the text as it is
            rules = [backend.normalizer] if backend.normalizer else []
            lower = tokenizers.normalizers.Lowercase()
            backend.normalizer = tokenizers.normalizers.Sequence([lower, *rules])
        backend.enable_truncation(max_tokens, strategy="longest_first")
        self._backend, self._join = backend, join
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
        if isinstance(text, str) or (text[0] and self._join == "pair"):
            return text
        return f"{text[0]} {text[1]}" if text[0] else text[1]

    def rows(self, texts: Sequence[Text]) -> TokenRows:
        """Returns the token ids of many texts, kept small."""
        ids = self.ids(texts)
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
    said = description.load_json(folder / "tokenizer_config.json")
    kind = said.get("tokenizer_class")
    kind = kind or description.load_json(folder / "config.json").get("tokenizer_class")
    if kind and str(kind).removesuffix("Fast") not in TOKENIZER_CLASSES:
        raise InputError(
            f"{folder} has tokenizer_class {kind!r}, which vocab.txt alone does not make; save the"
            " tokenizer as tokenizer.json (transformers: save_pretrained)"
        )
    said.setdefault("extra_special_tokens", said.pop("additional_special_tokens", None))
    decoder = said.get("added_tokens_decoder")
    if decoder is None:  # the older files, which the newer setting replaces
        said |= description.load_json(folder / "special_tokens_map.json")
    named = {name: _token(said.get(name) or default) for name, default in SPECIAL.items()}
    extra = said.get("extra_special_tokens") or []
    extra = [*map(_token, extra.values() if isinstance(extra, dict) else extra)]
    special = [*named.values(), *extra, *map(_token, said.get("additional_special_tokens") or [])]
    if decoder is None:
        texts = {token.content for token in (*named.values(), *extra)}
        ids = description.load_json(folder / "added_tokens.json")
        added = {int(id_): _token(text, special=text in texts) for text, id_ in ids.items()}
    else:
        added = {int(id_): _token(token, special=False) for id_, token in decoder.items()}

    words = WordPiece.from_file(str(folder / "vocab.txt"), unk_token=named["unk_token"].content)
    backend = tokenizers.Tokenizer(words)
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=said.get("do_lower_case", True),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=said.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_tokens([added[id_] for id_ in sorted(added)])
    known = {token.content for token in added.values()}  # added again, they would lose their flags
    backend.add_tokens([token for token in special if token.content not in known])
    ends = [named[name].content for name in ("sep_token", "cls_token")]
    backend.post_processor = tokenizers.processors.BertProcessing(
        *((text, backend.token_to_id(text)) for text in ends)
    )
    for id_, token in added.items():
        if (found := backend.token_to_id(token.content)) != id_:
            raise InputError(
                f"{folder}: its added token {token.content!r} has id {id_}, but the vocabulary"
                f" gives it {found}; save the tokenizer as tokenizer.json (transformers:"
                " save_pretrained)"
            )
    return backend


def _token(said: str | dict[str, Any], *, special: bool = True) -> AddedToken:
    """Returns a token with the flags it comes with, by which it is found in texts."""
    if isinstance(said, str):
        return AddedToken(said, special=special)
    names = ("normalized", "single_word", "lstrip", "rstrip", "special")
    flags = {"special": special} | {name: said[name] for name in names if name in said}
    return AddedToken(said["content"], **flags)
