"""One writer per retriever, with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr_jax import lease
from dpr_jax.errors import Busy

HOLD = """
import sys, time
from pathlib import Path
from dpr_jax import lease
lease.RENEW_S = 0.2
with lease.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


@pytest.fixture(params=["plain", "mit Zwischenraum é", "link"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    target = tmp_path / request.param
    if request.param == "link":
        (tmp_path / "target").mkdir()
        target.symlink_to(tmp_path / "target")
    return target


@pytest.fixture
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = hold(folder, 30)
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_the_first_is(
    folder: Path, holder: subprocess.Popen[str]
) -> None:
    began_s = time.monotonic()
    who = rf"written by process {holder.pid} on \S+ since 20"
    with pytest.raises(Busy, match=who), lease.held(folder):
        pass
    assert time.monotonic() - began_s < 20  # as soon as it has seen the first one alive


def test_a_killed_writer_is_taken_over(folder: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lease.held(folder):
        assert json.loads((folder / lease.FILE).read_text())["process"] == os.getpid()
    assert not (folder / lease.FILE).exists()


def test_a_lease_of_another_host_is_taken_over_when_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    path = tmp_path / lease.FILE
    path.write_text(json.dumps({"process": 1, "host": "other", "boot": "other", "token": "x"}))
    before_s = time.time() - lease.STALE_S - 1
    os.utime(path, (before_s, before_s))
    with lease.held(tmp_path):
        assert json.loads(path.read_text())["host"] != "other"


def test_a_living_holder_whose_clock_is_an_hour_behind_keeps_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks take the time of a touch from the host that does it."""
    monkeypatch.setattr(lease, "RENEW_S", 1.0)
    path = tmp_path / lease.FILE
    path.write_text(json.dumps({"process": 1, "host": "other", "boot": "other", "token": "x"}))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.2):
            behind_s = time.time() - 3600
            os.utime(path, (behind_s, behind_s))

    os.utime(path, (time.time() - 3600,) * 2)
    holder = threading.Thread(target=renew)
    holder.start()
    try:
        with pytest.raises(Busy, match="process 1 on other"), lease.held(tmp_path):
            pass
    finally:
        ended.set()
        holder.join()
    assert json.loads(path.read_text())["token"] == "x"


def test_a_lease_of_another_host_that_is_not_renewed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    path = tmp_path / lease.FILE
    path.write_text(json.dumps({"process": 1, "host": "other", "boot": "other", "token": "x"}))
    began_s = time.monotonic()
    with lease.held(tmp_path):
        assert time.monotonic() - began_s > 1.5


def test_the_next_writer_gets_it_after_the_first_has_ended(tmp_path: Path) -> None:
    process = hold(tmp_path, 0.5)
    process.wait()
    with lease.held(tmp_path):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    with hold(tmp_path, 2.0):
        first_s = (tmp_path / lease.FILE).stat().st_mtime
        time.sleep(1)
        assert (tmp_path / lease.FILE).stat().st_mtime > first_s
