"""The packaged encoder against the reference implementation, whose vectors lie in golden/."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import packaged_as_bert

from dpr_jax.config import ModelConfig
from dpr_jax.model import tokenizer
from dpr_jax.model.embed import load_embedder
from dpr_jax.model.product import on_cpu

GOLDEN = Path(__file__).parent / "golden"
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_as_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads((GOLDEN / "texts.json").read_text("utf-8"))]


def test_token_ids_are_the_references(folder: Path, texts: list[tuple[str, str]]) -> None:
    reference = np.load(GOLDEN / "reference.npz")["ids"]
    ours = tokenizer.load(folder, MAX_TOKENS).ids(texts)
    assert ours == [[i for i in row if i >= 0] for row in reference.tolist()]


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", False), ("mean", True)])
def test_vectors_are_the_references(
    folder: Path, texts: list[tuple[str, str]], pooling: str, normalize: bool
) -> None:
    model = ModelConfig(pooling=pooling, normalize=normalize, max_passage_tokens=MAX_TOKENS)
    embedder = load_embedder(str(folder), "passage", model=model, dtype="float32")
    reference = np.load(GOLDEN / "reference.npz")[pooling]
    ours = embedder.encode(texts)
    np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_bfloat16_keeps_the_direction(folder: Path, texts: list[tuple[str, str]]) -> None:
    model = ModelConfig(pooling="mean", normalize=True, max_passage_tokens=MAX_TOKENS)
    embedder = load_embedder(str(folder), "passage", model=model, dtype="bfloat16")
    reference = np.load(GOLDEN / "reference.npz")["mean"]
    cosine = np.sum(embedder.encode(texts) * reference, axis=1)
    assert cosine.min() > 1 - 2e-3  # bfloat16 keeps 8 bits: 2**-9 a rounding


def test_gradients_of_a_product_with_weights() -> None:
    """Those of the formula, also where one is computed in other steps than XLA would take."""
    rng = np.random.default_rng(0)
    x, kernel, dy = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4, 5), (5, 6), (3, 4, 6))
    )
    dimensions = (((2,), (0,)), ((), ()))
    y, backward = jax.vjp(lambda *both: on_cpu(*both, dimensions), x, kernel)
    dx, dkernel = backward(dy)
    for found, wanted in (
        (y, np.einsum("bld,df->blf", x, kernel)),
        (dx, np.einsum("blf,df->bld", dy, kernel)),
        (dkernel, np.einsum("bld,blf->df", x, dy)),
    ):
        # sums of at most twelve products of float32
        np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())
