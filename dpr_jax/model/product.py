"""Products of hidden states and weight matrices: on a CPU in the forms that XLA computes fastest
there (docs/log.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def on_cpu(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """x @ kernel, for `dot_general` of a flax.linen.Dense.

    Args:
      x: [..., D].
      kernel: [D, F], of the same dtype.
      dimensions: which axes are summed over: the last and the first.
      precision: as in jax.lax.dot_general; a CPU has one.

    Returns:
      float32 [..., F]: XLA multiplies bfloat16 in the processor's own instructions only where the
      result is asked for in float32.
    """
    assert dimensions == (((x.ndim - 1,), (0,)), ((), ())), dimensions
    return _on_cpu(x, kernel)


def on_device(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """x @ kernel on a TPU or GPU, of the dtype of x; see `on_cpu`."""
    return lax.dot_general(x, kernel, dimensions, product_precision(x.dtype))


def product_precision(dtype: jnp.dtype) -> lax.Precision | None:
    """Returns the precision of products of this dtype: float32 is what it says.

    TPUs and GPUs multiply float32 in fewer bits unless told otherwise.
    """
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


@jax.custom_vjp
def _on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _on_cpu(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of both factors."""
    x, kernel = kept
    x_TD, dy_TF = (each.reshape(-1, each.shape[-1]) for each in (x, dy.astype(x.dtype)))
    # else whatever computes dy writes it transposed, slowly, for a product that then takes longer
    # too
    dy_TF = lax.optimization_barrier(dy_TF)
    product = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
    dx_TD = product(dy_TF, kernel, (((1,), (1,)), ((), ())))
    dkernel_DF = product(x_TD, dy_TF, (((0,), (0,)), ((), ())))
    return dx_TD.reshape(x.shape).astype(x.dtype), dkernel_DF.astype(kernel.dtype)


_on_cpu.defvjp(_forward, _backward)
