"""The whole pipeline as a user runs it, on real rows with a tiny model: once, twice, and killed at
every stage.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import quick
import tiny

from dpr_jax import artifacts, cli, needs
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

FIXTURE = Path(__file__).parent / "fixtures" / "nq_small"
CONFIG = """
from dpr_jax.config import *

config = Config(
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
        dropout=0,
        log_every_steps=1,
        checkpoint_every_steps=2,
        validation_negatives=1,
    ),
    encode=EncodeConfig(rows_per_shard=100),
    index=IndexConfig(kind="scann"),
)
"""
ANY = None  # exit status
# a line that each stage prints while it is at work, in the pipeline's order
KILL_AT = (
    "BM25 index:",
    "retrieve bm25 on test:",
    "encode untrained:",
    "index: scann",
    "mine train:",
    "train: 60 questions",
    "train: step 6: validation",
    "train: step 6 becomes",
    "encode trained:",
    "retrieve trained on dev:",
    "retrieve hybrid: weight",
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
        env=quick.ONE_DEVICE,
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
        env=quick.ONE_DEVICE,
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
        for path in sorted((workdir / "metrics" / "test").glob("*.json"))
        if path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.write(folder / "init", layers=1)
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
        assert (workdir / "runs" / "test" / f"{name}.trec").exists()
        assert (workdir / "runs" / "test" / f"{name}.json").exists()
        assert not (workdir / "runs" / "dev" / f"{name}.json").exists()
    trained = open_workdir(workdir).retriever("trained")
    index = json.loads((trained.current("index") / "index.json").read_text())
    assert index["kind"] == "scann"
    assert 0.9 < index["recall_at_100"] <= 1
    for side in ("question", "passage"):
        assert (trained.current("model") / f"{side}_encoder" / "model.safetensors").exists()
    assert "stage 13 of 13: evaluate" in done.stderr
    assert f'next: `dpr ask "QUESTION" --workdir {workdir}`' in done.stderr


def test_a_second_run_does_nothing_again(
    config: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = run(config, workdir)
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert after == before
    assert again.stderr.count("up to date") >= 15


def test_killed_at_every_stage_it_ends_with_the_same_numbers(
    config: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    workdir = config.parent / "killed"
    for line in KILL_AT:
        run_until(line, config, workdir)
    run(config, workdir)
    assert metrics(workdir) == metrics(finished[0])
    endings = (".partial", ".building", ".link", "lease.json")
    assert not [path for path in workdir.rglob("*") if path.name.endswith(endings)]


def dpr(*args: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `dpr` in this process, which has imported and compiled before."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["dpr", *map(str, args)])
        try:
            cli.main()
        except SystemExit as end:
            found = end.code
    done = subprocess.CompletedProcess(sys.argv, found, out.getvalue(), err.getvalue())
    assert status in (found, ANY), done.stderr
    return done


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): artifacts.checksum(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def copy(finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_another_retriever_of_the_same_embeddings(copy: Path) -> None:
    """Without CONFIG.py, beside the first one, which stays byte by byte."""
    before = checksums(copy)
    more = ("--retriever", "flat", "--workdir", copy)
    dpr("index", *more, "--like", "trained", "--index.kind", "exact")
    dpr("retrieve", *more, "--retrieve.split", "test")
    now = checksums(copy)
    changed = {name for name in before if now.get(name) != before[name]}
    assert changed <= {"config.json"}
    workdir = open_workdir(copy)
    flat, trained = (workdir.retriever(name) for name in ("flat", "trained"))
    assert flat.current("embeddings") == trained.current("embeddings")
    assert flat.current("index") != trained.current("index")
    listed = dpr("retriever", "list", "--workdir", copy).stdout
    assert "flat" in listed and "hybrid" in listed
    dpr("compare", "flat", "trained", "--workdir", copy)
    refused = dpr("retriever", "remove", "trained", "--yes", "--workdir", copy, status=2)
    assert "uses trained; run `dpr retriever remove" in refused.stderr
    dpr("retriever", "remove", "flat", "--yes", "--workdir", copy)
    assert not flat.home.exists() and trained.current("index").exists()


def test_a_training_with_other_settings_is_another_retriever(copy: Path) -> None:
    rate = ("--retriever", "fast", "--workdir", copy, "--train.learning-rate", "2e-3")
    done = dpr("train", *rate, status=2)
    assert "retriever fast has no mined hard negatives yet; run `dpr mine" in done.stderr
    dpr("mine", *rate)
    done = dpr("train", *rate)
    assert "retriever fast" not in done.stderr  # nothing of it was stored with another rate
    workdir = open_workdir(copy)
    models = {workdir.retriever(name).current("model") for name in ("fast", "trained")}
    assert len(models) == 2


def test_gc_deletes_what_nothing_names_and_asks(copy: Path) -> None:
    workdir = open_workdir(copy)
    old = workdir.retriever("trained").current("index")
    dpr("index", "--workdir", copy, "--index.kind", "exact")
    assert old.exists()
    refused = dpr("gc", "--workdir", copy, status=2)
    assert old.name in refused.stdout and "Give --yes" in refused.stderr and old.exists()
    dpr("gc", "--yes", "--workdir", copy)
    assert not old.exists()
    dpr("ask", "which river?", "--retriever", "trained", "--workdir", copy)
    done = dpr("gc", "--workdir", copy)
    assert "every artifact is in use" in done.stderr


def until_it_works(command: list[str], most: int) -> list[str]:
    """Runs a command, and as long as it is refused what the refusal says; returns what that was."""
    followed: list[str] = []
    while True:
        done = dpr(*command, status=ANY)
        if done.returncode == 0:
            return followed
        assert done.returncode == 2 and len(followed) < most, done.stderr
        if deleted := re.search(r"delete (\S+) and run", done.stderr):
            Path(deleted[1]).unlink()
        remedy = re.search(r"run `dpr ([^`]+)`", done.stderr)
        assert remedy, done.stderr
        followed += until_it_works(shlex.split(remedy[1]), most) + [remedy[1].split()[0]]


def test_the_remedies_of_refusals_work(copy: Path) -> None:
    """A damaged shard, then a retriever of which nothing is there, by their messages alone."""
    trained = open_workdir(copy).retriever("trained")
    shard = next(trained.current("embeddings").glob("*.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    index = ["index", "--retriever", "trained", "--workdir", str(copy), "--index.leaves", "7"]
    assert until_it_works(index, 1) == ["encode"]
    assert shard.read_bytes() == whole
    retrieve = ["retrieve", "--retriever", "new", "--retrieve.split", "test"]
    steps = until_it_works([*retrieve, "--workdir", str(copy)], 4)
    assert steps == ["mine", "train", "encode", "index"]


def test_needs_of_the_quickstart() -> None:
    """Measured: 191 MB of retrievers, of which 178 are the model's and 11 the indexes', 9 of runs,
    3 of each BM25."""
    found = needs.estimate(
        data_bytes=4_000_000,
        passages=3300,
        questions=600,
        top_k=100,
        json_runs=False,
        engine="scann",
        width=384,
        dense=2,
        runs=4,
        tower_bytes=90_900_000,
        trained=1,
        towers=2,
        weights_kept=1,
    )
    assert sum(found.disk.values()) == pytest.approx(208e6, rel=0.1)
    assert found.passing == 9 * 2 * 90_900_000  # three states of three numbers per weight
    assert 350e6 < found.memory < 400e6


def test_part_of_a_pipeline(config: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "part"
    done = dpr("pipeline", config, "--workdir", workdir, "--until", "prepare")
    assert "stage 1 of 1: prepare" in done.stderr
    done = dpr("pipeline", "--workdir", workdir, "--from", "mine", "--until", "mine")
    assert re.search(r"passages take about \d+ MB of disk, of which \d+ MB are there", done.stderr)
    done = dpr("pipeline", "--workdir", workdir, "--from", "index", "--until", "index", status=2)
    assert "has no embeddings yet; run `dpr encode" in done.stderr
    done = dpr("pipeline", "--workdir", workdir, "--from", "train", "--until", "mine", status=2)
    assert "--from train comes after --until mine" in done.stderr
    done = dpr("pipeline", "--workdir", workdir, "--from", "encoding", status=2)
    assert "--from encoding is no stage" in done.stderr


def test_documents_alone_are_indexed_and_can_be_asked(tmp_path: Path) -> None:
    """No training questions, no test questions, and a picture among the texts."""
    tiny.write(tmp_path / "init")
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "rhine.txt").write_text("The Rhine rises in the Alps and flows through Basel.")
    (folder / "tea.txt").write_text("Green tea is steeped for two minutes.")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    settings = ("--data.passages", folder, "--model.init", tmp_path / "init")
    workdir = tmp_path / "w"
    done = dpr("pipeline", "--workdir", workdir, *settings, "--data.split-words", "100")
    assert "nothing was trained: that takes questions" in done.stderr
    assert "1 files passed over: not text" in done.stderr
    found = dpr("ask", "where does the Rhine rise?", "--workdir", workdir, "--k", "1", "--json")
    answer = json.loads(found.stdout)
    assert answer["retriever"] in ("untrained", "bm25")
    words = dpr("ask", "tea minutes", "--workdir", workdir, "--retriever", "bm25", "--json")
    assert "steeped" in json.loads(words.stdout)["passages"][0]["text"]


def test_documents_and_questions_without_training(tmp_path: Path) -> None:
    tiny.write(tmp_path / "init")
    settings = (
        *("--data.passages", FIXTURE / "passages.tsv.gz", "--data.test", FIXTURE / "test.qa.csv"),
        *("--model.init", tmp_path / "init"),
    )
    done = dpr("pipeline", "--workdir", tmp_path / "w", *settings)
    assert "untrained" in done.stdout and "bm25" in done.stdout
    assert "Answer found in the text" in done.stdout


def test_foreign_encoders_in_one_table(config: Path, copy: Path) -> None:
    """By folder, each named, none of them with this config's pooling forced on it."""
    for seed in (3, 4):
        tiny.write(copy.parent / f"other-{seed}", seed=seed)
    compare = (copy.parent / "other-3", f"named={copy.parent / 'other-4'}", "bm25")
    done = dpr("pipeline", config, "--workdir", copy, "--compare", *compare)
    for name in ("other-3", "named", "bm25", "trained"):
        assert name in done.stdout
    recipe = open_workdir(copy).retriever("named").read()
    assert recipe["source"] == str(copy.parent / "other-4")
    assert recipe["recipe"]["model"]["pooling"] is None


