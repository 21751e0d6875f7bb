"""Dropout (Srivastava et al., 2014) that costs a few percent of a training step.

The generator is that of the key. With "rbg" it is the device's own, which gives a TPU or GPU as few
bits per decision as the rate needs. With "threefry2x32", for CPUs, no mask is kept in memory: the
random bits are those of `jax.random.bits` (Threefry-2x32 with 20 rounds, Salmon et al., 2011,
over the number of each element), to the bit. JAX's own comes as a loop over rounds on a CPU, each
of which writes all bits to memory. Written out, the rounds fuse with what is done to the
activations, in the forward pass and again in the backward pass.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PARITY = np.uint32(0x1BD11BDA)
ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)  # of four rounds, in turns
GROUPS = 5  # of four rounds


class Dropout(nn.Module):
    """Sets a share of the values to 0 and divides the others by what is left.

    Attributes:
      rate: the share, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns x unchanged unless `train`; then it needs the rng "dropout"."""
        key = self.key(train=train)
        if key is None:
            return x
        kept = keep(key, x.shape, rate=self.rate)
        return jnp.where(kept, x / (1 - rounded(key, self.rate)), 0)

    def key(self, *, train: bool, rate: float | None = None) -> jax.Array | None:
        """A new key to draw with, for this `rate` or another; None where nothing is set to 0."""
        rate = self.rate if rate is None else rate
        return self.make_rng("dropout") if train and rate else None


def keep(
    key: jax.Array, shape: tuple[int, ...], *, rate: float, start: jax.Array | int = 0
) -> jax.Array:
    """bool [shape], False with probability `rounded(key, rate)`; the other arguments are those of
    `random_bits`, and a device's own generator knows no `start`.
    """
    if not _is_device_generator(key):
        return random_bits(key, shape, start) >= np.uint32(round(rate * 2**32))
    width = _bits_per_decision(rate)
    dtype = np.dtype(f"uint{width}")
    return jax.random.bits(key, shape, dtype) >= dtype.type(round(rate * 2**width))


def rounded(key: jax.Array, rate: float) -> float:
    """Returns the rate that `keep` has for this key, by which what is left has to grow."""
    if not _is_device_generator(key):
        return rate
    width = _bits_per_decision(rate)
    return round(rate * 2**width) / 2**width


def _is_device_generator(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "rbg"


def _bits_per_decision(rate: float) -> int:
    """8, where they hit the rate within 2 %: 0.1 becomes 26 / 256; else 16, else 32."""
    near = (w for w in (8, 16) if 0 < abs(round(rate * 2**w) / 2**w / rate - 1) <= 0.02)
    return next(near, 32)


def random_bits(key: jax.Array, shape: tuple[int, ...], start: jax.Array | int = 0) -> jax.Array:
    """uint32 [shape], what jax.random.bits gives for the same key.

    Args:
      key: a scalar of jax.random.key, of the implementation "threefry2x32".
      shape: of these bits.
      start: uint32, how many of a larger array come before them; that array has fewer than 2**32
        elements.
    """
    assert math.prod(shape) < 2**32, shape
    first, second = jax.random.key_data(key)
    keys = first, second, first ^ second ^ PARITY
    count = lax.iota(np.uint32, math.prod(shape)).reshape(shape) + jnp.uint32(start)
    high, low = jnp.zeros_like(count) + keys[0], count + keys[1]
    for group in range(GROUPS):
        for rotation in ROTATIONS[group % 2]:
            high = high + low
            low = (low << np.uint32(rotation)) | (low >> np.uint32(32 - rotation))
            low = high ^ low
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high ^ low
