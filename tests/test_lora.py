"""Low-rank adapters: what they compute, what moves, and what comes out of a training with them."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from step_reference import (
    SHAPE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
    mapped_gradient,
)
from test_shards import updated
from test_training import Killed, lines

from dpr_jax import parallel
from dpr_jax.config import Config, ModelConfig, TrainConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, dual_encoder, hf, lora, tokenizer
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens, encode, tower
from dpr_jax.model.embed import load_embedder
from dpr_jax.training import loop, optimizer, setup
from dpr_jax.training.step import LOG_TEMPERATURE, TrainState, train_step
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

pytestmark = pytest.mark.usefixtures("own_programs")

GOLDEN = Path(__file__).parent / "golden/encoders"
SIDES = ("question", "passage")
RANK = 3
LOW = 1e-5  # of the largest value: float32 sums of some hundred products, in another order


def moved(params: Params, seed: int = 0) -> Params:
    """Adapters that change vectors by about as much as they are long."""
    rng = np.random.default_rng(seed)
    with_them = jax.device_get(lora.with_adapters(params, rank=RANK, seed=5))
    adapters = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), with_them[lora.LORA]
    )
    return {**with_them, lora.LORA: adapters}


def folded(params: Params) -> Params:
    """The same towers without adapters."""
    shared = "shared" in params
    return dual_encoder.dual_params(*(tower(params, side) for side in SIDES), shared=shared)


# --- what they compute -------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert", "modernbert", "roberta"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_merged_weights_give_the_vectors_of_adapters_beside_them(
    family: str, platform: str
) -> None:
    """In every family, in the forms of both kinds of device, with layers computed again."""
    folder = GOLDEN / family
    shape = hf.read_shape(folder)
    encoder = Encoder(shape, pooling="mean", remat=True, platform=platform)
    one = hf.read_params(folder, shape)
    params = dual_encoder.dual_params(one, one, shared=True)
    rng = np.random.default_rng(0)
    tokens = Tokens(rng.integers(5, 90, (3, 9)).astype(np.int32), np.array([9, 4, 6], np.int32))
    before = np.asarray(encode(encoder, params, "question", tokens))
    started = jax.device_get(lora.with_adapters(params, rank=RANK, seed=5))
    np.testing.assert_array_equal(encode(encoder, started, "question", tokens), before)

    changed = moved(params)
    found = np.asarray(encode(encoder, changed, "question", tokens))
    assert np.abs(found - before).max() > 0.1 * np.abs(before).max()
    wanted = np.asarray(encode(encoder, folded(changed), "question", tokens))
    np.testing.assert_allclose(found, wanted, atol=LOW * np.abs(wanted).max())
    a_layer = {"attention_output", "intermediate", "output"}
    qkv = {"attention_query", "attention_key", "attention_value"}
    a_layer |= {"attention_qkv"} if family == "modernbert" else qkv
    layers = changed[lora.LORA]["shared"]["bert"]
    assert sorted(layers) == [f"layer_{n}" for n in range(shape.num_hidden_layers)]
    assert all({*layer} == a_layer for layer in layers.values())


@pytest.mark.parametrize(("kind", "devices", "chunk"), [("pmap", 2, 0), ("shard_map", 4, 2)])
def test_the_gradient_is_that_of_the_merged_weights_projected(
    kind: str, devices: int, chunk: int
) -> None:
    """dA = dW B^T and dB = A^T dW, on several devices and in chunks; nothing else has one."""
    batch = make_batch(np.random.default_rng(0))
    temperature = {LOG_TEMPERATURE: np.float32(-0.4)}
    params = {**moved(make_params()), **temperature}
    settings = make_settings(chunk_size=chunk)
    loss, found, collectives = mapped_gradient(kind, devices, params, batch, settings)
    whole = folded(params) | temperature
    wanted_loss, of_weights, _ = mapped_gradient("pmap", 1, whole, batch, make_settings())
    np.testing.assert_allclose(loss, wanted_loss, rtol=LOW)
    assert collectives["all-reduce"] == 2  # as without adapters
    assert {*found} == {lora.LORA, LOG_TEMPERATURE}
    np.testing.assert_allclose(found[LOG_TEMPERATURE], of_weights[LOG_TEMPERATURE], rtol=1e-4)

    wanted = {}
    for side in SIDES:
        for name, own in params[lora.LORA][side]["bert"]["layer_0"].items():
            slope_DF = of_weights[side]["bert"]["layer_0"][name]["kernel"]
            wanted[side, name] = {"a": slope_DF @ own["b"].T, "b": own["a"].T @ slope_DF}
    found = {(side, name): found[lora.LORA][side]["bert"]["layer_0"][name] for side, name in wanted}
    assert_close(found, wanted)


# --- what moves --------------------------------------------------------------


def first_state(settings: object, params: Params) -> TrainState:
    opt_state = jax.device_get(settings.optimizer.init(lora.trained(params)))
    return TrainState(np.int32(0), params, opt_state)


def settings_of(params: Params, *, split: bool) -> object:
    adamw = optimizer.make(
        lambda step: 1e-2,
        weight_decay=0.1,
        clip_norm=0.5,
        eps=1e-5,
        learn_temperature=True,
        axis=parallel.AXIS if split else None,
    )
    return make_settings(optimizer=adamw, whole=params if split else None)


def test_only_adapters_move_and_only_they_have_moments() -> None:
    """Also where weights and moments are split over devices, which gives the same to rounding."""
    params = jax.device_get(lora.with_adapters(make_params(), rank=RANK, seed=5))
    params[LOG_TEMPERATURE] = np.float32(0)
    plain, split = (settings_of(params, split=split) for split in (False, True))
    start = first_state(plain, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params[lora.LORA]))
    width, inner = SHAPE.hidden_size, SHAPE.intermediate_size
    assert count == 2 * RANK * (4 * (width + width) + 2 * (width + inner))  # of two towers
    moments = sum(leaf.size for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim)
    assert moments == 2 * count

    after, losses = updated("pmap", 2, start, range(20), plain)
    for side in SIDES:
        jax.tree.map(np.testing.assert_array_equal, after.params[side], params[side])
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), after.params[lora.LORA], params[lora.LORA]
    )
    assert all(jax.tree.leaves(changed))
    assert after.params[LOG_TEMPERATURE] != 0

    parts, split_losses = updated("shard_map", 4, start, range(20), split)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-5)
    for side in SIDES:
        jax.tree.map(np.testing.assert_array_equal, parts.params[side], params[side])


def test_an_update_takes_less_memory() -> None:
    """By XLA's account: no moments and no gradients of the towers."""
    shape = dataclasses.replace(SHAPE, hidden_size=128, intermediate_size=512, vocab_size=2000)
    encoder = Encoder(shape)
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    one = jax.eval_shape(lambda: encoder.init(jax.random.key(0), tokens, train=False)["params"])
    whole = dual_encoder.dual_params(one, one, shared=False)
    low = jax.eval_shape(functools.partial(lora.with_adapters, rank=4, seed=0), whole)
    settings = make_settings(encoder=encoder)
    spmd = parallel.spmd("pmap", jax.devices()[:1])
    step = functools.partial(train_step, settings=settings, axis=parallel.AXIS)

    def needed(params: Params) -> int:
        opt_state = jax.eval_shape(settings.optimizer.init, lora.trained(params))
        state = TrainState(jax.ShapeDtypeStruct((), np.int32), params, opt_state)
        update = spmd.map(step, donate=True)
        lowered = update.lower(*spmd.shapes(state, make_batch(np.random.default_rng(0))))
        sizes = lowered.compile().memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes

    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(whole))
    full, adapted = needed(whole), needed(low)
    assert full > 4 * weights  # weights, two moments, gradients
    assert adapted < full - 2.5 * weights, (full / weights, adapted / weights)


