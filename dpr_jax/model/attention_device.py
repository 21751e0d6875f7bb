"""Attention over the tokens of each row for TPUs and GPUs, which compute all rows at once.

XLA fuses the softmax with the products around it. The exponentials of the scores are written once,
in the dtype of the products, and read in the backward pass: cheaper on a TPU, by XLA's cost model,
than to compute them again. What divides them is applied to the result, which has fewer numbers.

Shape letters: B rows, L tokens (M where they are seen), H heads, K width of a head.
"""

import functools

import jax
import jax.numpy as jnp

from dpr_jax.model import dropout
from dpr_jax.model.attention import UNSEEN, Inputs
from dpr_jax.model.product import product_precision

# tokens per row; with a single one, as in the last layer of a [CLS] tower, XLA takes no matrix
# product for it, and copies keys and values in float32
FEWEST = 8


def attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BLM: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, in each head; arguments as those of `kernels.attention`."""
    wanted = q_BLHK.shape[1]
    if wanted < FEWEST and mask_BLM.shape[1] == 1:
        q_BLHK = jnp.pad(q_BLHK, ((0, 0), (0, FEWEST - wanted), (0, 0), (0, 0)))
    rate, keep_BHLM = 0.0, None
    if dropout_key is not None and dropout_rate:
        rate = dropout.rounded(dropout_key, dropout_rate)
        rows, length, heads, _ = q_BLHK.shape
        # XLA lays the weights out with L last on a TPU; bits drawn so need not be moved
        drawn = rows, heads, k_BMHK.shape[1], length
        keep_BHLM = dropout.keep(dropout_key, drawn, rate=dropout_rate).swapaxes(2, 3)
    return _attention(rate, keep_BHLM, mask_BLM, (q_BLHK, k_BMHK, v_BMHK))[:, :wanted]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    rate: float, keep_BHLM: jax.Array | None, mask_BLM: jax.Array, inputs: Inputs
) -> jax.Array:
    return _forward(rate, keep_BHLM, mask_BLM, inputs)[0]


def _forward(
    rate: float, keep_BHLM: jax.Array | None, mask_BLM: jax.Array, inputs: Inputs
) -> tuple[jax.Array, tuple]:
    """The result, and what the backward pass needs."""
    q_BLHK, k_BMHK, v_BMHK = inputs
    scores_BHLM = _product("blhk,bmhk->bhlm", q_BLHK, k_BMHK) * _scale(q_BLHK)
    # added, not selected: fewer operations per score
    scores_BHLM += jnp.where(mask_BLM, 0, UNSEEN)[:, None]
    exp_BHLM = jnp.exp(scores_BHLM - scores_BHLM.max(axis=-1, keepdims=True))
    inverse_BHL = 1 / exp_BHLM.sum(axis=-1)
    # else XLA writes float32 scores, and computes the exponentials twice
    exp_BHLM = jax.lax.optimization_barrier(exp_BHLM.astype(v_BMHK.dtype))
    y_BLHK = _product("bhlm,bmhk->blhk", _dropped(exp_BHLM, keep_BHLM), v_BMHK)
    y_BLHK = y_BLHK * _per_token(inverse_BHL / (1 - rate))
    y_BLHK = y_BLHK.astype(v_BMHK.dtype)
    return y_BLHK, (keep_BHLM, inputs, exp_BHLM, inverse_BHL, y_BLHK)


def _backward(rate: float, kept: tuple, dy_BLHK: jax.Array) -> tuple[None, None, Inputs]:
    """The gradients of queries, keys and values."""
    keep_BHLM, (q_BLHK, k_BMHK, v_BMHK), exp_BHLM, inverse_BHL, y_BLHK = kept
    dtype = q_BLHK.dtype
    # of the softmax: w (dw - sum of w dw), and that sum is y dy, also with dropout
    shift_BHL = _product("blhk,blhk->bhl", *(x.astype(jnp.float32) for x in (y_BLHK, dy_BLHK)))
    inverse = inverse_BHL / (1 - rate)
    dexp_BHLM = _dropped(
        _product("blhk,bmhk->bhlm", dy_BLHK, v_BMHK) * inverse[..., None], keep_BHLM
    )
    dscores_BHLM = exp_BHLM * (dexp_BHLM - (shift_BHL * inverse_BHL)[..., None]) * _scale(q_BLHK)
    dscores_BHLM = dscores_BHLM.astype(dtype)
    dsum_BLHK = (dy_BLHK * _per_token(inverse)).astype(dtype)
    gradients = (
        _product("bhlm,bmhk->blhk", dscores_BHLM, k_BMHK),
        _product("bhlm,blhk->bmhk", dscores_BHLM, q_BLHK),
        _product("bhlm,blhk->bmhk", _dropped(exp_BHLM, keep_BHLM), dsum_BLHK),
    )
    return None, None, tuple(g.astype(dtype) for g in gradients)


def _per_token(x_BHL: jax.Array) -> jax.Array:
    """[B, H, L] to [B, L, H, 1]."""
    return x_BHL.swapaxes(1, 2)[..., None]


_attention.defvjp(_forward, _backward)


def _dropped(x_BHLM: jax.Array, keep_BHLM: jax.Array | None) -> jax.Array:
    return x_BHLM if keep_BHLM is None else jnp.where(keep_BHLM, x_BHLM, 0)


def _scale(q_BLHK: jax.Array) -> float:
    return q_BLHK.shape[-1] ** -0.5


def _product(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A product of the inputs' own precision, in float32."""
    return jnp.einsum(
        formula,
        left,
        right,
        precision=product_precision(left.dtype),
        preferred_element_type=jnp.float32,
    )
