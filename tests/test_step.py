"""The mapped step against one device: vectors from the towers, the loss and its gradient from loops
in float64 NumPy.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from step_reference import (
    KINDS,
    PASSAGES,
    QUESTIONS,
    SHAPE,
    TEMPERATURE,
    TOLERANCE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
    make_tokens,
    mapped_gradient,
    reference,
    with_teacher,
)

from dpr_jax import parallel
from dpr_jax.model import dual_encoder
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens
from dpr_jax.training import contrast, gradcache, loss
from dpr_jax.training.step import (
    LOG_TEMPERATURE,
    Batch,
    TrainState,
    batch_loss,
    train_step,
)

# --- the gradient ------------------------------------------------------------


# every pair of values, and every triple of the last three; the others are slow
CHOSEN = {
    (1, "pmap", False, False),
    (1, "shard_map", True, True),
    (2, "pmap", False, True),
    (2, "shard_map", True, False),
    (4, "pmap", True, False),
    (4, "shard_map", False, True),
    (8, "pmap", True, True),
    (8, "shard_map", False, False),
}
EVERY = itertools.product([1, 2, 4, 8], ["pmap", "shard_map"], *[[False, True]] * 2)


@pytest.mark.parametrize(
    ("count", "kind", "symmetric", "chunked"),
    [pytest.param(*case, marks=[] if case in CHOSEN else pytest.mark.slow) for case in EVERY],
)
def test_gradient_is_that_of_the_global_batch(
    count: int, kind: str, symmetric: bool, chunked: bool
) -> None:
    batch = make_batch(np.random.default_rng(0))
    # not a divisor of every share: one chunk where a device has fewer texts
    chunk_size = 4 if chunked else 0
    settings = make_settings(symmetric=symmetric, chunk_size=chunk_size)
    wanted_loss, wanted = reference(make_params(), batch, settings)
    found_loss, found, counted = mapped_gradient(kind, count, make_params(), batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)
    if count > 1:
        assert counted == {
            # one for all gradients and metrics, one for the number of questions
            "all-reduce": 2,
            # vectors and text keys of passages; vectors of questions where the loss is symmetric
            "all-gather": 3 if symmetric else 2,
            # the gradients of gathered vectors on their way home
            "reduce-scatter": 2 if symmetric else 1,
            # which questions a positive is no negative of
            "all-to-all": 1 if symmetric else 0,
        }


def test_gradient_with_every_option() -> None:
    """Cut vectors, both directions, a learned temperature, answers masked and duplicates left in,
    layers and chunks computed again.
    """
    rng = np.random.default_rng(1)
    count = QUESTIONS * PASSAGES
    batch = make_batch(rng)._replace(
        passage_columns_P=rng.permutation(count).astype(np.int32),
        holds_answer_BP=rng.random((QUESTIONS, count)) < 0.2,
    )
    settings = make_settings(
        encoder=Encoder(SHAPE, remat=True),
        temperature=0.0,  # not read
        mask_duplicates=False,
        symmetric=True,
        matryoshka_widths=(4, 8),
        chunk_size=2,
    )
    params = {**make_params(), LOG_TEMPERATURE: np.float32(np.log(TEMPERATURE))}
    wanted_loss, wanted = reference(params, batch, settings)
    found_loss, found, _ = mapped_gradient("shard_map", 4, params, batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)


def test_scores_in_blocks_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question at a time on each of four devices, with all that looks at scores."""
    rng = np.random.default_rng(1)
    count = QUESTIONS * PASSAGES
    batch = with_teacher(rng, make_batch(rng))._replace(
        passage_columns_P=rng.permutation(count).astype(np.int32),
        holds_answer_BP=rng.random((QUESTIONS, count)) < 0.2,
    )
    settings = make_settings(
        symmetric=True,
        matryoshka_widths=(4,),
        distillation="kl",
        distillation_weight=0.3,
    )
    monkeypatch.setattr(loss, "SCORES_AT_ONCE", count)
    assert loss.block_rows(2, count) == 1
    wanted_loss, wanted = reference(make_params(), batch, settings)
    found_loss, found, _ = mapped_gradient("pmap", 4, make_params(), batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)


