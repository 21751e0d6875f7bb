"""Arrays of which each device keeps a part, along the first axis."""

from collections.abc import Sequence

import jax
import numpy as np


def own_rows(
    leaf: np.ndarray, devices: Sequence[jax.Device], local: Sequence[jax.Device]
) -> np.ndarray:
    """Returns the rows of a whole array that this process's devices keep.

    Args:
      leaf: the whole array; the rows that it lacks to fill every part are zeros.
      devices: all of the run.
      local: those of this process, which follow each other in `devices`.
    """
    share = rounded_up(leaf.shape[0], len(devices)) // len(devices)
    first = devices.index(local[0]) * share
    own = leaf[first : first + share * len(local)]
    missing = share * len(local) - len(own)
    return np.pad(own, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))


def in_order(leaf: jax.Array) -> list[jax.Array]:
    """Returns what this process's devices have of an array, in the order of its rows."""
    found = sorted(leaf.addressable_shards, key=lambda one: one.index[0].start or 0)
    return [one.data for one in found]


def rounded_up(value: int, step: int) -> int:
    """Returns the least multiple of `step` that is not below `value`."""
    return -(-value // step) * step
