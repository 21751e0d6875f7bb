"""The learning rate by hand, and what is decayed, clipped and frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dpr_jax.model.dual_encoder import Encoder, Tokens
from dpr_jax.training import optimizer
from dpr_jax.training.step import LOG_TEMPERATURE


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


def test_parity_wastes_the_first_update_and_clips_an_eighth_of_the_gradient() -> None:
    def rate(step: int) -> jax.Array:
        return optimizer.learning_rate(
            step, peak=1.0, warmup_steps=2, total_steps=4, dpr_parity=True
        )

    np.testing.assert_allclose([rate(n) for n in range(5)], [0, 0.5, 1, 0.5, 0])
    alike = optimizer.make(lambda _: 1.0, weight_decay=0, eps=1.0, clip_norm=2.0, dpr_parity=True)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    for norm, kept in ((8.0, 1.0), (15.0, 15 / 8), (32.0, 2.0)):
        grads = {"a": jnp.zeros(2), "b": jnp.array([norm])}
        updates, _ = alike.update(grads, alike.init(params), params)
        np.testing.assert_allclose(updates["b"], [-kept / (kept + 1)], rtol=1e-5)


TOWER = {
    "question": {
        "bert": {
            "embeddings": {"word_embeddings": {"embedding": jnp.ones((2, 1))}},
            "layer_0": {"output": {"bias": jnp.ones(1)}},
            "layer_1": {"output": {"bias": jnp.ones(1)}},
        }
    },
    "scale": jnp.ones(1),
}


def updates_of(**changes: float) -> list[float]:
    """Size of the first update of embeddings, first layer, second layer, and of what stands beside
    the towers.
    """
    adamw = optimizer.make(
        lambda _: 1.0, weight_decay=0.1, eps=1e-8, clip_norm=None, layers=2, **changes
    )
    updates, _ = adamw.update(TOWER, adamw.init(TOWER), TOWER)
    return [float(abs(leaf).max()) for leaf in jax.tree.leaves(updates)]


def test_frozen_levels_stay_and_have_no_moments() -> None:
    np.testing.assert_allclose(updates_of(frozen=1), [0, 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(updates_of(frozen=2), [0, 0, 1, 1], rtol=1e-5)
    adamw = optimizer.make(
        lambda _: 1.0, weight_decay=0.1, eps=1e-8, clip_norm=None, layers=2, frozen=2
    )
    moments = [x for x in jax.tree.leaves(adamw.init(TOWER)) if x.ndim]
    assert len(moments) == 4  # two of each of the two that move


def test_frozen_levels_have_no_gradient() -> None:
    tokens = Tokens(np.array([[5, 6, 7]], np.int32), np.array([3], np.int32))

    def moving(frozen: int) -> set[str]:
        encoder = Encoder(tiny.SHAPE, frozen=frozen)
        grads = jax.grad(
            lambda params: encoder.apply({"params": params}, tokens, train=True)[0, 0]
        )(tiny.params())
        flat = jax.tree.leaves_with_path(grads["bert"])
        return {path[0].key for path, leaf in flat if np.any(leaf)}

    assert moving(0) == {"embeddings", "layer_0", "layer_1"}
    assert moving(1) == {"layer_0", "layer_1"}
    assert moving(2) == {"layer_1"}


def test_the_temperature_moves_a_hundred_times_as_fast() -> None:
    adamw = optimizer.make(
        lambda _: 0.1, weight_decay=0, eps=1e-8, clip_norm=None, learn_temperature=True
    )
    params = {"question": jnp.ones(1), LOG_TEMPERATURE: jnp.float32(0)}
    updates, _ = adamw.update(
        params | {LOG_TEMPERATURE: jnp.float32(-3)}, adamw.init(params), params
    )
    np.testing.assert_allclose(updates["question"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(updates[LOG_TEMPERATURE], 10.0, rtol=1e-5)


def test_first_update_is_adams_and_decays_matrices_alone() -> None:
    adamw = optimizer.make(lambda _: 0.1, weight_decay=0.5, eps=1e-8, clip_norm=None)
    params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full((1,), 2.0)}
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), params)
    updates, _ = adamw.update(grads, adamw.init(params), params)
    # Adam's first direction is the gradient's sign; the matrix shrinks by rate * decay * weight
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], [[-0.1 - 0.1 * 0.5 * 2]], rtol=1e-5)


def test_clipping_scales_the_whole_gradient() -> None:
    clipped = optimizer.make(lambda _: 1.0, weight_decay=0, eps=1.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # norm 5 -> 0.6, 0.8
    updates, _ = clipped.update(grads, clipped.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6 / 1.6], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.8 / 1.8], rtol=1e-5)