def test_scores_of_a_huge_batch_take_the_memory_of_a_block() -> None:
    """32,768 questions with a hard negative each on eight devices: 1.1 GB of scores on each."""
    questions, passages, width = 32768 // 8, 65536, 768
    shape = jax.ShapeDtypeStruct
    inputs = (
        shape((questions, width), jnp.float32),
        shape((passages, width), jnp.float32),
        shape((passages,), jnp.int32),
        shape((questions, 1), jnp.int32),
    )

    def mean_nll(q_BD: jax.Array, p_PD: jax.Array, texts_P: jax.Array, known_BM: jax.Array):
        def usable(label_B: jax.Array, known_BM: jax.Array) -> jax.Array:
            return loss.usable(texts_P >= 0, label_B, loss.same_text(known_BM, texts_P))

        label_B = jnp.arange(len(q_BD)) * 2
        one = contrast.Contrast(q_BD, p_PD, label_B, known_BM, usable)
        return jnp.mean(contrast.judge(one, 1.0).nll_B)

    program = jax.jit(jax.grad(mean_nll, argnums=(0, 1))).lower(*inputs).compile()
    vectors = (questions + passages) * width * 4
    # two copies of the passages' gradient, and a few matrices of a block
    assert program.memory_analysis().temp_size_in_bytes < 2 * vectors + 6 * 4 * loss.SCORES_AT_ONCE


def test_without_gathering_each_device_is_alone() -> None:
    """The mean over devices of what one device finds in its share, by its number of questions."""
    batch = make_batch(np.random.default_rng(0))
    settings = make_settings(symmetric=True, gather=False)
    found_loss, found, counted = mapped_gradient("pmap", 4, make_params(), batch, settings)
    assert counted == {"all-reduce": 2, **dict.fromkeys(KINDS[1:], 0)}
    shares = [jax.tree.map(lambda leaf, i=i: np.split(leaf, 4)[i], batch) for i in range(4)]
    alone = [mapped_gradient("pmap", 1, make_params(), share, settings)[:2] for share in shares]
    weights = [share.weight_B.sum() / batch.weight_B.sum() for share in shares]
    wanted_loss, wanted = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)),
        *alone,
    )
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)


def test_chunks_drop_the_same_in_both_passes() -> None:
    """With dropout, against chunks encoded one after the other without recomputation."""
    encoder, key = Encoder(SHAPE, dropout=0.5), jax.random.key(5)
    tokens = make_tokens(np.random.default_rng(0), QUESTIONS, 6)

    def one_by_one(params: Params) -> jax.Array:
        halves = (
            Tokens(tokens.ids_BL[:4], tokens.lengths_B[:4]),
            Tokens(tokens.ids_BL[4:], tokens.lengths_B[4:]),
        )
        keys = jax.random.split(key)
        embs = [
            dual_encoder.encode(encoder, params, "question", half, half_key)
            for half, half_key in zip(halves, keys, strict=True)
        ]
        return jnp.concatenate(embs)

    def cached(params: Params) -> jax.Array:
        return gradcache.encode(encoder, params, "question", tokens, key, chunk_size=4)

    def of_cubes(encode: Callable[[Params], jax.Array]) -> tuple[jax.Array, Params]:
        # the gradient of a cube depends on the vector, and so on what was dropped
        cubes = jax.value_and_grad(lambda params: jnp.sum(encode(params) ** 3))
        return jax.jit(cubes)({"question": make_params()["question"]})

    (found, found_grad), (wanted, wanted_grad) = of_cubes(cached), of_cubes(one_by_one)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)
    assert_close(found_grad, wanted_grad)


def test_what_is_kept_for_the_backward_pass() -> None:
    """Per layer its input alone with remat; per chunk its tokens alone, however many chunks."""
    tokens = make_tokens(np.random.default_rng(0), 64, 16)
    deep = dataclasses.replace(SHAPE, num_hidden_layers=4)
    params = jax.eval_shape(
        lambda: Encoder(deep).init(jax.random.key(0), tokens, train=False)["params"]
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))

    def kept(remat: bool, chunk_size: int) -> int:
        def pull(params: Params) -> object:
            encoder = Encoder(deep, remat=remat)
            if not chunk_size:
                return dual_encoder.encode(encoder, params, "question", tokens)
            return gradcache.encode(
                encoder, params, "question", tokens, None, chunk_size=chunk_size
            )

        residuals = jax.eval_shape(lambda params: jax.vjp(pull, params)[1], {"question": params})
        return sum(leaf.size for leaf in jax.tree.leaves(residuals)) - weights

    layer_input = tokens.ids_BL.size * SHAPE.hidden_size
    assert kept(False, 0) > 4 * 10 * layer_input
    assert kept(True, 0) < 4 * 4 * layer_input
    assert kept(False, 4) <= tokens.ids_BL.size + tokens.lengths_B.size


