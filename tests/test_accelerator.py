"""What this code computes on the device that is there: `pytest -m accelerator`, which takes the CPU
where there is no GPU or TPU.

The forms are those of the device's platform, and the references are of NumPy, of PyTorch's vectors
in golden/, or of this code's forms for CPUs on a CPU.
"""

import contextlib
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_reference import (
    SHAPE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
    mapped_gradient,
    reference,
)
from tiny import packaged_as_bert

from dpr_jax import parallel
from dpr_jax.config import ModelConfig
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.model import kernels
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.model.embed import load_embedder
from dpr_jax.training import packing
from dpr_jax.training.checkpoint import Checkpoints
from dpr_jax.training.packing import Layout
from dpr_jax.training.progress import START
from dpr_jax.training.step import StepSettings, TrainState, train_step

pytestmark = pytest.mark.accelerator

GOLDEN = Path(__file__).parent / "golden"
# float32 on an accelerator is six products of bfloat16, or TensorFloat's three: a digit less
TOLERANCE = 5e-5


def devices() -> list[jax.Device]:
    """As many as share the batch of step_reference evenly."""
    found = jax.devices()
    return found[: 1 << (min(len(found), 8).bit_length() - 1)]


def on_cpu() -> contextlib.AbstractContextManager:
    """Where the reference is computed, if the process has a CPU among its devices."""
    with contextlib.suppress(RuntimeError):
        return jax.default_device(jax.devices("cpu")[0])
    return contextlib.nullcontext()


def settings_of(**changed: object) -> StepSettings:
    encoder = {"platform": parallel.platform_of(jax.devices())} | changed.pop("encoder", {})
    return make_settings(encoder=Encoder(SHAPE, **encoder), **changed)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_the_step_is_that_of_float64(kind: str) -> None:
    batch, settings = make_batch(np.random.default_rng(0)), settings_of(symmetric=True)
    with on_cpu():
        wanted_loss, wanted = reference(make_params(), batch, settings)
    count = len(devices())
    found_loss, found, _ = mapped_gradient(kind, count, make_params(), batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted, tolerance=TOLERANCE)


def test_chunks_give_the_gradient_of_the_whole() -> None:
    batch = make_batch(np.random.default_rng(0))
    found, wanted = (
        mapped_gradient("shard_map", len(devices()), make_params(), batch, settings_of(**chunks))
        for chunks in ({"chunk_size": 1}, {})
    )
    assert_close(found[1], wanted[1], tolerance=TOLERANCE)


def test_packed_texts_give_the_gradient_of_padded_ones() -> None:
    batch, count = make_batch(np.random.default_rng(0)), len(devices())
    layout = Layout(1, devices=count)
    packed = packing.pack(batch, packing.shape_for([batch], layout), layout)
    found, wanted = (
        mapped_gradient("shard_map", count, make_params(), one, settings_of())
        for one in (packed, batch)
    )
    assert_close(found[1], wanted[1], tolerance=TOLERANCE)


def test_bfloat16_gradients_point_the_same_way() -> None:
    batch = make_batch(np.random.default_rng(0))
    half = settings_of(encoder={"dtype": jnp.bfloat16})
    with on_cpu():
        _, wanted = reference(make_params(), batch, settings_of())
    _, found, _ = mapped_gradient("shard_map", len(devices()), make_params(), batch, half)
    one, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, wanted)
    )
    # some tens of roundings of 2**-8 on the way
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.995


@pytest.mark.parametrize("attention_dropout", [None, 0.0])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, attention_dropout: float | None) -> None:
    """With the dropout of this platform, bit for bit, through a checkpoint."""
    settings = settings_of(encoder={"dropout": 0.3, "attention_dropout": attention_dropout})
    spmd = parallel.spmd("shard_map", devices())
    update = spmd.map(functools.partial(train_step, settings=settings, axis=parallel.AXIS))

    def updates(state: TrainState, steps: range) -> TrainState:
        on_devices = spmd.replicate(state)
        for step in steps:
            batch = spmd.shard(make_batch(np.random.default_rng(step)))
            on_devices, _ = update(on_devices, batch)
        return spmd.fetch(on_devices)

    opt_state = jax.device_get(settings.optimizer.init(make_params()))
    start = TrainState(np.zeros((), np.int32), make_params(), opt_state)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(updates(start, range(2)), START)
    checkpoints.wait()
    half, _ = checkpoints.latest(start)
    checkpoints.close()
    jax.tree.map(
        np.testing.assert_array_equal, updates(half, range(2, 4)), updates(start, range(4))
    )


@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 1 - 1e-6), ("bfloat16", 1 - 2e-3)])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_the_references(
    tmp_path: Path, dtype: str, cosine: float, pooling: str
) -> None:
    texts = [tuple(pair) for pair in json.loads((GOLDEN / "texts.json").read_text("utf-8"))]
    model = ModelConfig(pooling=pooling, normalize=True, max_passage_tokens=64)
    folder = packaged_as_bert(tmp_path / "bert")
    found = load_embedder(str(folder), "passage", model=model, dtype=dtype).encode(texts)
    wanted = np.load(GOLDEN / "reference.npz")[pooling]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.sum(found * wanted, axis=1).min() > cosine


def test_exact_search_is_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(5000, 96)).astype(np.float16)
    queries_QD = rng.normal(size=(7, 96)).astype(np.float32)
    index = ExactIndex([vectors_ND[:3000], vectors_ND[3000:]], block_rows=256)
    scores, rows = index.search(queries_QD, 20)
    exact = queries_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, wanted, axis=1), rtol=TOLERANCE)
    assert np.mean(rows == wanted) > 0.99  # equal to rounding may change places


def test_fused_attention_is_the_plain_one() -> None:
    """At lengths of real texts, in bfloat16: what a GPU gives to cuDNN, forward and backward."""
    platform = parallel.platform_of(jax.devices())
    rng = np.random.default_rng(0)
    q, k, v, dy = (jnp.asarray(rng.normal(size=(4, 128, 4, 64)), jnp.bfloat16) for _ in range(4))
    lengths_B = jnp.array([128, 100, 64, 3])
    mask = (jnp.arange(128) < lengths_B[:, None])[:, None]
    results = []
    for one, dtype in ((platform, jnp.bfloat16), ("tpu", jnp.float32)):
        run = functools.partial(kernels.attention, mask_BLM=mask, platform=one)
        y, backward = jax.vjp(run, *(x.astype(dtype) for x in (q, k, v)))
        results.append((y, *backward(dy.astype(dtype))))
    for found, wanted in zip(*results, strict=True):
        found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
        np.testing.assert_allclose(found, wanted, atol=2 * 2**-8 * np.abs(wanted).max())
