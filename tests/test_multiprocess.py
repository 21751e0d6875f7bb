"""Several real processes, started by launch/local.sh: they train as one does, to rounding, and
one's error ends all of them.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import quick
import tiny

from dpr_jax import config_file, errors, recipes
from dpr_jax.config import Config, ModelConfig, TrainConfig
from dpr_jax.training import loop
from dpr_jax.workdir import WorkDir, open_workdir

ROOT = Path(__file__).resolve().parents[1]
DPR = "from dpr_jax.cli import main; main()"
# the same, and the states of the optimizer are kept
UNFINISHED = (
    """
from dpr_jax.training import checkpoint

checkpoint.drop_steps = lambda folder: None
"""
    + DPR
)

# the same, and process 0 alone is asked to stop when it writes the metrics of update 2
STOPPED = (
    """
import os, signal
from dpr_jax.training.record import Record

write = Record.write

def write_and_ask(record, step, values):
    write(record, step, values)
    if step == 2 and os.environ["DPR_PROCESS_ID"] == "0":
        os.kill(os.getpid(), signal.SIGTERM)

Record.write = write_and_ask
"""
    + DPR
)

# the same, and process 1 is killed when it reads the fourth batch, saved step or not
KILLED = UNFINISHED.replace(
    "from dpr_jax.cli",
    """
import os, signal
from dpr_jax.training import loop

stream = loop.batches.stream

