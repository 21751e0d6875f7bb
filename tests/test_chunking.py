"""The chunk size that fits into memory: few compiles, and kept for resuming."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from dpr_jax import cli, host
from dpr_jax.config import Config
from dpr_jax.errors import InputError
from dpr_jax.training import chunking, loop
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

TEXTS = 256  # of a device
FIXED, PER_TEXT = 400 * 10**6, 10**7


def line(texts: int) -> int:
    """Memory of an update whose activations grow with the chunk."""
    return FIXED + PER_TEXT * texts


class Compiler:
    """Stands for XLA: notes what it compiled, and says what that needs."""

    def __init__(self, needs: Callable[[int], int] = line, rows: int = TEXTS) -> None:
        self.needs, self.rows, self.asked = needs, rows, []

    def __call__(self, chunk_size: int | None) -> chunking.Candidate:
        self.asked.append(chunk_size)
        needed = self.needs(chunk_size or self.rows)
        memory = SimpleNamespace(
            temp_size_in_bytes=needed - 100,
            argument_size_in_bytes=90,
            output_size_in_bytes=80,
            alias_size_in_bytes=70,  # outputs in the place of arguments
        )
        program = SimpleNamespace(memory_analysis=lambda: memory)
        return chunking.Candidate(chunk_size, None, program, iter(()), self.rows)


def choose(
    compiler: Compiler, free_bytes: int, stored: Path, asked: int | None = None
) -> int | None:
    texts = TEXTS * jax.device_count()
    chosen = chunking.choose(
        compiler,
        asked=asked,
        questions=texts // 2,
        passages=texts,
        stored=stored,
        free_bytes=free_bytes,
    )
    assert chosen.chunk_size == compiler.asked[-1]
    return chosen.chunk_size


def test_all_at_once_where_it_fits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compiler = Compiler()
    assert choose(compiler, 4 * 10**9, tmp_path / "chunk.json") is None
    assert compiler.asked == [None]
    assert json.loads((tmp_path / "chunk.json").read_text()) == {"chunk_size": None}
    said = capfd.readouterr().err
    assert "batch of 1024 questions and 2048 passages" in said
    assert "all texts at once (train.chunk_size): an update needs 3.0 GB" in said
    assert "4.0 GB are free" in said


def test_half_where_all_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compiler = Compiler(lambda texts: line(texts) // 10)
    assert choose(compiler, line(128) // 10, tmp_path / "chunk.json") == 128
    assert compiler.asked == [None, 128]
    assert "128 texts at once (train.chunk_size): an update needs 168 MB" in capfd.readouterr().err


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8, 31, 64, 100, 200])
def test_at_most_three_compiles(tmp_path: Path, fits: int) -> None:
    compiler = Compiler()
    largest = 2 ** (fits.bit_length() - 1)
    assert choose(compiler, line(fits), tmp_path / "chunk.json") == largest
    assert len(compiler.asked) <= 3


@pytest.mark.parametrize(("fits", "chunk"), [(40, 32), (3, 2), (0, None)])
def test_a_compiler_that_runs_out_of_memory_says_too_large(
    tmp_path: Path, fits: int, chunk: int | None
) -> None:
    """XLA for TPUs refuses such a program instead of saying what it needs."""

    def needs(size: int) -> int:
        if size > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")
        return line(size)

    compiler = Compiler(needs)
    if chunk is None:
        with pytest.raises(InputError, match="needs more than there is on a device even with one"):
            choose(compiler, 10**12, tmp_path / "chunk.json")
        return
    assert choose(compiler, 10**12, tmp_path / "chunk.json") == chunk


@pytest.mark.parametrize("texts", [1, 60, 256])
def test_what_cannot_fit_is_refused_and_not_kept(tmp_path: Path, texts: int) -> None:
    compiler = Compiler(lambda chunk: max(line(chunk), 9 * 10**8), rows=texts)
    stored = tmp_path / "chunk.json"
    with pytest.raises(
        InputError, match="needs 900 MB .* even with one text at a time, and 500 MB"
    ):
        choose(compiler, 5 * 10**8, stored)
    assert len(compiler.asked) <= 4  # the part that no chunk makes smaller is soon known
    assert not stored.exists()


def test_a_stored_choice_is_followed_whatever_is_free(tmp_path: Path) -> None:
    stored = tmp_path / "chunk.json"
    choose(Compiler(), line(16), stored)
    for free_bytes in (10**6, 10**12):
        again = Compiler()
        assert choose(again, free_bytes, stored) == 16
        assert again.asked == [16]


def test_a_size_that_was_asked_for_is_taken_and_not_stored(tmp_path: Path) -> None:
    compiler = Compiler()
    assert choose(compiler, 10**6, tmp_path / "chunk.json", asked=64) == 64
    assert compiler.asked == [64]
    assert not (tmp_path / "chunk.json").exists()


def test_packed_rows_are_cut_into_fewer_than_there_are(tmp_path: Path) -> None:
    compiler = Compiler(rows=100)  # chunks of 128 would only add empty rows
    assert choose(compiler, line(40), tmp_path / "chunk.json") == 32
    assert compiler.asked == [None, 32]


def test_memory_that_only_caches_files_is_free(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    put("sys/fs/cgroup/memory.max", "4000\n")
    put("sys/fs/cgroup/memory.current", "3000\n")
    put("sys/fs/cgroup/memory.stat", "anon 2000\ninactive_file 700\nactive_file 300\n")
    assert list(host.available_bytes(tmp_path)) == [5120, 1700]
    put("sys/fs/cgroup/memory.max", "max\n")
    assert list(host.available_bytes(tmp_path)) == [5120]
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000\n")
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n")
    put("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 600\n")
    assert list(host.available_bytes(tmp_path)) == [5120, 1600]


def test_processes_of_one_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_bytes", lambda: [8 * 10**9])
    alone = chunking.free_memory()
    assert alone == pytest.approx(0.9 * 10**9)  # each of eight devices
    others = [0, 1]  # one on this host, two on others
    monkeypatch.setattr(
        chunking.parallel,
        "all_processes",
        lambda value: np.concatenate([value, value, *(value + 1 + other for other in others)]),
    )
    assert chunking.free_memory() == pytest.approx(alone / 2)


# --- through the command line ------------------------------------------------


class Killed(Exception):
    """Stands for SIGKILL in the middle of a run."""


def losses(target: RetrieverDir) -> list[float]:
    text = (target.current("checkpoints") / "metrics.jsonl").read_text("utf-8")
    return [row["loss"] for row in map(json.loads, text.splitlines()) if "loss" in row]


@pytest.mark.usefixtures("own_programs")
@pytest.mark.parametrize("pack_rows", ["None", pytest.param("1", marks=pytest.mark.slow)])
def test_little_memory_is_refused_or_chunked_and_resumed_with_the_same_chunks(
    tmp_path: Path,
    nq_small_workdir: tuple[Config, WorkDir],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    pack_rows: str,
) -> None:
    _, prepared = nq_small_workdir
    shutil.copytree(prepared.root, tmp_path / "whole", symlinks=True)
    command = [
        *("train", "--model.init", str(tiny.write(tmp_path / "init"))),
        *("--model.max-passage-tokens", "64", "--model.pooling", "mean"),
        *("--train.batch-size", "48"),
        *("--train.total-steps", "5", "--train.checkpoint-every-steps", "2"),
        *("--train.pack-rows", pack_rows, "--train.log-every-steps", "1"),
        "--train.freeze-layers",
        "0",  # what is left is activations, which chunks make smaller
    ]

    def train(name: str) -> str:
        capfd.readouterr()
        cli.run([*command, "--workdir", str(tmp_path / name)])
        return capfd.readouterr().err

    monkeypatch.setattr(chunking, "free_memory", lambda: 10**6)
    with pytest.raises(InputError, match="one text at a time, and 1 MB are free") as refused:
        train("whole")
    needed = int(re.search(r"needs (\d+) MB", str(refused.value))[1])

    monkeypatch.setattr(chunking, "free_memory", lambda: (needed + 1) * 10**6)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken", symlinks=True)
    said = train("whole")
    chunk = re.search(r"each device (\d+) texts at once", said)
    assert chunk, said
    assert re.search(r"train: [\d.]+ m?s per update, about [\d.]+ m?s in all", said)

    stream = loop.batches.stream

    def killing(*args: object, **kwargs: object):
        for number, batch in enumerate(stream(*args, **kwargs), 1):
            if number == 4:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop.batches, "stream", killing)
        with pytest.raises(Killed):
            train("broken")
    monkeypatch.setattr(chunking, "free_memory", lambda: 10**12)
    assert f"each device {chunk[1]} texts at once" in train("broken")  # though all would fit
    whole, broken = (open_workdir(tmp_path / n).retriever("trained") for n in ("whole", "broken"))
    assert len(losses(whole)) == 5
    assert losses(whole) == losses(broken)
