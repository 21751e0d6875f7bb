"""SIGKILL between any two steps on disk while indexing, adding, removing and rebalancing.

What was served is still there, and the same command again ends with the files of an unbroken run.
"""

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from prepared import WordEmbedder, prepare
from test_changed import CONFIG, NEW, PASSAGES, store_recipe, write_ids, write_tsv
from vectors import encode_corpus, with_recipe

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.index import added, update, worker
from dpr_jax.index.open import MANIFEST, open_index
from dpr_jax.workdir import WorkDir

ROOT = Path(__file__).resolve().parents[1]
# runs one command, and dies before its n-th step on disk; says how many there were if it does not
# come so far
STEPS = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np

left = int(sys.argv[1])

def counted(function):
    def step(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*args, **kwargs)
    return step

for owner, names in (
    (Path, ("rename", "replace", "mkdir", "unlink", "write_text")),
    (shutil, ("rmtree", "copyfile")),
    (np, ("save",)),
    (np.lib.format, ("open_memmap",)),
    (np.memmap, ("flush",)),
    (os, ("fsync", "link")),
):
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))

from test_kill_changed import COMMANDS, CONFIGS, in_this_process
from dpr_jax.workdir import WorkDir

in_this_process()
COMMANDS[sys.argv[2]](CONFIGS[sys.argv[4]], WorkDir(Path(sys.argv[3])))
print(int(sys.argv[1]) - left)
"""
CONFIGS = {
    "whole": CONFIG,
    "reduced": dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, dimensions=30)),
}
COMMANDS = {
    "index": lambda config, work: [update.run(config, one) for one in work.retrievers()],
    "add": lambda config, work: update.add(config, work, str(work.root.parent / "new.tsv")),
    "remove": lambda config, work: update.remove(config, work, str(work.root.parent / "ids.txt")),
    "rebalance": lambda config, work: update.rebalance(config, work.retriever("trained")),
}


def in_this_process() -> None:
    """An encoder that needs no model, and engines without processes of their own."""
    added.load_embedder = lambda *_, **__: WordEmbedder()
    verbs = {"build": worker._build, "ask": worker._ask}
    worker._run = lambda job: verbs[job["verb"]](job)


def killed_at(step: int, command: str, workdir: WorkDir, config: str) -> int | None:
    """None if the command was killed before that step, else how many it has."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", STEPS, str(step), command, str(workdir.root), config],
        check=False,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.returncode == -signal.SIGKILL:
        return None
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])


def checksums(workdir: WorkDir) -> dict[str, str]:
    """Of every file, without the speed of a search."""
    found = {}
    for path in sorted(path for path in workdir.root.rglob("*") if path.is_file()):
        content: object = path.read_bytes()
        if path.name == MANIFEST:
            content = artifacts.read_json(path)
            del content["queries_per_s"], content["checksum"]
        text = content if isinstance(content, bytes) else repr(content).encode()
        found[str(path.relative_to(workdir.root))] = hashlib.sha256(text).hexdigest()
    return found


def found_by(workdir: WorkDir) -> list[list[int]]:
    queries_QD = WordEmbedder().encode([one.text for one in NEW + PASSAGES[:5]])
    folder = workdir.retriever("trained").current("index")
    return open_index(folder).search(queries_QD, 43)[1].tolist()


def start(root: Path, config: Config) -> WorkDir:
    workdir = prepare(root / "w", PASSAGES)
    retriever = with_recipe(workdir)
    store_recipe(retriever, index=config.index)
    encode_corpus(retriever, WordEmbedder())
    store_recipe(with_recipe(workdir, "bm25", "bm25"))
    write_tsv(root / "new.tsv", NEW)
    write_ids(root / "ids.txt", "p3", "n1")
    return workdir


SLOW = [
    pytest.param(command, config, every, id=f"{command}-{config}")
    for config, every in (("whole", 3), ("reduced", 5))
    for command in COMMANDS
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "config", "every"), SLOW)
def test_killed_anywhere(
    command: str,
    config: str,
    every: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every third step of a command, or every fifth with narrower vectors."""
    steps = range(0, 10_000, every)
    assert kill_at(steps, command, config, tmp_path, monkeypatch) > 20


@pytest.mark.parametrize("command", ["index", "add"])
def test_killed_somewhere(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = random.Random(5).randrange(20)
    kill_at([step], command, "reduced", tmp_path, monkeypatch)


def kill_at(
    steps: Iterable[int],
    command: str,
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Runs a command after those before it, unbroken and killed at each of these steps, and
    compares; how many steps it has, if all were tried.
    """
    monkeypatch.setattr(added, "load_embedder", lambda *_, **__: WordEmbedder())
    verbs = {"build": worker._build, "ask": worker._ask}
    monkeypatch.setattr(worker, "_run", lambda job: verbs[job["verb"]](job))
    workdir = start(tmp_path, CONFIGS[config])
    for earlier, run in COMMANDS.items():
        if earlier == command:
            break
        run(CONFIGS[config], workdir)
    before, broken = WorkDir(tmp_path / "before"), WorkDir(tmp_path / "broken")
    shutil.copytree(workdir.root, before.root, symlinks=True)
    COMMANDS[command](CONFIGS[config], workdir)
    wanted = checksums(workdir)
    old = None
    if before.retriever("trained").find("index"):
        old = found_by(before)
    for step in steps:
        shutil.rmtree(broken.root, ignore_errors=True)
        shutil.copytree(before.root, broken.root, symlinks=True)
        last = killed_at(step, command, broken, config)
        if last is not None:
            return last
        if old is not None:  # the old one serves, or the new one does
            assert found_by(broken) in (old, found_by(workdir))
        COMMANDS[command](CONFIGS[config], broken)
        assert checksums(broken) == wanted, step
    return 0
