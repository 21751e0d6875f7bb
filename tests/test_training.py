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

from dpr_jax import artifacts, parallel
from dpr_jax.config import Config, MineConfig, ModelConfig, TrainConfig
from dpr_jax.config_rules import validate
from dpr_jax.data import prepare, store
from dpr_jax.errors import InputError, Preempted
from dpr_jax.training import checkpoint, loop, order, program, setup, validation
from dpr_jax.training.step import TrainState
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

pytestmark = pytest.mark.usefixtures("own_programs")


@pytest.fixture
def run_dir(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> tuple[Config, RetrieverDir]:
    """A work directory with prepared data and a config of a tiny model, eight devices."""
    config, prepared = nq_small_workdir
    tiny.write(tmp_path / "init", layers=1)
    workdir = copied(prepared, tmp_path / "run")
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
            warmup=1 / 3,
            temperature=0.05,
            dropout=0.0,  # half of compiling; on where resuming has to draw it again
            log_every_steps=1,
            checkpoint_every_steps=2,
            validation_negatives=2,
        ),
    )
    return config, workdir


def copied(prepared: WorkDir, root: Path) -> RetrieverDir:
    """The retriever of a work directory of its own, with prepared and mined data."""
    shutil.copytree(prepared.root, root, symlinks=True)
    return open_workdir(root).retriever("trained")


def lines(workdir: RetrieverDir, key: str = "loss") -> dict[int, float]:
    text = (workdir.current("checkpoints") / "metrics.jsonl").read_text()
    rows = map(json.loads, text.splitlines())
    return {row["step"]: row[key] for row in rows if key in row}


def mined(target: RetrieverDir) -> store.Questions:
    return store.open_questions(target.workdir, "train", target.current("mined"))


def weights(workdir: RetrieverDir, side: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(
        workdir.current("model") / f"{side}_encoder" / "model.safetensors"
    )


class Killed(Exception):
    """Stands for SIGKILL in the middle of a run."""


@pytest.mark.parametrize(
    ("platform", "changed"),
    [
        ("cpu", {}),
        ("cpu", {"pack_rows": 1}),
        # as on TPUs, with their forms and bits of the device's generator
        ("tpu", {"shard_optimizer": True, "attention_dropout": 0.2}),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(
    run_dir: tuple[Config, RetrieverDir],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    changed: dict,
) -> None:
    config, workdir = run_dir
    train = dataclasses.replace(config.train, dropout=0.1, **changed)
    config = dataclasses.replace(config, train=train)
    monkeypatch.setattr(parallel, "platform_of", lambda devices: platform)
    broken = copied(workdir.workdir, tmp_path / "broken")
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
    name = "encoder.layer.0.output.dense.weight"
    moved = [weights(workdir, side)[name] for side in ("question", "passage")]
    assert not np.array_equal(moved[0], start[name])
    assert not np.array_equal(moved[0], moved[1])


def test_finished_training_is_not_done_again_and_other_settings_have_another_folder(
    run_dir: tuple[Config, RetrieverDir], capfd: pytest.CaptureFixture[str]
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, total_steps=2))
    loop.run(config, workdir)
    model, checkpoints = workdir.current("model"), workdir.current("checkpoints")
    before = (model / "manifest.json").stat().st_mtime_ns
    loop.run(config, workdir)
    assert (model / "manifest.json").stat().st_mtime_ns == before
    assert "train: up to date" in capfd.readouterr().err
    quieter = dataclasses.replace(
        config, train=dataclasses.replace(config.train, log_every_steps=5)
    )
    loop.run(quieter, workdir)  # changes no weight
    assert workdir.current("checkpoints") == checkpoints

    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=2e-3))
    loop.run(other, workdir)
    assert workdir.current("checkpoints") != checkpoints
    assert (model / "manifest.json").stat().st_mtime_ns == before
    loop.run(config, workdir)  # and back, without training
    assert workdir.current("model") == model


def test_a_finished_run_keeps_weights_and_no_state_of_adamw(
    run_dir: tuple[Config, RetrieverDir],
) -> None:
    config, target = run_dir
    loop.run(config, target)
    folder = target.current("checkpoints")
    assert not (folder / "steps").exists()
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events"))
    wanted = ["chunk.json", "finished.json", "metrics.jsonl", "settings.json", "weights-6"]
    assert [name for name in names if name in wanted] == wanted
    kept = folder / "weights-6" / "question_encoder" / "model.safetensors"
    model = target.current("model") / "question_encoder" / "model.safetensors"
    assert kept.samefile(model)  # hard-linked: no byte twice


