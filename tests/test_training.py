"""The training stage: it learns, resumes bit for bit, refuses what does not belong, and exports
what it trained.
"""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, MineConfig, ModelConfig, TrainConfig
from dpr_jax.data import prepare, store
from dpr_jax.errors import InputError, Preempted
from dpr_jax.training import checkpoint, loop, order, validation
from dpr_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("own_programs")


@pytest.fixture
def run_dir(tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]) -> tuple[Config, WorkDir]:
    """A work directory with prepared data and a config of a tiny model, eight devices."""
    config, prepared = nq_small_workdir
    tiny.write(tmp_path / "init")
    workdir = artifacts.open_workdir(tmp_path / "run", config.name)
    shutil.copytree(prepared.data, workdir.data)
    config = dataclasses.replace(
        config,
        model=ModelConfig(
            init=str(tmp_path / "init"),
            pooling="mean",
            normalize=True,
            max_question_tokens=16,
            max_passage_tokens=32,
        ),
        train=TrainConfig(
            batch_size=8,
            total_steps=6,
            learning_rate=1e-3,
            warmup_steps=2,
            temperature=0.05,
            log_every_steps=1,
            checkpoint_every_steps=2,
            validation_hard_negatives=2,
            validation_negatives=0,
        ),
    )
    return config, workdir


def lines(workdir: WorkDir, key: str = "loss") -> dict[int, float]:
    text = (workdir.checkpoints / "metrics.jsonl").read_text()
    rows = map(json.loads, text.splitlines())
    return {row["step"]: row[key] for row in rows if key in row}


def weights(workdir: WorkDir, side: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir.model / f"{side}_encoder" / "model.safetensors")


class Killed(Exception):
    """Stands for SIGKILL in the middle of a run."""


@pytest.mark.parametrize("pack_rows", [0, 1])
def test_a_killed_run_resumes_bit_for_bit(
    run_dir: tuple[Config, WorkDir],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pack_rows: int,
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, pack_rows=pack_rows)
    )
    broken = artifacts.open_workdir(tmp_path / "broken", config.name)
    shutil.copytree(workdir.data, broken.data)
    loop.run(config, workdir)

    seen = 0
    stream = loop.batches.stream

    def killing(*args: object, **kwargs: object):
        nonlocal seen
        for batch in stream(*args, **kwargs):
            seen += 1
            if seen in (4, 7):  # after the checkpoint of step 2, then that of step 4
                raise Killed
            yield batch

    monkeypatch.setattr(loop.batches, "stream", killing)
    for _ in range(2):
        with pytest.raises(Killed):
            loop.run(config, broken)
    loop.run(config, broken)

    assert lines(broken) == lines(workdir)
    assert sorted(lines(workdir)) == [1, 2, 3, 4, 5, 6]
    assert lines(broken, "validation_nll") == lines(workdir, "validation_nll")
    for side in ("question", "passage"):
        one, other = weights(workdir, side), weights(broken, side)
        assert all(np.array_equal(one[name], other[name]) for name in one)

    # the towers have moved, each its own way, from a common start
    start = safetensors.numpy.load_file(tmp_path / "init" / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    moved = [weights(workdir, side)[name] for side in ("question", "passage")]
    assert not np.array_equal(moved[0], start[name])
    assert not np.array_equal(moved[0], moved[1])


def test_finished_training_is_not_done_again_and_other_settings_are_refused(
    run_dir: tuple[Config, WorkDir], capfd: pytest.CaptureFixture[str]
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, total_steps=2))
    loop.run(config, workdir)
    before = (workdir.model / "manifest.json").stat().st_mtime_ns
    loop.run(config, workdir)
    assert (workdir.model / "manifest.json").stat().st_mtime_ns == before
    assert "train: up to date" in capfd.readouterr().err

    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=2e-3))
    with pytest.raises(InputError, match=r"train.learning_rate was 0.001, is 0.002"):
        loop.run(other, workdir)
    quieter = dataclasses.replace(
        config, train=dataclasses.replace(config.train, log_every_steps=5)
    )
    loop.run(quieter, workdir)  # changes no weight

    # checkpoints from before there was a setting had its default
    label = workdir.checkpoints / "settings.json"
    settings = artifacts.read_json(label)
    del settings["settings"]["train"]["gather"]
    artifacts.write_json(label, settings)
    loop.run(config, workdir)
    alone = dataclasses.replace(config, train=dataclasses.replace(config.train, gather=False))
    with pytest.raises(InputError, match=r"train.gather was True, is False"):
        loop.run(alone, workdir)


