"""The whole pipeline as a user runs it, on real rows with a tiny model: once, twice, and killed at
every stage.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

FIXTURE = Path(__file__).parent / "fixtures" / "nq_small"
# one device and quick compiling: this is about files, not about devices
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
}
CONFIG = """
from dpr_jax.config import *

config = Config(
    name="small",
    data=DataConfig(
        passages="{fixture}/passages.tsv.gz",
        train="{fixture}/train.json",
        dev="{fixture}/dev.json",
        test="{fixture}/test.qa.csv",
        test_qrels="{fixture}/test.qrels",
    ),
    model=ModelConfig(
        init="{init}",
        pooling="mean",
        normalize=True,
        max_question_tokens=16,
        max_passage_tokens=32,
    ),
    train=TrainConfig(
        batch_size=8,
        total_steps=6,
        learning_rate=1e-3,
        warmup=1 / 6,
        temperature=0.05,
        log_every_steps=1,
        checkpoint_every_steps=2,
        validation_hard_negatives=1,
    ),
    encode=EncodeConfig(rows_per_shard=100),
    index=IndexConfig(kind="scann"),
    evaluate=EvaluateConfig(bootstrap_samples=200, examples=4),
)
"""
# a line that each stage prints while it is at work, in the pipeline's order
KILL_AT = (
    "mine train:",
    "retrieve bm25:",
    "encode: ",
    "train: 60 questions",
    "train: wrote",
    "index: ",
    "retrieve trained:",
)


def command(config: Path, workdir: Path) -> list[str]:
    code = "from dpr_jax.cli import main; main()"
    return [
        sys.executable,
        "-c",
        code,
        "pipeline",
        str(config),
        "--workdir",
        str(workdir),
    ]


def run(config: Path, workdir: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(config, workdir),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def run_until(line: str, config: Path, workdir: Path) -> None:
    """Kills the pipeline when it prints `line`."""
    said = []
    with subprocess.Popen(
        command(config, workdir),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        for text in process.stderr:
            said.append(text)
            if text.startswith(line):
                process.send_signal(signal.SIGKILL)
                return
    raise AssertionError(f"{line!r} not in {''.join(said)}")


def metrics(workdir: Path) -> dict[str, Any]:
    return {
        path.name: json.loads(path.read_text())
        for path in sorted((workdir / "metrics").glob("*.json"))
        if path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.write(folder / "init")
    path = folder / "small.py"
    path.write_text(CONFIG.format(fixture=FIXTURE, init=folder / "init"))
    return path


@pytest.fixture(scope="module")
def finished(config: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A work directory of an unbroken run, and what it printed."""
    workdir = config.parent / "unbroken"
    return workdir, run(config, workdir)


def test_the_table_and_the_page_name_every_run(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    workdir, done = finished
    page = (workdir / "metrics" / "report.html").read_text()
    for name in ("bm25", "untrained", "trained", "hybrid"):
        assert name in done.stdout
        assert name in page
        assert (workdir / "runs" / f"{name}.trec").exists()
        assert (workdir / "runs" / f"{name}.json").exists()
    index = json.loads((workdir / "index" / "index.json").read_text())
    assert index["kind"] == "scann"
    assert 0.9 < index["recall_at_100"] <= 1
    for side in ("question", "passage"):
        assert (workdir / "model" / f"{side}_encoder" / "model.safetensors").exists()


def test_a_second_run_does_nothing_again(
    config: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = run(config, workdir)
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert after == before
    assert again.stderr.count("up to date") >= 9


def test_killed_at_every_stage_it_ends_with_the_same_numbers(
    config: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    workdir = config.parent / "killed"
    for line in KILL_AT:
        run_until(line, config, workdir)
    run(config, workdir)
    assert metrics(workdir) == metrics(finished[0])
    left = [path for path in workdir.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not left