def test_a_run_killed_after_its_export_drops_its_states_at_the_next_start(
    run_dir: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = run_dir

    def killed(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "drop_steps", killed)
        with pytest.raises(Killed):
            loop.run(config, target)
    steps = target.current("checkpoints") / "steps"
    assert steps.exists()
    loop.run(config, target)
    assert not steps.exists()


def test_what_is_refused_leaves_nothing(run_dir: tuple[Config, RetrieverDir]) -> None:
    """Batch 64 on 60 questions says "make it smaller", and a smaller one then trains."""
    config, target = run_dir
    large = dataclasses.replace(config.train, batch_size=64)
    before = sorted(target.root.rglob("*"))
    with pytest.raises(InputError, match="train.batch_size is 64, but .* only 60 training"):
        loop.run(dataclasses.replace(config, train=large), target)
    assert sorted(target.root.rglob("*")) == before
    loop.run(config, target)


def test_steps_by_epochs_by_number_and_by_default() -> None:
    def steps(questions: int, **changes: object) -> tuple[int, int]:
        return tuple(setup.schedule(TrainConfig(batch_size=10, **changes), questions))

    assert steps(95, epochs=2.0) == (19, 2)
    assert steps(95, total_steps=40, warmup=0.25) == (40, 10)
    assert steps(95) == (95, 10)
    assert steps(10**6) == (1000, 100)
    assert steps(95, total_steps=1, warmup=0.9) == (1, 0)
    with pytest.raises(InputError, match="train.epochs is 2; it must be None beside"):
        validate(Config(train=TrainConfig(total_steps=3, epochs=2)))


def test_diverging_training_stops_and_names_step_and_questions(
    run_dir: tuple[Config, RetrieverDir],
) -> None:
    config, workdir = run_dir
    wild = dataclasses.replace(config.train, learning_rate=1e30, clip_norm=None)
    with pytest.raises(InputError, match="diverged at step [234]") as caught:
        loop.run(dataclasses.replace(config, train=wild), workdir)
    assert workdir.find("model") is None
    named = str(caught.value).split("with ids ")[1].split(";")[0].split(", ")
    known = {one.id for one in mined(workdir)}
    assert len(named) == 8
    assert known.issuperset(named)


def test_a_loss_that_stays_far_too_high_ends_the_run_and_takes_no_checkpoint_with_it(
    run_dir: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
    step = program.train_step

    def exploding(state: TrainState, *args: object, **kwargs: object) -> object:
        done, metrics = step(state, *args, **kwargs)
        loss = metrics["loss"] * jnp.where(state.step < 10, 1, 1000)
        return done, metrics | {"loss": loss}

    monkeypatch.setattr(program, "train_step", exploding)
    train = dataclasses.replace(config.train, total_steps=30, checkpoint_every_steps=1)
    config = dataclasses.replace(config, train=train)
    ids = order.question_ids(mined(workdir), config.seed, 15, 8)
    for _ in range(2):  # the same command again knows what was logged before
        with pytest.raises(InputError, match="diverged at step 15 ") as caught:
            loop.run(config, workdir)
        assert f"with ids {ids};" in str(caught.value)
        assert "try a lower train.learning_rate" in str(caught.value)
        kept = {int(path.name) for path in (workdir.current("checkpoints") / "steps").iterdir()}
        assert kept == {9, 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "12, which 8 devices cannot share evenly"),
        ({"matryoshka_widths": (8, 32)}, "names 32, but whole vectors have 32 numbers"),
    ],
)
def test_what_does_not_divide_is_refused(
    run_dir: tuple[Config, RetrieverDir], changes: dict[str, object], message: str
) -> None:
    config, workdir = run_dir
    odd = dataclasses.replace(config.train, **changes)
    with pytest.raises(InputError, match=message):
        loop.run(dataclasses.replace(config, train=odd), workdir)


