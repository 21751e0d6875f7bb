"""Weights and moments split over devices (ZeRO; Rajbhandari et al., 2020, arXiv 1910.02054).

Each device keeps a part of every array, along the first axis, and updates that alone: the weights
are gathered before the update, and their gradients are summed where they are kept. An axis that the
devices do not divide is filled up with zeros, which stay zeros.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dpr_jax.model.dual_encoder import Params


def gather(parts: Params, whole: Params, axis: str, dtype: jnp.dtype) -> Params:
    """Returns the whole weights, float32 [rows, ...].

    Args:
      parts: this device's, float32 [rows / devices, ...], rounded up; scalars are whole.
      whole: a tree of the same structure with the shapes of the whole arrays.
      axis: name of the mapped axis.
      dtype: compute precision. Matrices are rounded to it before they are sent: each product would
        round them anyway.
    """

    def one(path: tuple[Any, ...], part: jax.Array, like: Any) -> jax.Array:
        if not like.shape:
            return part
        sent = part.astype(dtype) if path[-1].key == "kernel" else part
        return lax.all_gather(sent, axis, tiled=True)[: like.shape[0]].astype(part.dtype)

    return jax.tree.map_with_path(one, parts, whole)


def mean(grads: Params, axis: str) -> Params:
    """Returns this device's part of the gradients' mean over devices.

    Args:
      grads: of the whole arrays, float32 [rows, ...].
      axis: name of the mapped axis.

    Returns:
      float32 [rows / devices, ...], rounded up; scalars are whole.
    """
    devices = lax.psum(1, axis)

    def one(grad: jax.Array) -> jax.Array:
        if not grad.ndim:
            return lax.pmean(grad, axis)
        missing = -grad.shape[0] % devices
        filled = jnp.pad(grad, [(0, missing)] + [(0, 0)] * (grad.ndim - 1))
        return lax.psum_scatter(filled, axis, tiled=True) / devices

    return jax.tree.map(one, grads)


def norm(parts: Params, axis: str) -> jax.Array:
    """Returns the global norm, a float32 scalar, of arrays of which each device has a part."""
    split = [part for part in jax.tree.leaves(parts) if part.ndim]
    whole = [part for part in jax.tree.leaves(parts) if not part.ndim]
    square = lax.psum(sum((jnp.sum(jnp.square(part)) for part in split), jnp.zeros(())), axis)
    return jnp.sqrt(square + sum(jnp.square(one) for one in whole))


def clip_by_global_norm(limit: float, axis: str) -> optax.GradientTransformation:
    """Returns `optax.clip_by_global_norm` for arrays of which each device has a part."""

    def clipped(updates: Params, _: Any) -> Params:
        length = norm(updates, axis)
        factor = jnp.where(length < limit, 1.0, limit / length)
        return jax.tree.map(lambda update: update * factor, updates)

    return optax.stateless(clipped)
