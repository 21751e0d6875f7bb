"""Exports: whole, in corpus order, gone on with after a kill, and never over something else."""

import dataclasses
import fcntl
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import COUNT, export, finished, passages

from dpr_jax import artifacts, cli
from dpr_jax.config import IndexConfig, ModelConfig
from dpr_jax.errors import Busy, InputError
from dpr_jax.export import folder as module
from dpr_jax.export import tower
from dpr_jax.export.source import open_source
from dpr_jax.model import description
from dpr_jax.workdir import WorkDir, open_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return finished(tmp_path_factory.mktemp("export"), IndexConfig(kind="exact"))


@pytest.fixture(scope="module")
def changed(workdir: WorkDir, tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """The same with two passages removed, one of them put back with another text, and one new."""
    root = tmp_path_factory.mktemp("changed")
    shutil.copytree(workdir.root, root / "w", symlinks=True)
    (root / "gone.txt").write_text("p-3\np-700\n")
    (root / "new.tsv").write_text("id\ttext\ttitle\np-700\tanother text\tNew\nnew\tlast\tNew\n")
    cli.run(["index", "remove", str(root / "gone.txt"), "--workdir", str(root / "w")])
    cli.run(["index", "add", str(root / "new.tsv"), "--workdir", str(root / "w")])
    return open_workdir(root / "w")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "passages.jsonl").read_bytes().splitlines()]


def test_numpy_keeps_order_and_vectors(workdir: WorkDir, tmp_path: Path) -> None:
    export(workdir, tmp_path / "out", "numpy")
    ids = (tmp_path / "out" / "docid").read_text().splitlines()
    assert ids == [one.id for one in passages()]
    assert lines(tmp_path / "out") == [one._asdict() for one in passages()]
    source = open_source(workdir, "trained")
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "vectors-00000.npy"), np.concatenate(source.shards)
    )
    facts = artifacts.verify(tmp_path / "out" / "manifest.json")
    assert (facts["engine"], facts["count"], facts["width"]) == ("numpy", COUNT, 32)


def test_changes_of_the_corpus_are_followed(changed: WorkDir, tmp_path: Path) -> None:
    export(changed, tmp_path / "out", "numpy")
    want = [one._asdict() for one in passages() if one.id not in ("p-3", "p-700")]
    want += [
        {"id": "p-700", "title": "New", "text": "another text"},
        {"id": "new", "title": "New", "text": "last"},
    ]
    assert lines(tmp_path / "out") == want
    vectors_ND = np.load(tmp_path / "out" / "vectors-00000.npy")
    all_ND = np.concatenate(open_source(changed, "trained").shards)
    np.testing.assert_array_equal(vectors_ND, np.delete(all_ND, [3, 700], axis=0))
    passage = module.Passages(tmp_path / "out").by_id("p-700")
    assert passage.text == "another text"


