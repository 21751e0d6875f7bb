"""Each family of encoders against transformers, whose ids and vectors lie in golden/encoders."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.config import ModelConfig
from dpr_jax.model import description, hf, tokenizer
from dpr_jax.model.bert import Bert
from dpr_jax.model.dual_encoder import TEXTS_PER_ROW, Encoder, Rows, Tokens
from dpr_jax.model.embed import load_embedder
from dpr_jax.model.names import weights

GOLDEN = Path(__file__).parent / "golden/encoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
MAX_TOKENS = 24
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads((GOLDEN / "texts.json").read_text("utf-8"))


def reference(name: str) -> dict[str, np.ndarray]:
    return np.load(GOLDEN / name / "reference.npz")


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_are_the_references(name: str, texts: list[str], tmp_path: Path) -> None:
    wanted = [[id_ for id_ in row if id_ >= 0] for row in reference(name)["ids"].tolist()]
    assert tokenizer.load(GOLDEN / name, MAX_TOKENS).ids(texts) == wanted
    older = tmp_path / name  # and without the newer file
    ignored = shutil.ignore_patterns("tokenizer.json", "*.safetensors", "*.bin")
    shutil.copytree(GOLDEN / name, older, ignore=ignored)
    assert tokenizer.load(older, MAX_TOKENS).ids(texts) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_the_references(name: str, texts: list[str]) -> None:
    for pooling in ("cls", "mean"):
        if pooling in reference(name):
            model = ModelConfig(pooling=pooling, max_passage_tokens=MAX_TOKENS)
            embedder = load_embedder(str(GOLDEN / name), "passage", model=model, dtype="float32")
            wanted = reference(name)[pooling]
            found = embedder.encode(texts)
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def encoder_and_params(name: str, pooling: str = "mean", **options: object) -> tuple:
    shape = hf.read_shape(GOLDEN / name)
    return Encoder(shape, pooling=pooling, **options), hf.read_params(GOLDEN / name, shape)


def batch(name: str) -> Tokens:
    ids_BL = reference(name)["ids"][:8]
    return Tokens(np.maximum(ids_BL, 0), np.sum(ids_BL >= 0, axis=1).astype(np.int32))


def packed(tokens: Tokens) -> Rows:
    """All texts in one row, less the padding."""
    rows = [row[:length] for row, length in zip(*tokens, strict=True)]
    return Rows(
        np.concatenate(rows)[None],
        np.concatenate([np.full(len(row), i, np.int32) for i, row in enumerate(rows)])[None],
        np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows])[None],
    )


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_texts_see_themselves_alone(name: str, pooling: str) -> None:
    """And their gradients are those of padded texts."""
    encoder, params = encoder_and_params(name, pooling)
    tokens = batch(name)
    assert len(tokens.lengths_B) == TEXTS_PER_ROW

    def total(params: dict, tokens: Tokens | Rows) -> tuple[jax.Array, jax.Array]:
        emb_BD = encoder.apply({"params": params}, tokens, train=False)
        return jnp.sum(jnp.sin(emb_BD)), emb_BD

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, padded), gradient = run(params, tokens)
    (_, found), packed_gradient = run(params, packed(tokens))
    np.testing.assert_allclose(found, padded, atol=2e-5 * np.abs(padded).max())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest),
        gradient,
        packed_gradient,
    )


def test_poolings_are_their_formulas() -> None:
    """Padded and packed."""
    encoder, params = encoder_and_params("bert")
    tokens = batch("bert")
    states = [_states(encoder, params, ids[None, :n]) for ids, n in zip(*tokens, strict=True)]
    for pooling in POOLINGS:
        module = encoder.clone(pooling=pooling)
        found = module.apply({"params": params}, tokens, train=False)
        in_rows = module.apply({"params": params}, packed(tokens), train=False)
        np.testing.assert_allclose(in_rows, found, atol=1e-5 * np.abs(found).max())
        wanted = np.stack([_pooled(states_LD, pooling) for states_LD in states])
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(found).max())


def _states(encoder: Encoder, params: dict, ids_1L: np.ndarray) -> np.ndarray:
    """Returns the last layer's state of every token of one text."""
    length = ids_1L.shape[1]
    mask, positions = np.ones((1, 1, length), bool), np.arange(length)[None]
    bert = {"params": params["bert"]}
    return np.asarray(Bert(encoder.shape).apply(bert, ids_1L, mask, positions, train=False))[0]


def _pooled(states_LD: np.ndarray, pooling: str) -> np.ndarray:
    length = len(states_LD)
    weights_L1 = np.arange(1, length + 1)[:, None]
    return {
        "cls": states_LD[0],
        "lasttoken": states_LD[-1],
        "mean": states_LD.mean(axis=0),
        "max": states_LD.max(axis=0),
        "mean_sqrt_len_tokens": states_LD.sum(axis=0) / np.sqrt(length),
        "weightedmean": (states_LD * weights_L1).sum(axis=0) / weights_L1.sum(),
    }[pooling]


@pytest.mark.parametrize("name", FAMILIES)
def test_written_weights_are_those_read(name: str, tmp_path: Path) -> None:
    shape = hf.read_shape(GOLDEN / name)
    params = hf.read_params(
        GOLDEN / name, shape, description.read(GOLDEN / name, "passage", ModelConfig())
    )
    tower = {"bert": params["bert"]}
    hf.write_weights(tmp_path, shape, tower)
    again = hf.read_params(tmp_path, shape)
    jax.tree.map(np.testing.assert_array_equal, again, tower)
    assert len(jax.tree.leaves(tower)) == len(weights(shape))