# --- a training --------------------------------------------------------------


def asked(config: Config, init: Path, **changed: object) -> Config:
    model = ModelConfig(
        init=str(init), pooling="mean", max_question_tokens=16, max_passage_tokens=32
    )
    train = TrainConfig(
        batch_size=8,
        total_steps=4,
        learning_rate=1e-2,
        lora_rank=4,
        learn_temperature=True,
        pack_rows=1,
        chunk_size=1,
        log_every_steps=1,
        checkpoint_every_steps=2,
        validation_negatives=2,
    )
    train = dataclasses.replace(train, **changed)
    return dataclasses.replace(config, model=model, train=train)


def copied(prepared: WorkDir, root: Path) -> RetrieverDir:
    shutil.copytree(prepared.root, root, symlinks=True)
    return open_workdir(root).retriever("trained")


def test_a_training_resumes_bit_for_bit_and_writes_plain_encoders(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two families, packed, in chunks, with dropout; the last state's vectors are those of the
    folders.
    """
    config, prepared = nq_small_workdir
    init = tmp_path / "init"
    for side, family in zip(SIDES, ("mpnet", "modernbert"), strict=True):
        shutil.copytree(GOLDEN / family, init / f"{side}_encoder")
    config = asked(config, init)
    whole, broken = (copied(prepared, tmp_path / name) for name in ("whole", "broken"))
    exported = []
    write = loop.write_towers

    def keeping(folder: Path, params: Params, *rest: object, **facts: object) -> None:
        exported.append(params)
        write(folder, params, *rest, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_towers", keeping)
        loop.run(config, whole)
    stream = loop.batches.stream

    def killing(*args: object, **kwargs: object):
        for number, batch in enumerate(stream(*args, **kwargs), 1):
            if number == 4:  # after the checkpoint of step 2
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop.batches, "stream", killing)
        with pytest.raises(Killed):
            loop.run(config, broken)
    loop.run(config, broken)
    assert lines(whole) == lines(broken)
    assert lines(whole, "validation_nll") == lines(broken, "validation_nll")

    params = exported[-1]
    settings = {
        side: description.read(init / f"{side}_encoder", side, config.model) for side in SIDES
    }
    texts = ["who wrote the origin of species", "a longer text about nothing at all"]
    for side in SIDES:
        one, other = (
            (place.current("model") / f"{side}_encoder/model.safetensors").read_bytes()
            for place in (whole, broken)
        )
        assert one == other
        model = whole.current("model")
        loaded = load_embedder(str(model), side, model=ModelConfig(), dtype="float32")
        start = load_embedder(str(init), side, model=config.model, dtype="float32")
        found = loaded.encode(texts)
        encoder = hf.read_encoder(init / f"{side}_encoder", settings[side])
        own = settings[side]
        tokens = tokenizer.load(init / f"{side}_encoder", own.max_tokens, own.prompt)
        beside = np.asarray(encode(encoder, params, side, tokens(texts, own.max_tokens)))
        np.testing.assert_allclose(found, beside, atol=LOW * np.abs(beside).max())
        assert np.abs(found - start.encode(texts)).max() > 100 * LOW * np.abs(found).max()


@pytest.mark.parametrize(("rank", "factor"), [(None, 100), (4, 5)])
def test_the_temperature_does_not_run_away_at_the_rate_of_adapters(
    rank: int | None, factor: int
) -> None:
    train = TrainConfig(lora_rank=rank, learn_temperature=True, warmup=0, learning_rate=1e-3)
    _, adamw = optimizer.of(train, setup.Schedule(10, 0), layers=1, frozen=0)
    params = {LOG_TEMPERATURE: np.float32(0)}
    updates, _ = adamw.update({LOG_TEMPERATURE: np.float32(1)}, adamw.init(params), params)
    np.testing.assert_allclose(updates[LOG_TEMPERATURE], -factor * 1e-3, rtol=1e-3)


def test_layers_that_stay_have_no_adapters() -> None:
    params = {
        "shared": {
            "bert": {f"layer_{n}": {"output": {"kernel": np.ones((8, 6))}} for n in range(12)}
        }
    }
    found = lora.with_adapters(params, rank=2, seed=0, first_layer=9)[lora.LORA]["shared"]["bert"]
    assert sorted(found) == ["layer_10", "layer_11", "layer_9"]
    assert not np.array_equal(*(found[f"layer_{n}"]["output"]["a"] for n in (9, 10)))


def test_a_rank_as_wide_as_the_model_is_refused() -> None:
    setup.check_rank(8, [SHAPE])
    with pytest.raises(InputError, match=r"lora_rank is 9, but the model's width is 16; .*\(8\)"):
        setup.check_rank(9, [SHAPE])


def test_runs_without_adapters_are_the_runs_they_were(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    config, workdir = nq_small_workdir
    settings = setup.origin(config, workdir, "start", None)["settings"]["train"]
    assert "lora_rank" not in settings
    config = asked(config, Path("init"))
    settings = setup.origin(config, workdir, "start", None)["settings"]["train"]
    assert settings["lora_rank"] == 4
