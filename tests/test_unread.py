"""Output whose reader leaves (`dpr ... 2>&1 | head -1`): work ends whole, with status 141."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax.config import Config
from dpr_jax.workdir import WorkDir

ROOT = Path(__file__).resolve().parents[1]
DPR = [sys.executable, "-c", "from dpr_jax.cli import main; main()"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def with_run(
    tmp_path_factory: pytest.TempPathFactory, nq_small_workdir: tuple[Config, WorkDir]
) -> Path:
    """A work directory with a run to evaluate."""
    _, prepared = nq_small_workdir
    folder = tmp_path_factory.mktemp("unread") / "w"
    shutil.copytree(prepared.root, folder, symlinks=True)
    for command in (["index"], ["retrieve", "--retrieve.split", "test"]):
        args = [*DPR, *command, "--retriever", "bm25", "--workdir", str(folder)]
        subprocess.run(args, check=True, env=ENVIRONMENT, timeout=200)
    return folder


@pytest.mark.parametrize("redirected", ["2>&1 | head -1", "2>&1 | true", "2>/dev/null | true"])
def test_evaluation_finishes_without_a_reader(with_run: Path, redirected: str) -> None:
    shutil.rmtree(with_run / "metrics", ignore_errors=True)
    command = f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}'
    args = [*DPR, "evaluate", "--workdir", str(with_run)]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *args],
        check=False,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 141
    assert "Traceback" not in done.stdout + done.stderr
    again = subprocess.run(args, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "evaluate: up to date" in again.stderr
    assert "bm25" in again.stdout and (with_run / "metrics" / "report.html").exists()
