"""Real processes: how they wait for each other, and the status that each of them ends with."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# runs a command whose process 0 alone does some work, which fails
FAILING = """
import sys
from dpr_jax import cli, joining, parallel
from dpr_jax.errors import Busy, InputError, Preempted

def work():
    raise {error}

def run(_):
    joining.initialize()
    parallel.on_main(work)

cli.run = run
cli.main()
"""
JOINING = """
from dpr_jax import joining, peers

peers.SILENT_S = 1
joining.initialize()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(code: str, index: int, port: int) -> subprocess.Popen[str]:
    """Python code as process `index` of two."""
    named = {
        "DPR_COORDINATOR": f"127.0.0.1:{port}",
        "DPR_NUM_PROCESSES": "2",
        "DPR_PROCESS_ID": str(index),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | named,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("InputError('no such file')", 2),
        ("Busy('another process writes here')", 75),
        ("OSError(28, 'No space left on device')", 2),
        ("RuntimeError('a bug')", 1),
    ],
)
def test_all_processes_end_with_the_status_of_process_0(error: str, status: int) -> None:
    port = free_port()
    processes = [start(FAILING.format(error=error), index, port) for index in range(2)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [status, status], said
    assert "dpr: process 0 ended with an error, which its log names" in said[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_says_for_whom(index: int) -> None:
    port = free_port()
    process = start(JOINING, index, port)
    try:
        line = process.stderr.readline()
    finally:
        process.kill()
        process.communicate()
    assert line == (
        f"dpr: this process waits for 2 processes at 127.0.0.1:{port}, of which it is number"
        f" {index}; all of them have to be started\n"
    )


def test_processes_that_jax_cannot_find_are_one_clear_line(tmp_path: Path) -> None:
    """Open MPI 5 does not name the address of its launcher."""
    rank = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PYTHONPATH": str(ROOT)}
    code = "from dpr_jax.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", "--workdir", str(tmp_path / "w")],
        check=False,
        env=os.environ | rank,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "JAX cannot find the others" in line and "name them with DPR_COORDINATOR" in line


def test_a_shell_inside_an_allocation_is_one_process(tmp_path: Path) -> None:
    """Slurm's interactive step: four tasks were allocated, and one process was started."""
    (tmp_path / "passages.tsv").write_text("id\ttext\ttitle\n1\tIron is a metal.\tIron\n")
    host = socket.gethostname()
    shell = {
        "SLURM_JOB_ID": "123",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": host,
        "SLURM_STEP_NODELIST": host,
        "SLURM_STEP_NUM_TASKS": "1",
        "PYTHONPATH": str(ROOT),
    }
    code = "from dpr_jax.cli import main; main()"
    data = ["--data.passages", str(tmp_path / "passages.tsv")]
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", "--workdir", str(tmp_path / "w"), *data],
        check=False,
        env=os.environ | shell,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "1 passages" in done.stderr and "waits" not in done.stderr
    assert time.monotonic() - start_s < 60
