"""The forms for TPUs and GPUs, run on a CPU: attention and the step against the formulas, random
bits of the device's generator, and a run that goes on.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_attention as plain
from step_reference import (
    SHAPE,
    TOLERANCE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
    mapped_gradient,
    reference,
)

from dpr_jax import parallel
from dpr_jax.model import dropout, kernels
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.model.layer_norm import LayerNorm
from dpr_jax.training.step import TrainState, train_step

attention = functools.partial(kernels.attention, platform="tpu")
DEVICE_KEY = jax.random.key(3, impl="rbg")


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_is_that_of_the_formula(rate: float) -> None:
    """Values and gradients in float32, with the weights that the generator leaves."""
    kept, options = jnp.ones(()), {}
    if rate:
        options = {"dropout_rate": rate, "dropout_key": DEVICE_KEY}
        drawn = plain.ROWS, plain.HEADS, plain.SEEN, plain.LENGTH
        kept = dropout.keep(DEVICE_KEY, drawn, rate=rate).swapaxes(2, 3)
        assert 0 < (kept == 0).mean() < 1
        kept = kept / (1 - dropout.rounded(DEVICE_KEY, rate))
    mask = plain.masks()
    dy = jnp.cos(plain.inputs(4)[0])
    results = []
    for function in (
        functools.partial(attention, mask_BLM=mask, **options),
        functools.partial(plain.plain, mask_BLM=mask, kept=kept),
    ):
        y, backward = jax.vjp(function, *plain.inputs())
        results.append((y, backward(dy)))
    plain.assert_same(*results)


def test_bfloat16_attention_is_off_by_its_roundings() -> None:
    rough = [x.astype(jnp.bfloat16) for x in plain.inputs()]
    run = functools.partial(attention, mask_BLM=plain.masks())
    dy = jnp.cos(plain.inputs(4)[0]).astype(jnp.bfloat16)
    found, backward = jax.vjp(run, *rough)
    exact, exact_backward = jax.vjp(run, *[x.astype(jnp.float32) for x in rough])
    assert found.dtype == jnp.bfloat16
    # two roundings of 2**-8: of the weights or the gradient of scores, and of the result
    pairs = zip((found, *backward(dy)), (exact, *exact_backward(dy.astype(jnp.float32))))
    for one, other in pairs:
        bound = 2 * 2**-8 * np.abs(other).max()
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=bound)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_is_that_of_the_formula(dtype: jnp.dtype) -> None:
    """Also where the mean is ten times the deviation, as BERT's are."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(10, 1, (4, 5, 64)), dtype)
    params = {"params": {name: jnp.asarray(rng.normal(size=64)) for name in ("scale", "bias")}}
    dy = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    y, backward = jax.vjp(LayerNorm(1e-12, dtype).apply, params, x)
    flax = nn.LayerNorm(1e-12, dtype=jnp.float32, use_fast_variance=False)
    wanted_y, wanted_backward = jax.vjp(flax.apply, params, x.astype(jnp.float32))
    (dparams, dx), (wanted_dparams, wanted_dx) = backward(dy.astype(dtype)), wanted_backward(dy)
    assert y.dtype == dx.dtype == dtype
    # in one pass 100 roundings of the square of the mean, of 2**-24 each; then those of bfloat16,
    # of the gradient that comes in, too
    bound = 2e-5 + 2 * 2**-8 if dtype == jnp.bfloat16 else 2e-6
    for found, wanted in ((y, wanted_y), (dx, wanted_dx)):
        np.testing.assert_allclose(np.float32(found), wanted, atol=bound * np.abs(wanted).max())
    assert_close(dparams, wanted_dparams, tolerance=bound)


@pytest.mark.parametrize(("rate", "width"), [(0.1, 8), (0.5, 8), (0.01, 16), (1e-6, 32)])
def test_the_rate_is_within_two_percent(rate: float, width: int) -> None:
    rounded = dropout.rounded(DEVICE_KEY, rate)
    assert abs(rounded / rate - 1) <= 0.02
    assert rounded * 2**width == round(rounded * 2**width)
    count = 400_000
    dropped = count - int(dropout.keep(DEVICE_KEY, (count,), rate=rate).sum())
    # five standard deviations of a binomial share
    assert abs(dropped - count * rounded) <= 5 * (count * rounded) ** 0.5
    assert dropout.rounded(jax.random.key(0, impl="threefry2x32"), rate) == rate


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_step_is_that_of_float64(pooling: str) -> None:
    batch = make_batch(np.random.default_rng(0))
    settings = make_settings(encoder=Encoder(SHAPE, pooling=pooling, platform="tpu"))
    if pooling == "cls":
        wanted_loss, wanted = reference(make_params(), batch, settings)
    else:  # the form for CPUs is held to the formula elsewhere
        same = make_settings(encoder=Encoder(SHAPE, pooling=pooling))
        wanted_loss, wanted, _ = mapped_gradient("pmap", 1, make_params(), batch, same)
    found_loss, found, _ = mapped_gradient("shard_map", 4, make_params(), batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)