def test_diverging_training_stops_and_names_step_and_questions(
    run_dir: tuple[Config, WorkDir],
) -> None:
    config, workdir = run_dir
    wild = dataclasses.replace(config.train, learning_rate=1e30, clip_norm=0)
    with pytest.raises(InputError, match="diverged at step [234]") as caught:
        loop.run(dataclasses.replace(config, train=wild), workdir)
    assert not workdir.model.exists()
    named = str(caught.value).split("with ids ")[1].split(";")[0].split(", ")
    known = {one.id for one in store.open_questions(workdir, "train", mined=True)}
    assert len(named) == 8
    assert known.issuperset(named)


def test_a_loss_that_stays_far_too_high_ends_the_run_and_takes_no_checkpoint_with_it(
    run_dir: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
    step = loop.train_step

    def exploding(state: TrainState, *args: object, **kwargs: object) -> object:
        done, metrics = step(state, *args, **kwargs)
        loss = metrics["loss"] * jnp.where(state.step < 10, 1, 1000)
        return done, metrics | {"loss": loss}

    monkeypatch.setattr(loop, "train_step", exploding)
    train = dataclasses.replace(config.train, total_steps=30, checkpoint_every_steps=1, dropout=0.0)
    config = dataclasses.replace(config, train=train)
    ids = order.question_ids(store.open_questions(workdir, "train", mined=True), config.seed, 15, 8)
    for _ in range(2):  # the same command again knows what was logged before
        with pytest.raises(InputError, match="diverged at step 15 ") as caught:
            loop.run(config, workdir)
        assert f"with ids {ids};" in str(caught.value)
        assert "try a lower train.learning_rate" in str(caught.value)
        kept = {int(path.name) for path in (workdir.checkpoints / "steps").iterdir()}
        assert kept == {9, 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "12, which 8 devices cannot share evenly"),
        ({"matryoshka_widths": (8, 32)}, "names 32, but whole vectors have 32 numbers"),
    ],
)
def test_what_does_not_divide_is_refused(
    run_dir: tuple[Config, WorkDir], changes: dict[str, object], message: str
) -> None:
    config, workdir = run_dir
    odd = dataclasses.replace(config.train, **changes)
    with pytest.raises(InputError, match=message):
        loop.run(dataclasses.replace(config, train=odd), workdir)


def test_several_training_files_take_turns(run_dir: tuple[Config, WorkDir], tmp_path: Path) -> None:
    config, _ = run_dir
    rows = json.loads(Path(config.data.train).read_text("utf-8"))
    names = (str(tmp_path / "first.json"), str(tmp_path / "second.json"))
    for name, part in zip(names, (rows[:20], rows[20:]), strict=True):
        Path(name).write_text(json.dumps(part), encoding="utf-8")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train=names, dev="", test=""),
        train=dataclasses.replace(config.train, total_steps=2, upsampling=(1, 3)),
        mine=MineConfig(enabled=False),
    )
    workdir = artifacts.open_workdir(tmp_path / "mixed", config.name)
    prepare.run(config, workdir)
    loop.run(config, workdir)
    assert sorted(lines(workdir)) == [1, 2]
    other = dataclasses.replace(config.train, upsampling=(2, 1))
    with pytest.raises(InputError, match=r"train.upsampling was \[1, 3\], is \[2, 1\]"):
        loop.run(dataclasses.replace(config, train=other), workdir)


def test_shared_towers_stay_equal_whatever_the_loss(
    run_dir: tuple[Config, WorkDir],
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, shared_towers=True),
        train=dataclasses.replace(
            config.train,
            total_steps=2,
            learn_temperature=True,
            temperature_rate=10.0,
            symmetric=True,
            matryoshka_widths=(8, 16),
            chunk_size=1,
            mask_answers="string",
        ),
    )
    loop.run(config, workdir)
    one, other = weights(workdir, "question"), weights(workdir, "passage")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    temperatures = lines(workdir, "temperature")
    assert temperatures[1] == pytest.approx(0.05)
    # Adam's first update is the learning rate, half of the peak, ten times that in the logarithm
    assert abs(np.log(temperatures[2] / 0.05)) == pytest.approx(5e-3, rel=0.01)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run_dir: tuple[Config, WorkDir], capfd: pytest.CaptureFixture[str]
) -> None:
    config, workdir = run_dir
    loop.run(config, workdir)
    curve, trained = lines(workdir), weights(workdir, "passage")
    shutil.rmtree(workdir.model)
    change_a_byte_of_the_weights(workdir.checkpoints / "steps" / "6")
    loop.run(config, workdir)
    said = capfd.readouterr().err
    assert "steps/6 is damaged" in said
    assert "damaged-6, going on from step 4" in said
    assert lines(workdir) == curve
    again = weights(workdir, "passage")
    assert all(np.array_equal(trained[name], again[name]) for name in trained)

    shutil.rmtree(workdir.model)
    for path in (workdir.checkpoints / "steps").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"steps/6 .* no earlier one can be read"):
        loop.run(config, workdir)


