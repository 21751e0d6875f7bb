"""Several real processes of which one fails: all end within a minute, in one line each, with the
right status.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr_jax import recipes
from dpr_jax.config import Config
from dpr_jax.workdir import open_workdir

ROOT = Path(__file__).resolve().parents[1]
MINUTE_S = 60
# the time-outs of `dpr` are shorter than its own, but for tests that are slow
SHORT = """
from dpr_jax import peers, sockets
peers.LOST_S, sockets.FREED_S = 5.0, 1.0
"""
DPR = SHORT + "from dpr_jax.cli import main; main()"
# runs collectives without end, as training does
WORKING = """
import sys, time
import jax, numpy as np
from dpr_jax import cli, joining, parallel

def run(_):
    joining.initialize()
    spmd = parallel.spmd("pmap")
    total = spmd.map(lambda _, rows: (jax.lax.psum(rows.sum(), parallel.AXIS), rows.sum()))
    rows = np.ones((jax.local_device_count(), 8), np.float32)
    for turn in range(10**6):
        jax.block_until_ready(total(None, spmd.shard(rows)))
        if turn == 3:
            print("works", flush=True)
        {work}
        time.sleep(0.02)

cli.run = run
cli.main()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Run:
    """Processes of one run, each with its own environment."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder, self.count, self.port = folder, count, free_port()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, index: int, code: str, *args: str, **environment: str) -> None:
        named = {
            "DPR_COORDINATOR": f"127.0.0.1:{self.port}",
            "DPR_NUM_PROCESSES": str(self.count),
            "DPR_PROCESS_ID": str(index),
            "DPR_JOIN_S": "60",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        with (self.folder / f"{index}.err").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *args],
                env=os.environ | named | environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=self.folder,
            )
        self.processes.append(process)

    def wait(self, *indices: int) -> list[int]:
        """Returns the exit statuses, of all processes or of some."""
        end_s = time.monotonic() + 2 * MINUTE_S  # one of them to start
        wanted = [self.processes[index] for index in indices] if indices else self.processes
        return [process.wait(end_s - time.monotonic()) for process in wanted]

    def lines(self, index: int) -> list[str]:
        said = (self.folder / f"{index}.err").read_text().splitlines()
        return [line for line in said if not line.startswith("[Gloo]")]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    for process in run.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGSTOP, SHORT),
        pytest.param(signal.SIGSTOP, "", marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_ends_the_others_in_one_line(
    run: Run, victim: int, number: signal.Signals, times: str
) -> None:
    for index in range(2):
        run.start(index, times + WORKING.format(work=""))
    for process in run.processes:
        while process.stdout.readline() != "works\n":
            assert process.poll() is None, run.lines(0) + run.lines(1)
    run.processes[victim].send_signal(number)
    other = 1 - victim
    assert run.wait(other) == [75]
    [line] = run.lines(other)
    assert line.startswith(f"dpr: process {victim} (") and "run the same again" in line
    if number == signal.SIGSTOP:  # and one that wakes up does not go on alone
        run.processes[victim].send_signal(signal.SIGCONT)
        assert run.wait(victim) == [75]
        assert len(run.lines(victim)) == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("dpr_jax.errors.InputError('row 7 is bad')", 2, "dpr: row 7 is bad"),
        ("OSError(28, 'No space left on device', '/cache')", 2, "No space left on device"),
        ("RuntimeError('a bug')", 1, "RuntimeError: a bug"),
    ],
)
def test_an_error_of_one_ends_all_with_its_status(
    run: Run, error: str, status: int, said: str
) -> None:
    """Such as a full disk on one host."""
    work = f"import dpr_jax.errors\n        if turn > 4 and not parallel.is_main(): raise {error}"
    for index in range(2):
        run.start(index, WORKING.format(work=work))
    assert run.wait() == [status, status], run.lines(0) + run.lines(1)
    assert run.lines(0) == ["dpr: process 1 ended with an error, which its log names"]
    assert said in run.lines(1)[-1]


def test_other_settings_are_named(run: Run, tmp_path: Path) -> None:
    recipes.store_workdir(open_workdir(tmp_path / "w"), Config())
    for index, rate in enumerate(("1e-5", "2e-5")):
        args = ("train", "--workdir", str(tmp_path / "w"), "--train.learning-rate", rate)
        run.start(index, DPR, *args)
    assert run.wait() == [2, 2]
    for index in range(2):
        [line] = run.lines(index)
        assert "process 1 (" in line and "has another train.learning_rate than process 0" in line


def test_another_code_is_named(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "dpr_jax", copy / "dpr_jax")
    with (copy / "dpr_jax" / "training" / "loss.py").open("a") as file:
        file.write("# another\n")
    args = ("prepare", "--workdir", str(tmp_path / "w"))
    run.start(0, DPR, *args)
    run.start(1, DPR, *args, PYTHONPATH=str(copy))
    assert run.wait() == [2, 2]
    for index in range(2):
        [line] = run.lines(index)
        assert "process 1 (" in line and "has another version of dpr_jax than process 0" in line


def test_other_data_are_named(run: Run) -> None:
    work = """parallel.agree({"data": "a", "init": "bc"[parallel.jax.process_index()]})"""
    for index in range(2):
        run.start(index, WORKING.format(work=work))
    assert run.wait() == [2, 2]
    for index in range(2):
        [line] = run.lines(index)
        assert "process 1 has another init than process 0" in line


def test_a_taken_port(run: Run, tmp_path: Path) -> None:
    """Of another program, to which process 1 talks in vain."""
    args = ("prepare", "--workdir", str(tmp_path / "w"))
    with socket.create_server(("127.0.0.1", run.port)):
        for index in range(2):
            run.start(index, DPR, *args, DPR_JOIN_S="15")
        assert run.wait() == [2, 75]
    [line] = [line for line in run.lines(0) if "waits for" not in line]
    assert f"cannot listen at 127.0.0.1:{run.port}" in line and "another port" in line
    [line] = [line for line in run.lines(1) if "waits for" not in line]
    assert "did not find process 0" in line


def test_too_few_processes(run: Run, tmp_path: Path) -> None:
    run.count = 3
    for index in range(2):
        run.start(index, DPR, "prepare", "--workdir", str(tmp_path / "w"), DPR_JOIN_S="15")
    assert run.wait() == [75, 75]
    for index in range(2):
        [line] = [line for line in run.lines(index) if "waits for" not in line]
        assert "process 2 of 3 did not come" in line and "DPR_NUM_PROCESSES" in line


def test_folders_that_are_not_shared(run: Run, tmp_path: Path) -> None:
    """Each host has its own under the same path; those of the two hold other settings."""
    code = SHORT + "from dpr_jax import workdir; workdir.SEEN_S = 2\n" + DPR
    for index in range(2):
        root = tmp_path / f"w{index}"
        recipes.store_workdir(open_workdir(root), Config(rounds=1 + index))
        args = ("index", "--retriever", "bm25", "--rounds", "1", "--workdir", str(root))
        run.start(index, code, *args)
    assert run.wait() == [2, 2]
    assert "process 1 ended with an error, which its log names" in run.lines(0)[-1]
    assert "this process does not see in" in run.lines(1)[-1]
    assert "give --workdir a folder that all processes share" in run.lines(1)[-1]


def test_strangers_at_the_port_are_passed_over(run: Run) -> None:
    """Such as a port scanner, or a browser."""
    run.start(0, WORKING.format(work="if turn > 4: return"))
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"process": [1], "count": 2}\n', b"[]\n"):
        end_s = time.monotonic() + MINUTE_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", run.port)) as stranger:
                    stranger.sendall(words)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end_s
                time.sleep(0.1)
    run.start(1, WORKING.format(work="if turn > 4: return"))
    assert run.wait() == [0, 0], run.lines(0) + run.lines(1)


def test_counts_that_differ(run: Run, tmp_path: Path) -> None:
    args = ("prepare", "--workdir", str(tmp_path / "w"))
    run.start(0, DPR, *args)
    run.start(1, DPR, *args, DPR_NUM_PROCESSES="3")
    assert run.wait() == [2, 2]
    for index in range(2):
        [line] = run.lines(index)
        assert "was started as one of 3 processes, and process 0 of 2" in line


def test_the_same_number_twice(run: Run) -> None:
    """The one that comes later is refused, and the run goes on."""
    run.count = 3
    code = WORKING.format(work="if turn > 4: return")
    for number in (0, 1, 1):
        run.start(number, code, DPR_JOIN_S="180")
        time.sleep(0.1)
    end_s = time.monotonic() + MINUTE_S
    while not (refused := [one for one in run.processes[1:] if one.poll() is not None]):
        assert time.monotonic() < end_s
        time.sleep(0.1)
    assert [one.returncode for one in refused] == [2]
    run.start(2, code, DPR_JOIN_S="180")
    assert sorted(run.wait()) == [0, 0, 0, 2]
