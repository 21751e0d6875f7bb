"""Compiled programs on disk: shared whole or not at all, checked, bounded, and never needed."""

import os
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest

from dpr_jax import compilation_cache, host

PROGRAM = """
    import os, sys
    from dpr_jax import compilation_cache
    compilation_cache.LEAST_COMPILE_S = 0
    compilation_cache.enable()
    import jax, jax.numpy as jnp
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(1) if event.endswith("/cache_hits") else None
    )
    def f(x):
        return jnp.sum(jnp.tanh(x @ x.T)) / 3
    print(float(jax.jit(f)(jnp.arange(12.0).reshape(3, 4) / 7)).hex(), len(hits) > 0, flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
"""


def start(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    inherited |= {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        env=inherited,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home: Path, **environment: str) -> tuple[str, bool]:
    """Returns the number that the program computes, and whether it was found compiled."""
    done = start(home, **environment)
    out, said = done.communicate(timeout=300)
    assert (done.returncode, said) == (0, "")
    number, found = out.split()
    return number, found == "True"


def store(home: Path) -> Path:
    (folder,) = (home / "dpr_jax").iterdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_later_process_finds_the_programs_and_computes_the_same(tmp_path: Path) -> None:
    first, found = run(tmp_path)
    assert not found
    kept = names(store(tmp_path))
    assert kept and all(name.endswith("-cache") for name in kept)
    assert run(tmp_path) == (first, True)
    assert names(store(tmp_path)) == kept


def test_damaged_entries_are_deleted_and_made_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    entries = sorted(store(tmp_path).iterdir())
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-20])
    assert run(tmp_path) == (first, False)
    assert run(tmp_path) == (first, True)
    for entry in store(tmp_path).iterdir():
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
    assert run(tmp_path) == (first, False)


def test_a_killed_process_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    killed = start(tmp_path, "wait")
    number, _ = killed.stdout.readline().split()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (own,) = store(tmp_path).iterdir()
    assert own.name.startswith("process-") and names(own)
    os.utime(own, (1, 1))
    assert run(tmp_path) == (number, False)
    assert not own.exists()
    assert run(tmp_path) == (number, True)


def test_processes_side_by_side_keep_their_own_folders(tmp_path: Path) -> None:
    waiting = [start(tmp_path, "wait") for _ in range(2)]
    numbers = {process.stdout.readline().split()[0] for process in waiting}
    folders = [path for path in store(tmp_path).iterdir() if path.name.startswith("process-")]
    assert len(folders) == 2
    assert run(tmp_path)[0] in numbers  # which deletes no folder of a living process
    assert all(folder.exists() for folder in folders)
    for process in waiting:
        _, said = process.communicate("")
        assert (process.returncode, said) == (0, "")
    assert len(numbers) == 1
    assert not any(folder.exists() for folder in folders)
    assert run(tmp_path)[1]


@pytest.mark.parametrize("chosen", ["off", "a folder of the user's", "no place"])
def test_programs_are_compiled_without_the_store(tmp_path: Path, chosen: str) -> None:
    home, environment = tmp_path / "home", {}
    if chosen == "off":
        environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    elif chosen == "no place":
        home.write_text("a file")
    else:
        environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs")}
    assert run(home, **environment)[1] is False
    assert not home.is_dir()


def test_cut_off_entries_are_not_shared(tmp_path: Path) -> None:
    whole = zlib.compress(os.urandom(1000))
    own, shared = tmp_path / "own", tmp_path / "shared"
    for folder in (own, shared):
        folder.mkdir()
    for name, content in {"whole": whole, "cut": whole[:-5], "other": b"no program"}.items():
        (own / f"{name}-cache").write_bytes(content)
        (own / f"{name}-atime").write_bytes((10**18).to_bytes(8, "little"))
    compilation_cache.give_to(shared, own)
    (kept,) = names(shared)
    assert kept.endswith("-whole-cache")


def test_what_was_not_used_for_longest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 2500)
    shared = tmp_path / "shared"
    shared.mkdir()
    for number, used in enumerate(["a", "b", "a", "c"], 1):  # a again before c comes
        own = tmp_path / f"own-{number}"
        own.mkdir()
        compilation_cache.take_from(shared, own)
        file = own / f"{used}-cache"
        if not file.exists():
            file.write_bytes(zlib.compress(os.urandom(1000)))
        (own / f"{used}-atime").write_bytes((number * 10**18).to_bytes(8, "little"))
        compilation_cache.give_to(shared, own)
    assert [name.split("-", 1)[1] for name in names(shared)] in (
        ["a-cache", "c-cache"],
        ["c-cache", "a-cache"],
    )


def test_another_processor_has_a_store_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation_cache.shared_folder()
    assert here == compilation_cache.shared_folder()
    monkeypatch.setattr(host, "processor_features", lambda: frozenset({"avx2"}))
    assert compilation_cache.shared_folder() != here
