"""The training stage: it learns, resumes bit for bit, refuses what does not belong, and exports what it trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, ModelConfig, TrainConfig
from dpr_jax.errors import InputError
from dpr_jax.training import checkpoint, loop


@pytest.fixture
def run_dir(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> tuple[Config, WorkDir]:
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
    return safetensors.numpy.load_file(
        workdir.model / f"{side}_encoder" / "model.safetensors"
    )


class Killed(Exception):
    """Stands for SIGKILL in the middle of a run."""


def test_a_killed_run_resumes_bit_for_bit(
    run_dir: tuple[Config, WorkDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
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
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, total_steps=2)
    )
    loop.run(config, workdir)
    before = (workdir.model / "manifest.json").stat().st_mtime_ns
    loop.run(config, workdir)
    assert (workdir.model / "manifest.json").stat().st_mtime_ns == before
    assert "train: up to date" in capfd.readouterr().err

    other = dataclasses.replace(
        config, train=dataclasses.replace(config.train, learning_rate=2e-3)
    )
    with pytest.raises(InputError, match=r"train.learning_rate was 0.001, is 0.002"):
        loop.run(other, workdir)
    quieter = dataclasses.replace(
        config, train=dataclasses.replace(config.train, log_every_steps=5)
    )
    loop.run(quieter, workdir)  # changes no weight


def test_diverging_training_stops_and_names_the_step(
    run_dir: tuple[Config, WorkDir],
) -> None:
    config, workdir = run_dir
    wild = dataclasses.replace(config.train, learning_rate=1e30, clip_norm=0)
    with pytest.raises(InputError, match="diverged at step [234]"):
        loop.run(dataclasses.replace(config, train=wild), workdir)
    assert not workdir.model.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "12, which 8 devices cannot share evenly"),
        ({"chunk_size": 2}, "2, which does not divide the 1 questions of a device"),
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
            symmetric=True,
            matryoshka_widths=(8, 16),
            chunk_size=1,
        ),
    )
    loop.run(config, workdir)
    one, other = weights(workdir, "question"), weights(workdir, "passage")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    temperatures = lines(workdir, "temperature")
    assert temperatures[1] == pytest.approx(0.05)
    # Adam's first update is the learning rate, half of the peak, in the logarithm
    assert abs(np.log(temperatures[2] / 0.05)) == pytest.approx(5e-4, rel=0.01)


def test_a_damaged_checkpoint_is_named(run_dir: tuple[Config, WorkDir]) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, total_steps=2)
    )
    loop.run(config, workdir)
    shutil.rmtree(workdir.model)
    state = workdir.checkpoints / "steps" / "2" / "state"
    for path in state.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoint .*steps/2 does not load"):
        loop.run(config, workdir)


def test_differences_name_the_keys() -> None:
    old = {"settings": {"train": {"a": 1, "b": [1, 2]}}, "inputs": {"data": "x"}}
    new = {"settings": {"train": {"a": 2, "b": [1, 2]}}, "inputs": {"data": "y"}}
    assert checkpoint._differences(old, new) == [
        "inputs.data was 'x', is 'y'",
        "train.a was 1, is 2",
    ]
