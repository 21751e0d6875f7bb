"""Attention with a learned bias by the distance of two tokens, as in MPNet (Song et al., 2020,
arXiv 2004.09297) and T5 (Raffel et al., 2020, arXiv 1910.10683).

Shape letters as in attention.py. The attention weights are kept for the backward pass.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model import dropout
from dpr_jax.model.attention import UNSEEN

BUCKETS = 32
FARTHEST = 128  # tokens; all beyond share a bucket


def bucket(distance: jax.Array) -> jax.Array:
    """Returns the bucket of each distance, int32 below BUCKETS: one per token nearby, then wider.

    Args:
      distance: int32, position of the token that is seen minus that of the one that sees.
    """
    half = BUCKETS // 2
    exact = half // 2
    far = jnp.abs(distance)
    # float32, in this order of operations: another one moves a distance to the next bucket
    ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact)
    wide = exact + (ratio / math.log(FARTHEST / exact) * (half - exact)).astype(jnp.int32)
    return half * (distance > 0) + jnp.where(far < exact, far, jnp.minimum(wide, half - 1))


def bias(table_NH: jax.Array, query_BL: jax.Array, key_BM: jax.Array) -> jax.Array:
    """Returns what is added to the scores: [B, H, L, M].

    Args:
      table_NH: the learned value of each bucket in each head.
      query_BL: int32 positions of the tokens that see.
      key_BM: int32 positions of the tokens that are seen.
    """
    buckets_BLM = bucket(key_BM[:, None, :] - query_BL[:, :, None])
    # a product, not a gather: its gradient is the same sum in every run on every device
    chosen_BLMN = jax.nn.one_hot(buckets_BLM, BUCKETS, dtype=table_NH.dtype)
    return jnp.einsum("blmn,nh->bhlm", chosen_BLMN, table_NH, precision="highest")


def biased_attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BLM: jax.Array,
    bias_BHLM: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) v, in each head; the arguments are those of `attention`."""

    def product(form: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)

    scores_BHLM = product("blhk,bmhk->bhlm", q_BLHK, k_BMHK) * q_BLHK.shape[-1] ** -0.5
    scores_BHLM = jnp.where(mask_BLM[:, None], scores_BHLM + bias_BHLM, UNSEEN)
    weights_BHLM = jax.nn.softmax(scores_BHLM, axis=-1)
    if dropout_key is not None and dropout_rate:
        kept = dropout.keep(dropout_key, weights_BHLM.shape, rate=dropout_rate)
        left = 1 - dropout.rounded(dropout_key, dropout_rate)
        weights_BHLM = jnp.where(kept, weights_BHLM / np.float32(left), 0)
    y_BLHK = product("bhlm,bmhk->blhk", weights_BHLM.astype(v_BMHK.dtype), v_BMHK)
    return y_BLHK.astype(v_BMHK.dtype)
