"""Low-rank adapters (LoRA; Hu et al., 2021, arXiv 2106.09685) beside the products of a tower.

With an adapter, x W becomes x W + (x A) B for each weight matrix of attention and feed-forward
layers. A is random, B starts as zeros, so a new adapter changes no vector. In training W stays as
it is; for use outside of training, A B is added to it.

Shape letters: D inputs, F outputs of a product, R rank.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dpr_jax.model import kernels

LORA = "lora"  # beside the towers in the params
Params = dict[str, Any]
Path = tuple[str, ...]


def with_adapters(params: Params, *, rank: int, seed: int, first_layer: int = 0) -> Params:
    """Adds adapters that change nothing yet.

    Traces: `jax.eval_shape` gives the shapes alone.

    Args:
      params: float32 weights of the towers, by name.
      rank: R of every adapter.
      seed: of the A; adapter n, counted over all towers, draws from fold_in(seed, n).
      first_layer: lowest layer that gets adapters.

    Returns:
      `params` and, under LORA, a tree of the same towers with {"a": float32 [D, R], "b": float32
      [R, F]} in place of each matrix W [D, F].
    """
    root = jax.random.key(seed, impl="threefry2x32")
    adapters: dict[Path, jax.Array] = {}
    for number, (path, kernel) in enumerate(_products(params, first_layer)):
        inputs, outputs = kernel.shape
        a_DR = jax.random.normal(jax.random.fold_in(root, number), (inputs, rank), jnp.float32)
        adapters[*path, "a"] = a_DR / np.float32(np.sqrt(inputs))
        adapters[*path, "b"] = jnp.zeros((rank, outputs), jnp.float32)
    return {**params, LORA: unflatten_dict(adapters)}


def trained(params: Params) -> Params:
    """Returns the params that get gradients and moments: where there are adapters, all but the
    towers.
    """
    if LORA not in params:
        return params
    return {name: part for name, part in params.items() if name not in params[LORA]}


def merged(tower: Params, adapters: Params) -> Params:
    """Returns a tower without adapters that gives the same vectors: each W is W + A B.

    Args:
      tower: float32 host arrays of one tower.
      adapters: those of the same tower, host arrays.
    """
    flat = flatten_dict(tower)
    parts = {path: np.asarray(leaf) for path, leaf in flatten_dict(adapters).items()}
    for path in _named(adapters, "a"):
        low_rank_DF = parts[path] @ parts[*path[:-1], "b"]
        flat[*path[:-1], "kernel"] = np.asarray(flat[*path[:-1], "kernel"]) + low_rank_DF
    return unflatten_dict(flat)


def beside(
    adapters: Params | None, platform: str
) -> contextlib.AbstractContextManager[None, bool | None]:
    """Adds (x A) B to the products of the tower that is applied in this context.

    Args:
      adapters: of that tower; None adds nothing.
      platform: that of the devices which it is mapped over.
    """
    if adapters is None:
        return contextlib.nullcontext()
    flat = flatten_dict(adapters)
    product = kernels.dense_dot_general(platform)

    def times(x: jax.Array, matrix: jax.Array) -> jax.Array:
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        return product(x, matrix.astype(x.dtype), dimensions).astype(x.dtype)

    def call(
        run: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        y = run(*args, **kwargs)
        path = context.module.path
        if context.method_name != "__call__" or (*path, "a") not in flat:
            return y
        x_BLD = args[0].astype(context.module.dtype)
        added_BLF = times(times(x_BLD, flat[*path, "a"]), flat[*path, "b"])
        return y + added_BLF.reshape(y.shape).astype(y.dtype)  # y may be split into heads

    return nn.intercept_methods(call)


def _products(params: Params, first_layer: int) -> list[tuple[Path, Any]]:
    """Returns path and weight matrix of every product in the layers of the towers, in the order of
    their paths.
    """
    found = []
    for (*path, _), kernel in sorted(_named(params, "kernel").items()):
        layers = [re.fullmatch(r"layer_(\d+)", part) for part in path]
        numbers = [int(layer[1]) for layer in layers if layer]
        if numbers and numbers[0] >= first_layer:
            found.append((tuple(path), kernel))
    return found


def _named(params: Params, name: str) -> dict[Path, Any]:
    flat = flatten_dict(params)
    return {path: leaf for path, leaf in flat.items() if path[-1] == name}