def test_several_training_files_take_turns(
    run_dir: tuple[Config, RetrieverDir], tmp_path: Path
) -> None:
    config, _ = run_dir
    rows = json.loads(Path(config.data.train).read_text("utf-8"))
    names = (str(tmp_path / "first.json"), str(tmp_path / "second.json"))
    for name, part in zip(names, (rows[:20], rows[20:]), strict=True):
        Path(name).write_text(json.dumps(part), encoding="utf-8")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train=names, dev=None, test=(), test_qrels=None, dev_qrels=None
        ),
        train=dataclasses.replace(config.train, total_steps=2, upsampling=(1, 3)),
        mine=MineConfig(enabled=False),
    )
    workdir = open_workdir(tmp_path / "mixed").retriever("trained")
    prepare.run(config, workdir.workdir)
    loop.run(config, workdir)
    assert sorted(lines(workdir)) == [1, 2]


def test_shared_towers_stay_equal_whatever_the_loss(
    run_dir: tuple[Config, RetrieverDir],
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
            mask_answers="string",
        ),
    )
    loop.run(config, workdir)
    [_] = workdir.current("model").rglob("model.safetensors")  # one encoder, for both sides
    temperatures = lines(workdir, "temperature")
    assert temperatures[1] == pytest.approx(0.05)
    # Adam's first update is the learning rate, here the peak, a hundred times that in the logarithm
    assert abs(np.log(temperatures[2] / 0.05)) == pytest.approx(1e-1, rel=0.01)


def forget_the_end(target: RetrieverDir) -> None:
    """As if the run had been killed before it wrote its result."""
    shutil.rmtree(target.current("model"))
    (target.current("checkpoints") / "finished.json").unlink()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run_dir: tuple[Config, RetrieverDir],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, workdir = run_dir
    monkeypatch.setattr(loop.checkpoint, "drop_steps", lambda folder: None)
    loop.run(config, workdir)
    curve, trained = lines(workdir), weights(workdir, "passage")
    forget_the_end(workdir)
    change_a_byte_of_the_weights(workdir.current("checkpoints") / "steps" / "6")
    loop.run(config, workdir)
    said = capfd.readouterr().err
    assert "steps/6 is damaged" in said
    assert "damaged-6, going on from step 4" in said
    assert lines(workdir) == curve
    again = weights(workdir, "passage")
    assert all(np.array_equal(trained[name], again[name]) for name in trained)

    forget_the_end(workdir)
    for path in (workdir.current("checkpoints") / "steps").rglob("*"):
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
    run_dir: tuple[Config, RetrieverDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = run_dir
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, learn_temperature=True)
    )
    stopped = copied(workdir.workdir, tmp_path / "stopped")
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
    assert (stopped.current("checkpoints") / "steps" / "3").exists()
    loop.run(config, stopped)
    assert lines(stopped) == lines(workdir)
    one, other = weights(workdir, "question"), weights(stopped, "question")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_best_by_validation_is_kept_and_exported(
    run_dir: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
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

    def told(*_: object, **kwargs: object) -> validation.Validation:
        judged.append(2 + 2 * len(judged))
        accuracy = accuracies.get(judged[-1], 0.0)
        return validation.Validation(1.0, accuracy, 1.0, 0.0, 0.0, 9)

    monkeypatch.setattr(loop.validation, "validate", told)
    steps: list[int] = []
    drop = checkpoint.drop_steps

    def noting(folder: Path) -> None:
        steps.extend(sorted(int(path.name) for path in (folder / "steps").iterdir()))
        drop(folder)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "drop_steps", noting)
        loop.run(config, workdir)
    assert judged == [2, 4, 6, 8, 10]  # three after the best
    assert steps == [4, 8, 10]
    manifest = artifacts.read_json(workdir.current("model") / "manifest.json")
    assert manifest["step"] == 4
    assert manifest["validation"]["accuracy"] == 0.9


def test_metrics_say_how_fast_and_a_trace_is_written(
    run_dir: tuple[Config, RetrieverDir],
) -> None:
    config, workdir = run_dir
    profiled = dataclasses.replace(config.train, profile_steps=2)
    loop.run(dataclasses.replace(config, train=profiled), workdir)
    rows = [
        json.loads(line)
        for line in (workdir.current("checkpoints") / "metrics.jsonl").read_text().splitlines()
    ]
    timed = [row for row in rows if "tokens_per_s" in row]
    # a checkpoint is written every other step, which is then read at once with the one before
    assert [row["step"] for row in timed] == [3, 5]
    for row in timed:
        assert 0 < row["padding_share"] < 1
        assert row["tokens_per_s"] > row["examples_per_s"] > 0
        assert row["data_wait_s"] >= 0
        assert row["compute_s"] >= 0
    assert list((workdir.current("checkpoints") / "profile").rglob("*.xplane.pb"))
