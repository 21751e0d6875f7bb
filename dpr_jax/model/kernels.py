"""Chooses by platform how attention, dropout and matrix products are computed.

On a CPU: the forms measured fastest there (docs/log.md). On TPUs and GPUs: what XLA's cost model
favours for them (docs/log.md), and random bits of the device's own generator. The platform is that
of the devices a program is mapped over, so that one can be compiled for devices that are not here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpr_jax.model import attention as cpu
from dpr_jax.model import attention_device as device
from dpr_jax.model import product


def generator(platform: str) -> str:
    """Returns the implementation of `jax.random.key` that dropout draws with.

    "threefry2x32" fuses with what is dropped on a CPU (model/dropout.py); written out on a TPU, it
    costs a quarter of an update by XLA's cost model. "rbg" is the device's own: the same bits for
    the same key on the same kind of device.
    """
    return "threefry2x32" if platform == "cpu" else "rbg"


def dense_dot_general(platform: str) -> Callable[..., jax.Array]:
    """Returns the `dot_general` of a flax.linen.Dense."""
    return product.on_cpu if platform == "cpu" else product.on_device


def attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BLM: jax.Array,
    *,
    platform: str,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, in each head.

    Args:
      q_BLHK: queries; their dtype is that of the matrix products, the softmax is float32.
      k_BMHK: keys, of the same dtype.
      v_BMHK: values, of the same dtype.
      mask_BLM: bool, which tokens (last axis) each token sees; [B, 1, M] where all of a row see the
        same, which are then its first ones.
      platform: of the devices that compute it.
      dropout_rate: of the attention weights, in [0, 1).
      dropout_key: dropout on; None runs without.

    Returns:
      [B, L, H, K] of the values' dtype; meaningless for a token that sees none.
    """
    rate = 0.0 if dropout_key is None else dropout_rate
    if platform == "cpu":
        run = functools.partial(cpu.attention, dropout_rate=rate, dropout_key=dropout_key)
    elif platform == "gpu" and rate == 0 and _fits_cudnn(q_BLHK, k_BMHK, mask_BLM):
        run = _cudnn
    else:
        run = functools.partial(device.attention, dropout_rate=rate, dropout_key=dropout_key)
    return run(q_BLHK, k_BMHK, v_BMHK, mask_BLM)


def _fits_cudnn(q_BLHK: jax.Array, k_BMHK: jax.Array, mask_BLM: jax.Array) -> bool:
    """Returns whether cuDNN's fused attention, which writes no attention weights, computes this."""
    half = q_BLHK.dtype in (jnp.bfloat16, jnp.float16)
    whole_rows = q_BLHK.shape[1] == k_BMHK.shape[1]
    return half and whole_rows and mask_BLM.shape[1] == 1 and q_BLHK.shape[3] % 8 == 0


def _cudnn(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, mask_B1M: jax.Array
) -> jax.Array:
    # by lengths: a mask of [B, 1, 1, M] is refused
    lengths_B = jnp.maximum(jnp.sum(mask_B1M[:, 0], axis=-1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BMHK,
        v_BMHK,
        query_seq_lengths=jnp.full_like(lengths_B, q_BLHK.shape[1]),
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )
