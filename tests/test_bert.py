"""The packaged encoder against the reference implementation, whose vectors lie in golden/."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import PACKAGED

from dpr_jax.config import ModelConfig
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.embed import load_embedder

GOLDEN = Path(__file__).parent / "golden"
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    return [
        tuple(pair) for pair in json.loads((GOLDEN / "texts.json").read_text("utf-8"))
    ]


def test_token_ids_are_the_references(texts: list[tuple[str, str]]) -> None:
    reference = np.load(GOLDEN / "reference.npz")["ids"]
    ours = tokenizer.load(hf.resolve(PACKAGED, "passage"), MAX_TOKENS).ids(texts)
    assert ours == [[i for i in row if i >= 0] for row in reference.tolist()]


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", False), ("mean", True)])
def test_vectors_are_the_references(
    texts: list[tuple[str, str]], pooling: str, normalize: bool
) -> None:
    model = ModelConfig(
        pooling=pooling, normalize=normalize, max_passage_tokens=MAX_TOKENS
    )
    embedder = load_embedder(PACKAGED, None, "passage", model=model, dtype="float32")
    reference = np.load(GOLDEN / "reference.npz")[pooling]
    ours = embedder.encode(texts)
    np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_bfloat16_keeps_the_direction(texts: list[tuple[str, str]]) -> None:
    model = ModelConfig(pooling="mean", normalize=True, max_passage_tokens=MAX_TOKENS)
    embedder = load_embedder(PACKAGED, None, "passage", model=model, dtype="bfloat16")
    reference = np.load(GOLDEN / "reference.npz")["mean"]
    cosine = np.sum(embedder.encode(texts) * reference, axis=1)
    assert cosine.min() > 1 - 2e-3  # bfloat16 keeps 8 bits: 2**-9 a rounding
