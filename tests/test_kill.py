"""SIGKILL at random moments, in processes of their own: the run goes on to the same loss curve and
weights, bit for bit.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config, EncodeConfig, ModelConfig, TrainConfig
from dpr_jax.encoding import encode
from dpr_jax.index import embeddings
from dpr_jax.training import loop
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

ROOT = Path(__file__).resolve().parents[1]
# `dpr train` that is killed so many seconds after it wrote the metrics of an update
KILLED = """
import os, signal, sys, threading
from dpr_jax import cli
from dpr_jax.training.record import Record

step, delay_s = int(sys.argv[1]), float(sys.argv[2])
write = Record.write

def write_and_die(record, done, values):
    write(record, done, values)
    if done == step:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

Record.write = write_and_die
cli.run(["train", *sys.argv[3:]])
"""
# `dpr encode` that is killed when so many batches of vectors are computed
KILLED_ENCODING = """
import os, signal, sys
from dpr_jax import cli
from dpr_jax.model.embed import Embedder

left, vectors = int(sys.argv[1]), Embedder.vectors

def vectors_and_die(embedder, texts):
    global left
    for batch in vectors(embedder, texts):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        yield batch

Embedder.vectors = vectors_and_die
cli.run(["encode", *sys.argv[2:]])
"""


def run_and_kill(config_file: Path, workdir: RetrieverDir, step: int, delay_s: float) -> int:
    """The exit status of a run that dies `delay_s` after `step`, if it is not done before."""
    command = [sys.executable, "-c", KILLED, str(step), str(delay_s), str(config_file)]
    result = subprocess.run(
        [*command, "--workdir", str(workdir.root)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode


def copied(prepared: WorkDir, root: Path) -> RetrieverDir:
    shutil.copytree(prepared.root, root, symlinks=True)
    return open_workdir(root).retriever("trained")


def losses(workdir: RetrieverDir) -> list[tuple[int, float]]:
    text = (workdir.current("checkpoints") / "metrics.jsonl").read_text()
    rows = map(json.loads, text.splitlines())
    return [(row["step"], row.get("loss", row.get("validation_nll", 0.0))) for row in rows]


@pytest.mark.parametrize(
    ("kills", "total_steps"),
    [(2, 8), pytest.param(20, 40, marks=pytest.mark.slow)],
)
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    kills: int,
    total_steps: int,
    tmp_path: Path,
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    base, prepared = nq_small_workdir
    tiny.write(tmp_path / "init", layers=1)
    config = dataclasses.replace(
        base,
        model=ModelConfig(
            init=str(tmp_path / "init"), max_question_tokens=16, max_passage_tokens=32
        ),
        train=TrainConfig(
            batch_size=8,
            total_steps=total_steps,
            learning_rate=1e-3,
            warmup=0.2,
            log_every_steps=1,
            checkpoint_every_steps=1,
            validate_every_steps=3,
            validation_negatives=1,
        ),
    )
    config_file = tmp_path / "config.py"
    config_file.write_text(f"from dpr_jax.config import *\n\nconfig = {config!r}\n")
    unbroken, killed = (copied(prepared, tmp_path / name) for name in ("unbroken", "killed"))

    loop.run(config, unbroken)
    rng = random.Random(kills)
    for number in range(kills):
        # a little further each time; the delay falls into updates, validations and writing
        # checkpoints
        step = 1 + number * (total_steps - 2) // kills + rng.randrange(2)
        if run_and_kill(config_file, killed, step, rng.uniform(0, 0.3)) == 0:
            break
    loop.run(config, killed)

    assert losses(killed) == losses(unbroken)
    for side in ("question", "passage"):
        one, other = (
            workdir.current("model") / f"{side}_encoder" / "model.safetensors"
            for workdir in (unbroken, killed)
        )
        assert one.read_bytes() == other.read_bytes()


def test_encoding_killed_in_the_middle_of_a_shard_ends_in_the_same_bytes(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    base, prepared = nq_small_workdir
    tiny.write(tmp_path / "init")
    config = dataclasses.replace(
        base,
        model=ModelConfig(init=str(tmp_path / "init"), max_passage_tokens=32),
        encode=EncodeConfig(rows_per_shard=128, batch_tokens=64),
    )
    config_file = tmp_path / "config.py"
    config_file.write_text(f"from dpr_jax.config import *\n\nconfig = {config!r}\n")
    unbroken, killed = (copied(prepared, tmp_path / name) for name in ("unbroken", "killed"))
    for target in (unbroken, killed):
        recipes.store(target, config, source=str(tmp_path / "init"))
    encode.run(config, unbroken)

    arguments = [str(config_file), "--workdir", str(killed.root)]
    result = subprocess.run(
        # a shard has 8 batches, of 16 passages
        [sys.executable, "-c", KILLED_ENCODING, "11", *arguments],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    (building,) = killed.home.glob("embeddings-*.building")
    names = {file.name.partition("-of-")[0] for file in building.glob("shard-*")}
    assert names == {"shard-00000", "shard-00001"}
    assert len(list(building.glob("shard-00001-*.npy.partial"))) == 1
    encode.run(config, killed)
    one, other = (
        artifacts.read_json(workdir.current("embeddings") / "manifest.json")
        for workdir in (unbroken, killed)
    )
    assert one == other
    embeddings.open_embeddings(killed.current("embeddings"))
