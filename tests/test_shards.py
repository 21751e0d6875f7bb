"""train.shard_optimizer against whole states: gradients, fifty updates, and other device counts."""

import functools

import jax
import numpy as np
import pytest
from step_reference import SHAPE, make_batch, make_params, make_settings

from dpr_jax import parallel
from dpr_jax.model import dual_encoder
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.training import optimizer, shards
from dpr_jax.training.step import (
    LOG_TEMPERATURE,
    StepSettings,
    TrainState,
    batch_loss,
    global_gradient,
    train_step,
)

STEPS = 50


def settings_of(split: bool, **changed: object) -> StepSettings:
    """Clipping, weight decay and a frozen level, so that every part of the optimizer has work."""
    adamw = optimizer.make(
        lambda step: 1e-3,
        weight_decay=0.1,
        # the gradient of a shift of all passages is rounding, which AdamW would make as large as
        # any other
        eps=1e-5,
        clip_norm=0.5,
        layers=SHAPE.num_hidden_layers,
        frozen=1,
        axis=parallel.AXIS if split else None,
    )
    params = {**make_params(), LOG_TEMPERATURE: np.float32(0)}
    settings = make_settings(optimizer=adamw, whole=params if split else None, **changed)
    return settings


def first_state(settings: StepSettings) -> TrainState:
    params = {**make_params(), LOG_TEMPERATURE: np.float32(0)}
    return TrainState(np.int32(0), params, jax.device_get(settings.optimizer.init(params)))


def updated(
    kind: str, devices: int, state: TrainState, steps: range, settings: StepSettings
) -> tuple[TrainState, list[float]]:
    """The whole state and the losses after some updates."""
    split = settings.whole is not None
    spmd = parallel.spmd(kind, jax.devices()[:devices])
    step = functools.partial(train_step, settings=settings, axis=parallel.AXIS)
    update = spmd.map(step, donate=True, scattered=split)
    on_devices = (spmd.scatter if split else spmd.replicate)(state)
    losses = []
    for number in steps:
        batch = spmd.shard(make_batch(np.random.default_rng(number)))
        on_devices, metrics = update(on_devices, batch)
        losses.append(float(spmd.fetch(metrics)["loss"]))
    return (spmd.collect(on_devices, state) if split else spmd.fetch(on_devices)), losses


@pytest.mark.parametrize(("kind", "devices"), [("pmap", 8), ("shard_map", 4)])
def test_parts_of_the_gradient_are_those_of_the_whole(kind: str, devices: int) -> None:
    settings, params = settings_of(True), first_state(settings_of(True)).params
    spmd = parallel.spmd(kind, jax.devices()[:devices])
    batch = spmd.shard(make_batch(np.random.default_rng(0)))

    def part(parts: dict, batch: object) -> tuple[dict, jax.Array]:
        whole = shards.gather(parts, params, parallel.AXIS, settings.encoder.dtype)
        grads, _ = jax.grad(batch_loss, has_aux=True)(whole, batch, settings, None, parallel.AXIS)
        grads = shards.mean(grads, parallel.AXIS)
        return grads, shards.norm(grads, parallel.AXIS)

    found, norm = spmd.map(part, scattered=True)(spmd.scatter(params), batch)
    found = spmd.collect(found, params)
    whole = functools.partial(
        global_gradient, settings=settings, dropout_key=None, axis=parallel.AXIS
    )
    wanted, _ = spmd.fetch(spmd.map(whole)(spmd.replicate(params), batch))
    wanted_norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(wanted)))
    np.testing.assert_allclose(spmd.fetch(norm), wanted_norm, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * wanted_norm)


def test_fifty_updates_move_between_device_counts() -> None:
    """Loss and vectors to 1e-5; a state goes on on other devices, in the other mapping."""
    encoder = Encoder(SHAPE)
    whole = settings_of(False, encoder=encoder)
    wanted, wanted_losses = updated("pmap", 8, first_state(whole), range(STEPS), whole)
    split = settings_of(True, encoder=encoder)
    state, losses = updated("pmap", 8, first_state(split), range(20), split)
    shapes = jax.tree.map(np.shape, state)
    assert shapes == jax.tree.map(np.shape, first_state(whole))
    state, more = updated("shard_map", 2, state, range(20, 35), split)
    losses += more
    state, more = updated("pmap", 1, state, range(35, STEPS), whole)
    np.testing.assert_allclose(losses + more, wanted_losses, rtol=1e-5)
    batch = make_batch(np.random.default_rng(STEPS))
    for side, texts in (("question", batch.question), ("passage", batch.passages)):
        found, expected = (
            dual_encoder.encode(encoder, one.params, side, texts) for one in (state, wanted)
        )
        if side == "passage":  # less what all have in common, which no softmax sees
            found, expected = (one - one.mean(axis=0) for one in (found, expected))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_each_device_keeps_its_part_alone() -> None:
    spmd = parallel.spmd("pmap", jax.devices()[:8])
    tree = {"table": np.arange(50 * 16, dtype=np.float32).reshape(50, 16), "one": np.float32(3)}
    placed = spmd.scatter(tree)
    assert placed["table"].shape == (8, 7, 16)  # 50 rows, filled up to 56
    jax.tree.map(np.testing.assert_array_equal, spmd.collect(placed, tree), tree)
