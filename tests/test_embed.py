"""Embedding: order, padding, devices and batch size must not show in the vectors."""

import numpy as np
import pytest
import tiny

from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, Tokens
from dpr_jax.model.embed import Embedder
from dpr_jax.model.tokenizer import Tokenizer

WORDS = [
    "retrieval",
    "of",
    "dense",
    "passages",
    "with",
    "two",
    "towers",
    "learns",
    "what",
    "questions",
    "mean",
]


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return tokenizer.load(hf.resolve(tiny.PACKAGED, "passage"), 64)


def embedder(tokens: Tokenizer, batch_tokens: int, pooling: str = "mean") -> Embedder:
    encoder = Encoder(tiny.SHAPE, pooling=pooling)
    return Embedder(encoder, tiny.params(), tokens, batch_tokens=batch_tokens)


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 50))) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_batching_does_not_show(tokens: Tokenizer, pooling: str) -> None:
    some = texts(50)
    whole = embedder(tokens, 1024, pooling).encode(some)
    alone = np.concatenate(
        [embedder(tokens, 64, pooling).encode([one]) for one in some]
    )
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, alone, atol=2e-6)


def test_few_texts_take_few_rows_and_few_shapes(
    tokens: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight devices, so eight rows at least; a full batch has 1024 tokens a device, 256 rows of 32."""
    one = embedder(tokens, 1024)
    shapes: list[tuple[int, ...]] = []

    def apply(params: object, tokens: Tokens) -> np.ndarray:
        shapes.append(tokens.ids_BL.shape)
        return np.zeros((tokens.ids_BL.shape[0], one.width), np.float32)

    monkeypatch.setattr(one, "_apply", apply)
    for count in (1, 5, 16, 17, 64, 65, 256, 300):
        one.encode(["dense retrieval"] * count)
    rows = [8, 16, 16, 64, 64, 256, 256, 256, 256]
    assert shapes == [(count, 32) for count in rows]


def test_no_texts(tokens: Tokenizer) -> None:
    assert embedder(tokens, 64).encode([]).shape == (0, 32)


def test_title_is_a_segment_of_its_own(tokens: Tokenizer) -> None:
    cls, sep = 101, 102
    titled, untitled = tokens.ids([("dense", "passages"), ("", "passages")])
    assert titled[0] == cls and titled.count(sep) == 2 and titled[-1] == sep
    assert untitled == tokens.ids(["passages"])[0]


def test_too_long_is_cut_longest_first_and_still_ends_in_sep(tokens: Tokenizer) -> None:
    (row,) = tokens.ids([("short title", "word " * 500)])
    assert len(row) == 64 and row[-1] == 102
    assert row[:4] == tokens.ids([("short title", "word")])[0][:4]
