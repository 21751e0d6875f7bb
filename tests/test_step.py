"""The mapped step against one device, and against a plain float64 loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax import parallel
from dpr_jax.model import dual_encoder
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Tokens
from dpr_jax.training import optimizer
from dpr_jax.training.step import (
    Batch,
    StepSettings,
    TrainState,
    global_gradient,
    train_step,
)

SHAPE = BertShape(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)
QUESTIONS, PASSAGES = 8, 3  # B, G

# float32 carries 1.2e-7 a rounding; a gradient through two layers and a softmax sums some hundred of them
TOLERANCE = 1e-5


def make_tokens(rng: np.random.Generator, rows: int, length: int) -> Tokens:
    ids_BL = rng.integers(1, SHAPE.vocab_size, (rows, length)).astype(np.int32)
    return Tokens(ids_BL, rng.integers(2, length + 1, rows).astype(np.int32))


def make_batch(rng: np.random.Generator) -> Batch:
    """Uneven lengths, dummies, duplicate passages, and a question that only fills up."""
    rows_P = rng.permutation(100)[: QUESTIONS * PASSAGES].astype(np.int32)
    rows_P[2] = rows_P[7] = -1  # dummies
    rows_P[4] = rows_P[0]  # question 1's hard negative is question 0's positive
    positives_BM = np.full((QUESTIONS, 2), -2, np.int32)
    positives_BM[:, 0] = rows_P[::PASSAGES]
    positives_BM[3, 1] = rows_P[9 + PASSAGES + 1]  # a second positive, in the batch
    weight_B = np.ones(QUESTIONS, np.float32)
    weight_B[5] = 0
    return Batch(
        make_tokens(rng, QUESTIONS, 6),
        make_tokens(rng, QUESTIONS * PASSAGES, 9),
        rows_P,
        positives_BM,
        weight_B,
    )


def make_params(encoder: Encoder, seed: int) -> dual_encoder.Params:
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    keys = jax.random.split(jax.random.key(seed))
    init = jax.jit(lambda key: encoder.init(key, tokens, train=False)["params"])
    towers = [init(key) for key in keys]
    # weights of 0.02 give near-uniform scores, and with them gradients of pure noise
    towers = jax.tree.map(
        lambda leaf: np.asarray(leaf) * (5 if leaf.ndim > 1 else 1), towers
    )
    return dual_encoder.dual_params(*towers, shared=False)


def make_settings(dropout: float = 0.0) -> StepSettings:
    rate = functools.partial(
        optimizer.learning_rate, peak=1e-3, warmup_steps=2, total_steps=10
    )
    adamw = optimizer.make(rate, weight_decay=0.01, eps=1e-8, clip_norm=1.0)
    return StepSettings(Encoder(SHAPE, dropout=dropout), adamw, 0.7, True, 3)


def plain_loss(
    params: dual_encoder.Params, batch: Batch, encoder: Encoder
) -> jax.Array:
    """The definition in loops over questions and passages, on one device."""
    q_BD = dual_encoder.encode(encoder, params, "question", batch.question)
    p_PD = dual_encoder.encode(encoder, params, "passage", batch.passages)
    total, weight = 0.0, 0.0
    for i in range(QUESTIONS):
        own = i * PASSAGES
        stands = [
            j
            for j, row in enumerate(batch.passage_rows_P)
            if j == own or (row >= 0 and row not in batch.positive_rows_BM[i])
        ]
        exponents = p_PD[np.array(stands)] @ q_BD[i] / 0.7
        positive = jnp.dot(q_BD[i], p_PD[own]) / 0.7
        nll = jnp.log(jnp.sum(jnp.exp(exponents))) - positive
        total, weight = total + nll * batch.weight_B[i], weight + batch.weight_B[i]
    return total / weight


def assert_close(found: object, wanted: object) -> None:
    """Every leaf, relative to its largest entry or a tenth of the tree's.

    The tenth is for leaves whose gradient is zero but for rounding: a shift of all passages alike, which is what the passage tower's last
    bias does, changes no softmax.
    """
    overall = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        scale = max(np.abs(b).max(), overall * 0.1)
        error = np.abs(np.asarray(a) - np.asarray(b)).max() / scale
        assert error < TOLERANCE, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_gradient_is_that_of_the_global_batch(kind: str, count: int) -> None:
    batch = make_batch(np.random.default_rng(0))
    settings = make_settings()
    params = make_params(settings.encoder, 1)
    wanted_loss, wanted = jax.value_and_grad(plain_loss)(
        params, batch, settings.encoder
    )

    spmd = parallel.spmd(kind, jax.devices()[:count])
    gradient = spmd.map(
        functools.partial(
            global_gradient, settings=settings, dropout_key=None, axis=parallel.AXIS
        )
    )
    grads, sums = spmd.fetch(gradient(spmd.replicate(params), spmd.shard(batch)))
    np.testing.assert_allclose(sums["loss"], wanted_loss, rtol=TOLERANCE)
    assert_close(grads, wanted)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_updates_are_those_of_one_device(kind: str) -> None:
    settings = make_settings()
    params = make_params(settings.encoder, 1)
    results = []
    for count in (1, 8):
        spmd = parallel.spmd(kind, jax.devices()[:count])
        state = TrainState(
            np.zeros((), np.int32),
            params,
            jax.device_get(settings.optimizer.init(params)),
        )
        update = spmd.map(
            functools.partial(train_step, settings=settings, axis=parallel.AXIS),
            donate=True,
        )
        on_devices, losses = spmd.replicate(state), []
        for step in range(3):
            batch = make_batch(np.random.default_rng(step))
            on_devices, metrics = update(on_devices, spmd.shard(batch))
            losses.append(spmd.fetch(metrics)["loss"])
        results.append(losses)
    # Adam divides by the gradient's own size: where it is tiny, rounding decides the sign
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4)
    assert results[0][0] != results[0][1]


def test_dropout_differs_by_step_and_device_and_repeats_with_the_seed() -> None:
    settings = make_settings(dropout=0.5)
    params = make_params(settings.encoder, 1)
    batch = make_batch(np.random.default_rng(0))
    # the same rows on both devices: only dropout can tell them apart
    half = jax.tree.map(
        lambda leaf: np.concatenate([leaf[: len(leaf) // 2]] * 2), batch
    )

    def norms(step: int) -> np.ndarray:
        def vectors(_: object, shard: Batch) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(settings.seed), step)
            key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
            emb = dual_encoder.encode(
                settings.encoder, params, "question", shard.question, key
            )
            return jax.lax.all_gather(jnp.sum(emb), parallel.AXIS)

        spmd = parallel.spmd("pmap", jax.devices()[:2])
        return spmd.fetch(spmd.map(vectors)(spmd.replicate(0), spmd.shard(half)))

    first, second = norms(0), norms(1)
    assert first[0] != first[1]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, norms(0))


def test_one_all_reduce_carries_the_gradient() -> None:
    settings = make_settings()
    params = make_params(settings.encoder, 1)
    spmd = parallel.spmd("shard_map", jax.devices()[:4])
    gradient = spmd.map(
        functools.partial(
            global_gradient, settings=settings, dropout_key=None, axis=parallel.AXIS
        )
    )
    batch = spmd.shard(make_batch(np.random.default_rng(0)))
    program = gradient.lower(spmd.replicate(params), batch).compile().as_text()
    reduces = [line for line in program.splitlines() if " all-reduce(" in line]
    # one for the gradients and metrics, one for the number of questions
    assert len(reduces) == 2, reduces
    gathers = [line for line in program.splitlines() if " all-gather(" in line]
    assert len(gathers) == 2, gathers  # passage vectors and passage rows


def test_compiles_once() -> None:
    settings = make_settings()
    params = make_params(settings.encoder, 1)
    spmd = parallel.spmd("pmap", jax.devices()[:2])
    traces = []

    def counted(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        traces.append(1)
        return train_step(state, batch, settings=settings, axis=parallel.AXIS)

    update = spmd.map(counted, donate=True)
    state = TrainState(
        np.zeros((), np.int32), params, jax.device_get(settings.optimizer.init(params))
    )
    on_devices = spmd.replicate(state)
    for step in range(4):
        on_devices, _ = update(
            on_devices, spmd.shard(make_batch(np.random.default_rng(step)))
        )
    assert len(traces) == 1
    assert int(spmd.fetch(on_devices).step) == 4


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    spmd = parallel.spmd("pmap", jax.devices()[:3])
    with pytest.raises(ValueError, match="8 rows cannot be split over 3 devices"):
        spmd.shard(np.zeros((8, 2)))
