"""Dropout: JAX's own random bits, the right share, an unchanged mean, and one mask for both
passes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.model.dropout import Dropout, random_bits


@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2), (1000, 33)])
@pytest.mark.parametrize("seed", [0, 5, 2**31])
def test_the_bits_are_those_of_jax(shape: tuple[int, ...], seed: int) -> None:
    key = jax.random.fold_in(jax.random.key(seed), 3)
    with jax.threefry_partitionable(True):  # JAX's default
        expected = jax.random.bits(key, shape)
    np.testing.assert_array_equal(jax.jit(random_bits, static_argnums=1)(key, shape), expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_grows(rate: float) -> None:
    count = 400_000
    y = _dropped(jnp.ones(count), rate)
    kept = np.asarray(y[y != 0])
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
    # five standard deviations of a binomial share
    assert abs(len(kept) / count - (1 - rate)) < 5 * (rate * (1 - rate) / count) ** 0.5


def test_the_backward_pass_has_the_mask_of_the_forward_pass() -> None:
    x = jnp.linspace(1, 2, 1000).reshape(10, 100)
    gradient = jax.grad(lambda x: jnp.sum(_dropped(x, 0.3)))(x)
    np.testing.assert_allclose(gradient * x, _dropped(x, 0.3), rtol=1e-6)


def test_without_training_or_rate_nothing_changes() -> None:
    x = jnp.arange(4.0)
    assert Dropout(0.5).apply({}, x, train=False) is x
    assert Dropout(0.0).apply({}, x, train=True) is x


def _dropped(x: jax.Array, rate: float) -> jax.Array:
    return Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)})