PATHS = ("--data.passages", "--data.train", "--data.dev", "--data.test", "--model.init", "--from")


COMMANDS = ("prepare", "mine", "train", "encode", "index", "retrieve")


def states(*folders: Path) -> dict[Path, tuple[int, int, int]]:
    """Every file below the folders with its inode, size and time of change."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                found[path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


@pytest.mark.parametrize(
    "wide", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_path_deletes_anything(
    copy: Path, tmp_path_factory: pytest.TempPathFactory, command: str, wide: bool
) -> None:
    """Settings that take a path point at folders of the work directory, at its parent and at /.

    Neither the work directory, nor what lies beside it, nor a folder elsewhere loses a file.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (elsewhere, copy.parent):
        (folder / "sentinel.txt").write_text("Nobody writes here.")
    trained = open_workdir(copy).retriever("trained")
    places = [copy, Path("/"), trained.current("checkpoints")]
    if wide:
        places += [copy.parent, elsewhere, *copy.iterdir(), *trained.home.iterdir()]
    places = [one for one in places if one.is_dir() and not one.is_symlink()]
    settings = PATHS if command == "encode" else PATHS[:-1]
    moving = {copy / "config.json", trained.file}
    before, sums = states(copy.parent, elsewhere), checksums(copy.parent)
    for setting in settings:
        for place in places:
            with contextlib.suppress(InputError):
                cli.run([command, "--workdir", str(copy), setting, str(place)])
            now = states(copy.parent, elsewhere)
            lost = {path for path, state in before.items() if now.get(path) != state}
            assert lost <= moving, (setting, place)
    now = checksums(copy.parent)
    lost = {copy.parent / name for name, sha256 in sums.items() if now.get(name) != sha256}
    assert lost <= moving