def change_a_byte_of_the_weights(step: Path) -> None:
    """Changes what only a checksum of the arrays can tell: a byte in the middle of the largest
    file.
    """
    largest = max(
        (path for path in step.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)


def test_sigterm_saves_and_the_same_command_goes_on(
    run_dir: tuple[Config, WorkDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, learn_temperature=True)
    )
    stopped = artifacts.open_workdir(tmp_path / "stopped", config.name)
    shutil.copytree(workdir.data, stopped.data)
    loop.run(config, workdir)

    stream = loop.batches.stream

    def stopping(*args: object, **kwargs: object):
        for number, batch in enumerate(stream(*args, **kwargs), 1):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop.batches, "stream", stopping)
        with pytest.raises(Preempted, match="after step 3"):
            loop.run(config, stopped)
    assert (stopped.checkpoints / "steps" / "3").exists()
    loop.run(config, stopped)
    assert lines(stopped) == lines(workdir)
    one, other = weights(workdir, "question"), weights(stopped, "question")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_best_by_validation_is_kept_and_exported(
    run_dir: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train,
            total_steps=12,
            checkpoint_every_steps=2,
            validate_every_steps=2,
            best_metric="accuracy",
            patience=3,
        ),
    )
    accuracies = {2: 0.2, 4: 0.9, 6: 0.9, 8: 0.3, 10: 0.4}
    judged: list[int] = []

    def told(_: object, params: object, **kwargs: object) -> validation.Validation:
        judged.append(2 + 2 * len(judged))
        accuracy = accuracies.get(judged[-1], 0.0)
        return validation.Validation(1.0, accuracy, 1.0, 0.0, 0.0, 9)

    monkeypatch.setattr(loop.validation, "validate", told)
    loop.run(config, workdir)
    assert judged == [2, 4, 6, 8, 10]  # three after the best
    steps = sorted(int(path.name) for path in (workdir.checkpoints / "steps").iterdir())
    assert steps == [4, 8, 10]
    manifest = artifacts.read_json(workdir.model / "manifest.json")
    assert manifest["step"] == 4
    assert manifest["validation"]["accuracy"] == 0.9

    # the last one instead: not trained again, not even one more step
    last = dataclasses.replace(config.train, export="last")
    best_weights = weights(workdir, "question")
    loop.run(dataclasses.replace(config, train=last), workdir)
    assert judged == [2, 4, 6, 8, 10]
    assert artifacts.read_json(workdir.model / "manifest.json")["step"] == 10
    other = weights(workdir, "question")
    assert not all(np.array_equal(best_weights[n], other[n]) for n in other)


def test_metrics_say_how_fast_and_a_trace_is_written(
    run_dir: tuple[Config, WorkDir],
) -> None:
    config, workdir = run_dir
    profiled = dataclasses.replace(config.train, profile_steps=2)
    loop.run(dataclasses.replace(config, train=profiled), workdir)
    rows = [
        json.loads(line)
        for line in (workdir.checkpoints / "metrics.jsonl").read_text().splitlines()
    ]
    timed = [row for row in rows if "tokens_per_s" in row]
    # a checkpoint is written every other step, which is then read at once with the one before
    assert [row["step"] for row in timed] == [3, 5]
    for row in timed:
        assert 0 < row["padding_share"] < 1
        assert row["tokens_per_s"] > row["examples_per_s"] > 0
        assert row["data_wait_s"] >= 0
        assert row["compute_s"] >= 0
    assert list((workdir.checkpoints / "profile").rglob("*.xplane.pb"))


def test_differences_name_the_keys() -> None:
    old = {"settings": {"train": {"a": 1, "b": [1, 2]}}, "inputs": {"data": "x"}}
    new = {"settings": {"train": {"a": 2, "b": [1, 2]}}, "inputs": {"data": "y"}}
    assert checkpoint._differences(old, new) == [
        "inputs.data was 'x', is 'y'",
        "train.a was 1, is 2",
    ]
