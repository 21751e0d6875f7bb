"""A disk that is full, in earnest: a small file system of the test's own, which needs root."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_storage import BUCKET, dpr, server
from test_launch_faults import Run

from dpr_jax import artifacts
from dpr_jax.workdir import open_workdir

SMALL_PIECES = """
from dpr_jax.data.readers import pieces

pieces.PIECE_BYTES = 1_000_000
"""
DPR = SMALL_PIECES + "from dpr_jax.cli import main; main()"


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    size = f"size={megabytes}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    """Eight megabytes that cannot be packed well."""
    drawn = random.Random(0)
    path = tmp_path / "p.tsv"
    rows = (f"{row}\t{drawn.randbytes(1000).hex()}\tTitle\n" for row in range(4000))
    path.write_text("id\ttext\ttitle\n" + "".join(rows))
    return path


def fingerprint(root: Path | str) -> str:
    return artifacts.fingerprint(open_workdir(root).data / "manifest.json")


@pytest.mark.slow
def test_prepare_says_so_and_goes_on_once_there_is_room(tmp_path: Path, passages: Path) -> None:
    with disk(tmp_path / "disk", 2) as small:
        args = ("prepare", "--data.passages", str(passages), "--workdir", str(small / "w"))
        done = dpr({}, *args, code=DPR)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("dpr: cannot write in ") and "No space left on device; make" in last
        assert not [*small.glob("w/data-*")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert dpr({}, *args, code=DPR).returncode == 0
        found = fingerprint(small / "w")
        whole = ("prepare", "--data.passages", str(passages), "--workdir", str(tmp_path / "w"))
        assert dpr({}, *whole, code=DPR).returncode == 0
        assert found == fingerprint(tmp_path / "w")


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_both(
    tmp_path: Path, passages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with object storage between them; the cache of one has no room."""
    with server(tmp_path) as storage, disk(tmp_path / "disk", 1) as small:
        args = ("prepare", "--data.passages", str(passages), "--workdir", f"s3://{BUCKET}/w")
        caches = [str(tmp_path / "cache-0"), str(small)]
        (tmp_path / "run").mkdir()
        run = Run(tmp_path / "run")
        try:
            for index in range(2):
                run.start(index, DPR, *args, **storage | {"DPR_CACHE": caches[index]})
            assert [process.wait(300) for process in run.processes] == [2, 2]
        finally:
            for process in run.processes:
                process.kill()
                process.communicate()
        assert "dpr: process 1 ended with an error, which its log names" in run.lines(0)
        last = run.lines(1)[-1]
        assert last.startswith("dpr: cannot write in ") and "No space left on device; make" in last
        assert "Traceback" not in "".join((*run.lines(0), *run.lines(1)))

        (tmp_path / "again").mkdir()
        run = Run(tmp_path / "again")
        try:
            for index in range(2):
                cache = str(tmp_path / f"new-{index}")
                run.start(index, DPR, *args, **storage | {"DPR_CACHE": cache})
            assert [process.wait(300) for process in run.processes] == [0, 0]
        finally:
            for process in run.processes:
                process.kill()
                process.communicate()
        for name, value in (storage | {"DPR_CACHE": str(tmp_path / "third")}).items():
            monkeypatch.setenv(name, value)
        found = fingerprint(f"s3://{BUCKET}/w")
    shutil.rmtree(tmp_path / "again")
    whole = ("prepare", "--data.passages", str(passages), "--workdir", str(tmp_path / "w"))
    assert dpr({}, *whole, code=DPR).returncode == 0
    assert found == fingerprint(tmp_path / "w")