@pytest.mark.parametrize("engine", ["numpy", "faiss", "scann"])
def test_the_engine_finds_what_exact_search_finds(
    changed: WorkDir, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if engine == "scann":
        for package in ("scann", "onnx", "onnxruntime"):
            pytest.importorskip(package)
    export(changed, tmp_path / "out", engine)
    cli.run(["export", "check", engine, "--out", str(tmp_path / "out"), "--target", "0.99"])
    said = capsys.readouterr().out
    assert "recall@100 of 0.99 is reached" in said
    assert "on 40 questions" in said


def test_a_check_that_falls_short_says_so(workdir: WorkDir, tmp_path: Path) -> None:
    export(workdir, tmp_path / "out", "numpy")
    answers = tmp_path / "out" / "check" / "answers.json"
    value = json.loads(answers.read_text())
    value["right"] = [[f"{id_}x" for id_ in ids[:50]] + ids[50:] for ids in value["right"]]
    answers.write_text(json.dumps(value))
    _sign_again(tmp_path / "out")
    with pytest.raises(InputError, match=r"recall@100 is 0.50\d\d, below 0.95"):
        cli.run(["export", "check", "numpy", "--out", str(tmp_path / "out")])


def _sign_again(out: Path) -> None:
    facts = artifacts.read_json(out / "manifest.json")
    files = [out / name for name in facts["files"]]
    known = {"made_from", "files", "versions", "checksum"}
    rest = {name: value for name, value in facts.items() if name not in known}
    artifacts.write_manifest(out / "manifest.json", facts["made_from"], files, **rest)


def test_a_killed_export_goes_on(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finished files stay as they are; the result is that of an unbroken run."""
    export(workdir, tmp_path / "whole", "numpy")
    with monkeypatch.context() as patch:
        patch.setattr("dpr_jax.export.checking.write", _killed)
        with pytest.raises(KeyboardInterrupt):
            export(workdir, tmp_path / "out", "numpy")
    assert not (tmp_path / "out").exists()
    left = tmp_path / "out.partial" / "passages.npy"
    before = left.stat().st_ino
    export(workdir, tmp_path / "out", "numpy")
    assert (tmp_path / "out" / left.name).stat().st_ino == before
    both = [artifacts.read_json(tmp_path / name / "manifest.json") for name in ("whole", "out")]
    assert both[0]["files"] == both[1]["files"]
    assert not list(tmp_path.glob("*.partial"))


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


# Kills its own process, as kill -9 does, when it gives its Nth file a name or syncs its Nth block.
KILLED = """
import os, signal, sys
from dpr_jax import cli
from dpr_jax.export import folder, source
folder.ROWS_PER_FILE = 250
folder.parts = lambda count, rows: source.parts(count, 250)
left = int(sys.argv[1])
def count(call):
    def counted(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return counted
os.fsync, os.rename, os.replace = count(os.fsync), count(os.rename), count(os.replace)
cli.run(sys.argv[2:])
"""


SLOW = [pytest.param(engine, marks=pytest.mark.slow) for engine in ("numpy", "vertex", "milvus")]


@pytest.mark.parametrize("engine", ["pgvector", *SLOW])  # they share the code that goes on
def test_an_export_that_is_killed_again_and_again_ends_as_an_unbroken_one(
    workdir: WorkDir, tmp_path: Path, engine: str
) -> None:
    where = ["--workdir", str(workdir.root), "--retriever", "trained"]

    def run(out: str, kill_at: int) -> int:
        args = ["export", engine, *where, "--out", str(tmp_path / out)]
        command = [sys.executable, "-W", "ignore", "-c", KILLED, str(kill_at), *args]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert run("whole", 0) == 0
    assert [run("out", kill_at) for kill_at in (3, 6, 12, 0)] == [-signal.SIGKILL] * 3 + [0]
    both = [artifacts.read_json(tmp_path / name / "manifest.json") for name in ("whole", "out")]
    assert both[0]["files"] == both[1]["files"]
    assert lines(tmp_path / "out") == [one._asdict() for one in passages()]
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_run_of_another_state_left_is_not_used(
    workdir: WorkDir, changed: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dpr_jax.export.checking.write", _killed)
        with pytest.raises(KeyboardInterrupt):
            export(workdir, tmp_path / "out", "numpy")
    export(changed, tmp_path / "out", "numpy")
    assert len(lines(tmp_path / "out")) == COUNT


def test_the_same_again_writes_nothing(
    workdir: WorkDir, changed: WorkDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(workdir, tmp_path / "out", "numpy")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    export(workdir, tmp_path / "out", "numpy")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "export: up to date" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds another export .numpy of trained, 1,200 passages"):
        export(changed, tmp_path / "out", "numpy")


def test_two_at_once_and_a_folder_that_is_not_ours(workdir: WorkDir, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out.partial is in the way"):
        export(workdir, tmp_path / "out", "numpy")
    assert (partial / "thesis.txt").read_text() == "mine"
    (partial / "thesis.txt").unlink()
    with (partial / module.STARTED).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process is exporting"):
            export(workdir, tmp_path / "out", "numpy")


def test_settings_that_the_encoder_does_not_say_are_written_into_its_copy(
    workdir: WorkDir, tmp_path: Path
) -> None:
    source = open_source(workdir, "trained")
    model = ModelConfig(pooling="cls", max_question_tokens=16)
    changed = source._replace(config=dataclasses.replace(source.config, model=model))
    tower.write(changed, tmp_path)
    copy = tmp_path / "question_encoder"
    said = description.read(copy, "question", ModelConfig())
    assert said[:5] == ("cls", True, 16, "pair", False)
    weights = workdir.retriever("trained").encoder + "/question_encoder/model.safetensors"
    assert (copy / "model.safetensors").read_bytes() == Path(weights).read_bytes()


def test_a_vector_with_nan_is_refused(workdir: WorkDir, tmp_path: Path) -> None:
    source = open_source(workdir, "trained")
    shard_BD = np.array(source.shards[0])
    shard_BD[7, 3] = np.nan
    with pytest.raises(InputError, match="row 7 of the embeddings of trained holds NaN"):
        source._replace(shards=[shard_BD, *source.shards[1:]]).vectors(range(5, 20))


def test_a_damaged_file_is_named(workdir: WorkDir, tmp_path: Path) -> None:
    export(workdir, tmp_path / "out", "numpy")
    with (tmp_path / "out" / "docid").open("a") as file:
        file.write("more\n")
    with pytest.raises(InputError, match="docid is damaged"):
        cli.run(["export", "check", "numpy", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export"], "dpr export takes ENGINE first"),
        (["export", "lucene", "--workdir", "{w}", "--out", "{o}"], "no engine 'lucene'; there is"),
        (["export", "numpy", "--workdir", "{w}"], "--out is missing"),
        (["export", "numpy", "--workdir", "{o}", "--out", "{o}"], "not a work directory"),
        (["export", "numpy", "--workdir", "{w}", "--out", "{w}"], "no export of dpr_jax; give"),
        (
            ["export", "numpy", "--workdir", "{w}", "--out", "{o}", "--retriever", "gone"],
            "has no retriever 'gone'; there is trained",
        ),
        (
            ["export", "numpy", "--workdir", "{w}", "--out", "{o}", "--shards", "2"],
            "--shards is for scann",
        ),
        (
            ["export", "scann", "--workdir", "{w}", "--out", "{o}", "--shards", "none"],
            "--shards is none; it must be a number",
        ),
        (
            ["export", "faiss", "--workdir", "{w}", "--out", "{o}", "--url", "x"],
            "--url is for pgvector",
        ),
        (
            ["export", "numpy", "--workdir", "{w}", "--out", "{o}", "--table", "a; drop"],
            "--table is 'a; drop'",
        ),
        (["export", "check", "numpy", "--out", "{o}"], "holds no finished export"),
        (["export", "check", "numpy"], "--out is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    workdir: WorkDir, tmp_path: Path, args: list[str], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message) as caught:
        cli.run([arg.format(w=workdir.root, o=out) for arg in args])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_retriever_without_vectors_is_refused(workdir: WorkDir, tmp_path: Path) -> None:
    where = ["--workdir", str(workdir.root), "--retriever", "bm25"]
    cli.run(["index", *where])
    try:
        with pytest.raises(InputError, match="bm25 is bm25, .* one of: trained"):
            cli.run(["export", "numpy", *where, "--out", str(tmp_path / "out")])
    finally:
        cli.run(["retriever", "remove", "bm25", "--workdir", str(workdir.root), "--yes"])


def test_another_target_or_engine_of_a_check(workdir: WorkDir, tmp_path: Path) -> None:
    export(workdir, tmp_path / "out", "numpy")
    where = ["--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="is an export to numpy, not to faiss"):
        cli.run(["export", "check", "faiss", *where])
    with pytest.raises(InputError, match="--target is 2"):
        cli.run(["export", "check", "numpy", *where, "--target", "2"])