def updates(
    settings, state: TrainState, steps: range, devices: int = 2
) -> tuple[TrainState, list[float]]:
    """The state after some updates with dropout, and their losses."""
    spmd = parallel.spmd("pmap", jax.devices()[:devices])
    update = spmd.map(functools.partial(train_step, settings=settings, axis=parallel.AXIS))
    on_devices, losses = spmd.replicate(state), []
    for _ in steps:
        batch = spmd.shard(make_batch(np.random.default_rng(0)))
        on_devices, metrics = update(on_devices, batch)
        losses.append(float(spmd.fetch(metrics)["loss"]))
    return spmd.fetch(on_devices), losses


def test_a_run_that_goes_on_is_the_unbroken_one_bit_for_bit() -> None:
    """The generator's bits hang on seed, step, device and place alone."""

    def settings(seed: int, **changed: float):
        encoder = Encoder(SHAPE, dropout=0.3, platform="tpu", **changed)
        return make_settings(encoder=encoder, seed=seed)

    one = settings(3)
    opt_state = jax.device_get(one.optimizer.init(make_params()))
    start = TrainState(np.int32(0), make_params(), opt_state)
    unbroken, losses = updates(one, start, range(4))
    half, first = updates(one, start, range(2))
    resumed, last = updates(one, half, range(2, 4))
    assert losses == first + last
    jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)
    for other in (
        updates(settings(4), start, range(1)),
        updates(one, start._replace(step=np.int32(1)), range(1)),
        updates(one, start, range(1), devices=4),
        updates(settings(3, attention_dropout=0.0), start, range(1)),
    ):
        assert abs(other[1][0] - losses[0]) > 1e-4


def test_attention_dropout_is_apart_from_the_other() -> None:
    """Attention weights alone, on a CPU's forms and on a device's."""
    params = {"params": make_params()["question"]}
    tokens = make_batch(np.random.default_rng(0)).question
    for platform in ("cpu", "tpu"):
        rngs = {"dropout": jax.random.key(0, impl=kernels.generator(platform))}

        def vectors(platform: str = platform, rngs: dict = rngs, **rates: float) -> np.ndarray:
            encoder = Encoder(SHAPE, platform=platform, **rates)
            return np.asarray(encoder.apply(params, tokens, train=True, rngs=rngs))

        none = vectors()
        assert Encoder(SHAPE, attention_dropout=0.5).drops
        assert np.abs(vectors(attention_dropout=0.5) - none).max() > 1e-2
        assert np.abs(vectors(dropout=0.5, attention_dropout=0.0) - none).max() > 1e-2
        assert not np.array_equal(vectors(dropout=0.5, attention_dropout=0.0), vectors(dropout=0.5))


@pytest.mark.parametrize(
    ("length", "rate", "dtype", "mask_rows", "fused"),
    [
        (128, 0.0, jnp.bfloat16, 1, True),
        (1, 0.0, jnp.bfloat16, 1, False),
        (128, 0.1, jnp.bfloat16, 1, False),
        (128, 0.0, jnp.float32, 1, False),
        (128, 0.0, jnp.bfloat16, 128, False),
    ],
)
def test_cudnn_takes_whole_rows_of_half_precision_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    rate: float,
    dtype: jnp.dtype,
    mask_rows: int,
    fused: bool,
) -> None:
    """A step traced for GPUs; JAX's own form stands for cuDNN's, which needs a GPU."""
    taken = []

    def on_gpu(*args: jax.Array, implementation: str, **options: jax.Array) -> jax.Array:
        taken.append(implementation)
        return own(*args, implementation="xla", **options)

    own = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_gpu)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 2, 64)), dtype) for n in (length, 128, 128))
    lengths_B = jnp.array([128, 5])
    mask_BLM = (jnp.arange(128) < lengths_B[:, None])[:, None].repeat(mask_rows, axis=1)
    options = {"dropout_rate": rate, "dropout_key": DEVICE_KEY}
    y = kernels.attention(q, k, v, mask_BLM, platform="gpu", **options)
    assert taken == ["cudnn"] * fused
    wanted = attention(q, k, v, mask_BLM, **options)
    bound = 2 * 2**-8 * np.abs(wanted).max()
    np.testing.assert_allclose(np.float32(y), np.float32(wanted), atol=bound)