def test_options_that_are_off_leave_no_instruction() -> None:
    """The step is instruction by instruction the loss of the paper, written out."""

    def paper(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        q_BD = dual_encoder.encode(Encoder(SHAPE), params, "question", batch.question)
        p_PD = dual_encoder.encode(Encoder(SHAPE), params, "passage", batch.passages)
        device = lax.axis_index("devices")
        all_texts_P = lax.all_gather(batch.passage_texts_P, "devices", tiled=True)
        label_B = (device * 4 + jnp.arange(4)) * PASSAGES
        all_PD = lax.all_gather(p_PD, "devices", tiled=True)
        scores_BP = loss.scores(q_BD, all_PD, TEMPERATURE)
        usable_BP = loss.usable(all_texts_P >= 0, label_B)
        nll_B = loss.nll(scores_BP, label_B, usable_BP)
        hit_B = loss.first_is_label(scores_BP, label_B, usable_BP)
        share_B = batch.weight_B / lax.pmean(jnp.sum(batch.weight_B), "devices")
        total = jnp.sum(nll_B * share_B)
        return total, {"loss": total, "accuracy": jnp.sum(hit_B * share_B)}

    half = jax.tree.map(lambda leaf: leaf[: len(leaf) // 2], make_batch(np.random.default_rng(0)))
    settings = make_settings(mask_duplicates=False)

    def ours(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch_loss(params, batch, settings, None, "devices")

    programs = [
        str(
            jax.make_jaxpr(jax.grad(step, has_aux=True), axis_env=[("devices", 2)])(
                make_params(), half
            )
        )
        for step in (paper, ours)
    ]
    assert programs[0] == programs[1]


# --- updates -----------------------------------------------------------------


def test_updates_are_those_of_one_device_and_compile_once() -> None:
    settings, traces, results = make_settings(), [], []

    def counted(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        traces.append(1)
        return train_step(state, batch, settings=settings, axis=parallel.AXIS)

    for kind, count in (("pmap", 8), ("shard_map", 1)):
        spmd = parallel.spmd(kind, jax.devices()[:count])
        opt_state = jax.device_get(settings.optimizer.init(make_params()))
        state = TrainState(np.zeros((), np.int32), make_params(), opt_state)
        update = spmd.map(counted, donate=True)
        on_devices, losses = spmd.replicate(state), []
        for number in range(3):
            batch = make_batch(np.random.default_rng(number))
            on_devices, metrics = update(on_devices, spmd.shard(batch))
            losses.append(spmd.fetch(metrics)["loss"])
        results.append(losses)
        assert int(spmd.fetch(on_devices).step) == 3
    assert len(traces) == 2
    # Adam divides by the gradient's own size: where it is tiny, rounding decides the sign
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4)
    assert results[0][0] != results[0][1]


def dropped_loss(devices: int, *, step: int = 0, seed: int = 3) -> float:
    """Loss of one update with dropout, where every device has the same rows and is alone."""
    settings = make_settings(encoder=Encoder(SHAPE, dropout=0.5), gather=False, seed=seed)
    half = jax.tree.map(lambda leaf: leaf[: len(leaf) // 2], make_batch(np.random.default_rng(0)))
    batch = jax.tree.map(lambda leaf: np.concatenate([leaf] * devices), half)
    spmd = parallel.spmd("pmap", jax.devices()[:devices])
    update = spmd.map(functools.partial(train_step, settings=settings, axis=parallel.AXIS))
    opt_state = jax.device_get(settings.optimizer.init(make_params()))
    state = TrainState(np.int32(step), make_params(), opt_state)
    _, metrics = update(spmd.replicate(state), spmd.shard(batch))
    return float(spmd.fetch(metrics)["loss"])


def test_dropout_differs_by_step_seed_and_device_and_repeats() -> None:
    one = dropped_loss(1)
    assert dropped_loss(1) == one
    for other in (dropped_loss(1, step=1), dropped_loss(1, seed=4)):
        assert abs(other - one) > 1e-3
    # equal masks on equal rows would give both devices the loss of the first
    assert abs(dropped_loss(2) - one) > 1e-3


def test_dropout_differs_by_chunk() -> None:
    tokens = make_tokens(np.random.default_rng(0), 4, 6)
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), tokens)
    encoder = Encoder(SHAPE, dropout=0.5)
    emb_BD = gradcache.encode(
        encoder, make_params(), "question", twice, jax.random.key(5), chunk_size=4
    )
    assert np.abs(emb_BD[:4] - emb_BD[4:]).max(axis=1).min() > 1e-3


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    spmd = parallel.spmd("pmap", jax.devices()[:3])
    with pytest.raises(ValueError, match="8 rows cannot be split over 3 devices"):
        spmd.shard(np.zeros((8, 2)))
