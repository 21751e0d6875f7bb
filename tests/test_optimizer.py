"""The schedule by hand, and what is decayed and clipped."""

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.training import optimizer


def test_rate_rises_and_falls_in_lines() -> None:
    rates = [
        float(optimizer.learning_rate(n, peak=1.0, warmup_steps=4, total_steps=10))
        for n in range(11)
    ]
    up, down = [0.25, 0.5, 0.75, 1.0], [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0]
    np.testing.assert_allclose(rates, up + down, rtol=1e-6)


def test_rate_without_warm_up_starts_at_the_peak() -> None:
    rate = optimizer.learning_rate(0, peak=0.5, warmup_steps=0, total_steps=2)
    assert float(rate) == 0.5


def test_first_update_is_adams_and_decays_matrices_alone() -> None:
    adamw = optimizer.make(
        peak=0.1, warmup_steps=1, total_steps=1, weight_decay=0.5, eps=1e-8, clip_norm=0
    )
    params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full((1,), 2.0)}
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), params)
    updates, _ = adamw.update(grads, adamw.init(params), params)
    # Adam's first direction is the gradient's sign; the matrix shrinks by rate * decay * weight
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], [[-0.1 - 0.1 * 0.5 * 2]], rtol=1e-5)


def test_clipping_scales_the_whole_gradient() -> None:
    clipped = optimizer.make(
        peak=1.0, warmup_steps=0, total_steps=9, weight_decay=0, eps=1.0, clip_norm=1.0
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # norm 5 -> 0.6, 0.8
    updates, _ = clipped.update(grads, clipped.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6 / 1.6], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.8 / 1.8], rtol=1e-5)
