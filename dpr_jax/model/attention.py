"""Attention over the tokens of each row (Vaswani et al., 2017, arXiv 1706.03762) that keeps no
attention weights for the backward pass: the form for CPUs.

The backward pass computes them again from the queries, the keys, and each softmax's maximum and
sum, as FlashAttention does (Dao et al., 2022, arXiv 2205.14135). One row follows another where the
attention weights of all would not stay in the caches; otherwise all rows are computed at once.

Shape letters: B rows, L tokens (M where they are seen), H heads, K width of a head.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dpr_jax.model import dropout

UNSEEN = -1e30  # score of a token that is not seen
# what is computed at once of all rows' attention weights, measured (docs/log.md)
CACHED_BYTES = 26e6

Inputs = tuple[jax.Array, jax.Array, jax.Array]  # queries, keys, values


def attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BLM: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, in each head.

    Args:
      q_BLHK: queries; their dtype is that of the matrix products, the softmax is float32.
      k_BMHK: keys, of the same dtype.
      v_BMHK: values, of the same dtype.
      mask_BLM: bool, which tokens (last axis) each token sees; [B, 1, M] where all of a row see the
        same.
      dropout_rate: of the attention weights, in [0, 1).
      dropout_key: dropout on, with the bits that `dropout.random_bits` gives for [B, H, L, M],
        fewer than 2**32; None runs without.

    Returns:
      [B, L, H, K] of the values' dtype; the mean of all values for a token that sees none.
    """
    rows, length, heads, _ = q_BLHK.shape
    weights = rows * heads * length * k_BMHK.shape[1]
    assert dropout_key is None or weights < 2**32, weights
    rate = 0.0 if dropout_key is None else dropout_rate
    return _attention(rate, dropout_key, mask_BLM, (q_BLHK, k_BMHK, v_BMHK))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    rate: float, key: jax.Array | None, mask_BLM: jax.Array, inputs: Inputs
) -> jax.Array:
    return _forward(rate, key, mask_BLM, inputs)[0]


def _forward(
    rate: float, key: jax.Array | None, mask_BLM: jax.Array, inputs: Inputs
) -> tuple[jax.Array, tuple]:
    """The result, and what the backward pass needs."""

    def row(
        number: jax.Array, mask_LM: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_HLK, k_HMK, v_HMK = map(_heads_first, inputs)
        scores_HLM = _scores(q_HLK, k_HMK, mask_LM)
        top_HL1 = scores_HLM.max(axis=-1, keepdims=True)
        exp_HLM = jnp.exp(scores_HLM - top_HL1)
        sum_HL1 = exp_HLM.sum(axis=-1, keepdims=True)
        exp_HLM = jnp.where(_keep(rate, key, number, exp_HLM.shape), exp_HLM, 0)
        y_HLK = _product(exp_HLM.astype(v_HMK.dtype), v_HMK, (2, 1))
        y_HLK /= sum_HL1 * (1 - rate)
        return _heads_first(y_HLK.astype(v_HMK.dtype)), top_HL1, sum_HL1

    arrays = 1 if rate == 0 else 2  # the second is what dropout leaves
    y_BLHK, top_BHL1, sum_BHL1 = _each_row(arrays, row, mask_BLM, inputs)
    return y_BLHK, (key, mask_BLM, inputs, y_BLHK, top_BHL1, sum_BHL1)


def _backward(rate: float, kept: tuple, dy_BLHK: jax.Array) -> tuple[None, None, Inputs]:
    """The gradients of queries, keys and values."""
    # else XLA finds the same products in the forward pass, and keeps what they gave
    key, mask_BLM, inputs, *results = lax.optimization_barrier(kept)

    def row(number: jax.Array, mask_LM: jax.Array, inputs: Inputs, *results: jax.Array) -> Inputs:
        q_HLK, k_HMK, v_HMK = map(_heads_first, inputs)
        y_LHK, top_HL1, sum_HL1, dy_LHK = results
        y_HLK, dy_HLK = map(_heads_first, (y_LHK, dy_LHK))
        scores_HLM = _scores(q_HLK, k_HMK, mask_LM)
        weights_HLM = jnp.exp(scores_HLM - top_HL1) / sum_HL1
        keep_HLM = _keep(rate, key, number, weights_HLM.shape)
        dropped_HLM = jnp.where(keep_HLM, weights_HLM / (1 - rate), 0)

        # of the softmax: w (dw - sum of w dw), and that sum is y dy, also with dropout
        shift_HL1 = jnp.sum(y_HLK.astype(jnp.float32) * dy_HLK, axis=-1, keepdims=True)
        dscores_HLM = dropped_HLM * _product(dy_HLK, v_HMK, (2, 2))
        dscores_HLM = (dscores_HLM - weights_HLM * shift_HL1) * _scale(q_HLK)
        dscores_HLM = jnp.where(mask_LM, dscores_HLM, 0).astype(q_HLK.dtype)
        gradients = (
            _product(dscores_HLM, k_HMK, (2, 1)),
            _product(dscores_HLM, q_HLK, (1, 1)),
            _product(dropped_HLM.astype(dy_HLK.dtype), dy_HLK, (1, 1)),
        )
        return tuple(_heads_first(g.astype(q_HLK.dtype)) for g in gradients)

    return None, None, _each_row(4, row, mask_BLM, inputs, *results, dy_BLHK)


_attention.defvjp(_forward, _backward)


def _each_row(
    arrays: int, row: Callable, mask_BLM: jax.Array, inputs: Inputs, *more: jax.Array
) -> tuple[jax.Array, ...]:
    """`row` of every row's number and its part of what is given; it computes so many arrays of
    attention weights.
    """
    (rows, length, heads, _), seen = inputs[0].shape, inputs[1].shape[1]
    given = (jnp.arange(rows, dtype=np.uint32), mask_BLM, inputs, *more)
    size = arrays * rows * heads * length * seen * np.dtype(np.float32).itemsize
    if size > CACHED_BYTES:
        return lax.map(lambda one: row(*one), given)
    return jax.vmap(row)(*given)


def _heads_first(x_LHK: jax.Array) -> jax.Array:
    """[L, H, K] to [H, L, K], and back."""
    return x_LHK.transpose(1, 0, 2)


def _scores(q_HLK: jax.Array, k_HMK: jax.Array, mask_LM: jax.Array) -> jax.Array:
    scores_HLM = _product(q_HLK, k_HMK, (2, 2)) * _scale(q_HLK)
    return jnp.where(mask_LM, scores_HLM, UNSEEN)


def _scale(q_HLK: jax.Array) -> float:
    return q_HLK.shape[-1] ** -0.5


def _keep(
    rate: float, key: jax.Array | None, number: jax.Array, shape: tuple[int, ...]
) -> jax.Array | bool:
    """Returns the weights of a row that dropout keeps, bool."""
    if rate == 0:
        return True
    return dropout.keep(key, shape, rate=rate, start=number * math.prod(shape))


def _product(left: jax.Array, right: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Matrix products in every head, over one axis of each side, in float32."""
    axes = (contracted[:1], contracted[1:]), ((0,), (0,))
    return lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
