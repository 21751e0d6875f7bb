"""Attention against plain formulas, forward and backward, row by row and all rows at once; and the
last layer that computes [CLS] alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from step_reference import assert_close

from dpr_jax.model import attention as attention_module
from dpr_jax.model import bert
from dpr_jax.model.attention import attention
from dpr_jax.model.dropout import random_bits
from dpr_jax.model.dual_encoder import Encoder, Tokens

ROWS, LENGTH, SEEN, HEADS, WIDTH = 3, 4, 6, 2, 5
RATE = 0.3


@pytest.fixture(params=["one after another", "at once"])
def mapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the rows are mapped."""
    cached = 0 if request.param == "one after another" else 1e9
    monkeypatch.setattr(attention_module, "CACHED_BYTES", cached)


def inputs(seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    lengths = LENGTH, SEEN, SEEN
    return [jnp.asarray(rng.normal(size=(ROWS, n, HEADS, WIDTH))) for n in lengths]


def masks() -> np.ndarray:
    mask_BLM = np.random.default_rng(1).random((ROWS, LENGTH, SEEN)) < 0.6
    mask_BLM[..., 0] = True
    return mask_BLM


def plain(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_BLM: np.ndarray, kept: jax.Array
) -> jax.Array:
    """The formula of the paper, with weights that are kept."""
    scores = jnp.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(WIDTH)
    scores = jnp.where(mask_BLM[:, None], scores, -jnp.inf)
    return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores) * kept, v)


def assert_same(found: object, wanted: object) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # sums of a few dozen products of float32: 2e-6 of the largest
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.usefixtures("mapping")
def test_result_and_gradients_are_those_of_the_formula(dropout: bool) -> None:
    key = jax.random.key(3) if dropout else None
    kept = jnp.ones(())
    if dropout:
        bits = random_bits(key, (ROWS, HEADS, LENGTH, SEEN))
        kept = (bits >= np.uint32(RATE * 2**32)) / (1 - RATE)
        assert 0 < (kept == 0).mean() < 1
    ours = functools.partial(attention, mask_BLM=masks(), dropout_rate=RATE, dropout_key=key)
    theirs = functools.partial(plain, mask_BLM=masks(), kept=kept)
    dy = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, LENGTH, HEADS, WIDTH)))
    results = []
    for function in (ours, theirs):
        y, backward = jax.vjp(function, *inputs())
        results.append((y, backward(dy)))
    assert_same(*results)


@pytest.mark.usefixtures("mapping")
def test_one_mask_for_all_tokens_of_a_row() -> None:
    mask_B1M = masks()[:, :1]
    wide = np.broadcast_to(mask_B1M, masks().shape)
    narrow, full = (
        jax.vjp(lambda *qkv, mask=mask: attention(*qkv, mask), *inputs())
        for mask in (mask_B1M, wide)
    )
    dy = jnp.cos(narrow[0])
    assert_same((narrow[0], narrow[1](dy)), (full[0], full[1](dy)))


@pytest.mark.usefixtures("mapping")
def test_a_token_that_sees_none_has_the_mean_and_no_gradient_of_scores() -> None:
    nothing = np.zeros_like(masks())
    y, backward = jax.vjp(lambda *qkv: attention(*qkv, nothing), *inputs())
    mean = inputs()[2].mean(axis=1, keepdims=True)
    assert_same(y, np.broadcast_to(mean, y.shape))
    dq, dk, dv = backward(jnp.cos(y))
    assert not dq.any() and not dk.any()
    assert np.isfinite(dv).all()


def test_without_a_key_there_is_no_dropout() -> None:
    y = attention(*inputs(), masks(), dropout_rate=0.5)
    assert_same(y, attention(*inputs(), masks()))


def test_bfloat16_products_keep_a_float32_softmax() -> None:
    # scores so large that a softmax in bfloat16 would be off by more
    rough = [x.astype(jnp.bfloat16) * scale for x, scale in zip(inputs(), (4, 1, 1))]
    found = attention(*rough, masks())
    assert found.dtype == jnp.bfloat16
    exact = attention(*[x.astype(jnp.float32) for x in rough], masks())
    # two roundings: of the attention weights, and of the result
    found = np.asarray(found, np.float32)
    np.testing.assert_allclose(found, exact, atol=2**-8 * np.abs(exact).max())
    gradient = jax.grad(lambda q: attention(q, *rough[1:], masks()).sum())(rough[0])
    assert gradient.dtype == jnp.bfloat16


def test_on_a_cpu_rows_that_outgrow_the_caches_follow_one_another() -> None:
    def loops(rows: int, dropout: bool) -> list[int]:
        x = jnp.zeros((rows, 160, 12, 32))
        key = jax.random.key(0) if dropout else None

        def loss(x: jax.Array) -> jax.Array:
            mask = jnp.ones((rows, 1, 160), bool)
            return attention(x, x, x, mask, dropout_rate=0.1, dropout_key=key).sum()

        both = [str(jax.make_jaxpr(one)(x)) for one in (loss, jax.grad(loss))]
        return [text.count("= scan[") for text in both]

    assert loops(rows=5, dropout=False) == [0, 0]
    assert loops(rows=13, dropout=False) == [0, 1]
    assert loops(rows=13, dropout=True) == [1, 2]


def test_no_weights_are_kept_for_the_backward_pass() -> None:
    """What is kept grows with the length, not with its square."""

    def kept(length: int) -> int:
        x = jnp.zeros((1, length, HEADS, WIDTH))
        mask = jnp.ones((1, 1, length), bool)
        _, backward = jax.vjp(lambda *qkv: attention(*qkv, mask), x, x, x)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(512) - kept(256) == 2 * (kept(256) - kept(128))


# --- the last layer ----------------------------------------------------------


def test_the_cls_tower_is_the_whole_tower_cut() -> None:
    """Vectors and gradients of every weight, to the rounding of float32."""
    rng = np.random.default_rng(0)
    tokens = Tokens(rng.integers(1000, 9000, (3, 12)).astype(np.int32), np.array([12, 7, 2]))
    params = {"params": tiny.params()}
    dy = jnp.asarray(rng.normal(size=(3, tiny.SHAPE.hidden_size)), jnp.float32)

    def cut(params: dict) -> jax.Array:
        return Encoder(tiny.SHAPE, pooling="cls").apply(params, tokens, train=False)

    def whole(params: dict) -> jax.Array:
        mask_B1L = (np.arange(12) < tokens.lengths_B[:, None])[:, None]
        tower = {"params": params["params"]["bert"]}
        run = bert.Bert(tiny.SHAPE).apply
        return run(tower, tokens.ids_BL, mask_B1L, np.arange(12)[None], train=False)[:, 0]

    results = []
    for function in (cut, whole):
        y, backward = jax.vjp(function, params)
        results.append((y, backward(dy)))
    (y, gradient), (wanted_y, wanted) = results
    assert_same(y, wanted_y)
    assert_close(gradient, wanted)


def test_cls_costs_less_than_mean() -> None:
    """Of the last layer, keys and values alone are computed for all tokens."""
    tokens = Tokens(np.ones((8, 64), np.int32), np.full(8, 64, np.int32))

    def flops(pooling: str) -> float:
        encoder = Encoder(tiny.SHAPE, pooling=pooling)
        run = jax.jit(lambda params: encoder.apply(params, tokens, train=False))
        return run.lower({"params": tiny.params()}).compile().cost_analysis()["flops"]

    assert flops("cls") < 0.75 * flops("mean")