def killing(*args, **settings):
    for number, batch in enumerate(stream(*args, **settings)):
        if number == 3 and os.environ["DPR_PROCESS_ID"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

loop.batches.stream = killing
from dpr_jax.cli""",
)

# the same, and process 1 alone meets an error after update 2
FAILED = (
    """
import os
from dpr_jax.errors import InputError
from dpr_jax.training import loop
from dpr_jax.workdir import WorkDir, open_workdir

stream = loop.batches.stream

def failing(*args, **settings):
    for number, batch in enumerate(stream(*args, **settings)):
        if number == 2 and os.environ["DPR_PROCESS_ID"] == "1":
            raise InputError("the third batch cannot be read")
        yield batch

loop.batches.stream = failing
"""
    + DPR
)

# writes the send buffers of this process's connections, in bytes, to a file of its number in the
# given folder, after a small reduce-scatter between the processes (to a file: Gloo writes to the
# output without regard to lines)
BUFFERS = """
import json, os, pathlib, socket, sys
import jax, numpy as np
from dpr_jax import joining, parallel

joining.initialize()
spmd = parallel.spmd("pmap")
scatter = spmd.map(lambda _, sent: jax.lax.psum_scatter(sent, parallel.AXIS, tiled=True))
jax.block_until_ready(scatter(None, spmd.shard(np.ones((2 * 48, 384), np.float32))))
parallel.barrier("done")
buffers = []
for name in os.listdir("/proc/self/fd"):
    try:
        own = socket.socket(fileno=os.dup(int(name)))
        own.getpeername()
    except OSError:  # no socket, or one that listens
        continue
    if own.family in (socket.AF_INET, socket.AF_INET6):
        buffers.append(own.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
file = pathlib.Path(sys.argv[1], os.environ["DPR_PROCESS_ID"])
file.write_text(json.dumps(buffers))
"""


def write_config(
    tmp_path: Path, base: Config, spmd: str, total_steps: int = 4, *, shard_optimizer: bool = False
) -> Path:
    """A config file of a tiny model without dropout."""
    tiny.write(tmp_path / "init", layers=1)
    config = dataclasses.replace(
        base,
        model=ModelConfig(
            init=str(tmp_path / "init"),
            pooling="mean",
            normalize=True,
            max_question_tokens=16,
            max_passage_tokens=32,
        ),
        train=TrainConfig(
            batch_size=8,
            total_steps=total_steps,
            learning_rate=1e-3,
            warmup=0.25,
            temperature=0.05,
            dropout=0.0,
            spmd=spmd,
            shard_optimizer=shard_optimizer,
            log_every_steps=1,
            checkpoint_every_steps=2,
            validation_negatives=2,
        ),
    )
    path = tmp_path / "config.py"
    path.write_text(f"from dpr_jax.config import *\n\nconfig = {config!r}\n")
    return path


def in_two_processes(
    config_file: Path,
    workdir: WorkDir,
    logs: Path,
    *args: str,
    code: str = DPR,
    status: int = 0,
) -> None:
    """`dpr` in two new processes, which end with `status`."""
    result = twice(code, logs, *args, str(config_file), "--workdir", str(workdir.root))
    assert result.returncode == status, result.stdout + result.stderr


def twice(
    code: str, logs: Path, *args: str, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """The Python code in two new processes of two simulated devices each."""
    command = [str(ROOT / "launch" / "local.sh"), "-n", str(processes), "--cpu-devices", "2"]
    command += ["--log-dir", str(logs), "--", sys.executable, "-c", code, *args]
    return subprocess.run(
        command,
        check=False,
        env=quick.ONE_DEVICE | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def copied(prepared: WorkDir, root: Path) -> WorkDir:
    """A work directory with prepared and mined data."""
    shutil.copytree(prepared.root, root, symlinks=True)
    return open_workdir(root)


def lines(workdir: WorkDir) -> dict[int, dict[str, float]]:
    """What metrics.jsonl says of each step, validation included."""
    merged: dict[int, dict[str, float]] = {}
    checkpoints = workdir.retriever("trained").current("checkpoints")
    for line in (checkpoints / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["step"], {}).update(row)
    return merged


def assert_same_curve(one: WorkDir, other: WorkDir) -> None:
    assert lines(one).keys() == lines(other).keys()
    for step, row in lines(one).items():
        for name in ("loss", "accuracy", "grad_norm", "validation_nll"):
            if name in row:
                found = lines(other)[step][name]
                np.testing.assert_allclose(found, row[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("spmd", "split"),
    [
        ("pmap", False),
        pytest.param("shard_map", False, marks=pytest.mark.slow),
        pytest.param("pmap", True, marks=pytest.mark.slow),
        pytest.param("shard_map", True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(
    spmd: str,
    split: bool,
    tmp_path: Path,
    nq_small_workdir: tuple[Config, WorkDir],
    capfd: pytest.CaptureFixture[str],
) -> None:
    base, prepared = nq_small_workdir
    file = write_config(tmp_path, base, spmd, shard_optimizer=split)
    config = config_file.load(file)
    one, two = (copied(prepared, tmp_path / name) for name in ("one", "two"))
    loop.run(config, one.retriever("trained"))  # this process, eight devices
    result = twice(KILLED, tmp_path / "lost", "train", str(file), "--workdir", str(two.root))
    assert result.returncode in (75, 137), result.stdout + result.stderr  # whichever ended first
    said = (tmp_path / "lost" / "process-0.log").read_text()
    assert said.count("dpr: process 1 (") == 1 and "ended without a word" in said
    assert "Traceback" not in said and "***" not in said
    in_two_processes(file, two, tmp_path / "logs", "train", code=UNFINISHED)
    assert sorted(lines(one)) == [1, 2, 3, 4]
    assert_same_curve(one, two)

    # what two processes saved, one process with other devices goes on from
    trained = two.retriever("trained")
    shutil.rmtree(trained.current("checkpoints") / "steps" / "4")
    shutil.rmtree(trained.current("model"))
    (trained.current("checkpoints") / "finished.json").unlink()
    loop.run(config, trained)
    assert "resuming after step 2" in capfd.readouterr().err
    assert_same_curve(one, two)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_connections_between_processes_keep_a_large_send_buffer(tmp_path: Path) -> None:
    """Gloo shrinks it to the largest message of a reduce-scatter, and every all-reduce afterwards
    crawls.
    """
    result = twice(BUFFERS, tmp_path / "logs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    for number in range(2):
        sizes = json.loads((tmp_path / str(number)).read_text())
        assert len(sizes) > 2 and min(sizes) > 80_000, sizes


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step_when_one_is_asked(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    base, prepared = nq_small_workdir
    file = write_config(tmp_path, base, "pmap", total_steps=5000)
    workdir = copied(prepared, tmp_path / "stopped")
    in_two_processes(
        file, workdir, tmp_path / "logs", "train", code=STOPPED, status=errors.RUN_AGAIN
    )
    last = max(lines(workdir))
    assert 2 < last < 5000
    checkpoints = workdir.retriever("trained").current("checkpoints")
    assert (checkpoints / "steps" / str(last)).exists()
    for number in range(2):
        said = (tmp_path / "logs" / f"process-{number}.log").read_text()
        assert f"stopped after step {last}; the same command goes on" in said


def test_an_error_of_process_0_ends_all_in_a_line(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    """JAX would have process 0 wait five minutes for the others, and print stack traces."""
    base, _ = nq_small_workdir
    file = write_config(tmp_path, base, "pmap")
    workdir = open_workdir(tmp_path / "empty")
    recipes.store_workdir(workdir, base)  # begun, and nothing is prepared
    logs, start_s = tmp_path / "logs", time.monotonic()
    in_two_processes(file, workdir, logs, "index", status=errors.USER_ERROR)
    assert time.monotonic() - start_s < 200
    for number, wanted in enumerate(
        ("has no data yet; run `dpr prepare", "process 0 ended with an error")
    ):
        said = (logs / f"process-{number}.log").read_text().splitlines()
        [line] = [line for line in said if not line.startswith("[Gloo]")]
        assert line.startswith("dpr: ") and wanted in line


def test_a_process_that_fails_alone_leaves_at_once(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    """In the middle of training, where the other waits for its part; JAX would have it wait for the
    other. Then the launcher ends that one.
    """
    base, prepared = nq_small_workdir
    file = write_config(tmp_path, base, "pmap", total_steps=5000)
    workdir = copied(prepared, tmp_path / "failing")
    logs, start_s = tmp_path / "logs", time.monotonic()
    in_two_processes(file, workdir, logs, "train", code=FAILED, status=errors.USER_ERROR)
    assert time.monotonic() - start_s < 200
    assert "dpr: the third batch cannot be read" in (logs / "process-1.log").read_text()


def test_the_pipeline_in_two_processes(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    """Every stage, on one process or on all, and a second run that finds nothing to do."""
    base, _ = nq_small_workdir
    file = write_config(tmp_path, base, "pmap", total_steps=2)
    workdir = open_workdir(tmp_path / "two")
    in_two_processes(file, workdir, tmp_path / "logs", "pipeline")
    for name in ("bm25", "untrained", "trained", "hybrid"):
        assert (workdir.runs("test") / f"{name}.trec").exists()
    assert (workdir.metrics / "report.html").exists()
    left = ("lease.json", ".partial", ".building")
    assert not [path for path in workdir.root.rglob("*") if path.name.endswith(left)]
    before = {path: path.lstat().st_mtime_ns for path in workdir.root.rglob("*.npy")}
    in_two_processes(file, workdir, tmp_path / "again", "pipeline")
    assert {path: path.lstat().st_mtime_ns for path in workdir.root.rglob("*.npy")} == before
