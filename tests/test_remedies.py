"""Messages propose what works as it is printed; what is refused leaves nothing behind."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax import cli, config_file, housekeeping, lease, pipeline, recipes
from dpr_jax.config import Config
from dpr_jax.errors import InputError
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import WorkDir, open_workdir

FIXTURE = Path(__file__).parent / "fixtures" / "nq_small"


@pytest.fixture
def workdir(tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]) -> WorkDir:
    """A copy of the prepared data, in a folder whose name a shell would take apart."""
    root = tmp_path / "a wörk dir"
    shutil.copytree(nq_small_workdir[1].root, root, symlinks=True)
    return open_workdir(root)


def refused(*args: str) -> str:
    with pytest.raises(InputError) as error:
        cli.run([*args])
    return str(error.value)


def proposed(message: str) -> list[str]:
    """Returns the command of a message as a shell would read it, without `dpr`."""
    command = re.search(r"`dpr ([^`]+)`", message)
    assert command, message
    return shlex.split(command[1])


def test_a_proposed_command_names_a_folder_with_spaces(workdir: WorkDir) -> None:
    message = refused("retrieve", "--retriever", "bm25", "--workdir", str(workdir.root))
    assert proposed(message) == ["index", "--retriever", "bm25", "--workdir", str(workdir.root)]
    cli.run(proposed(message))
    cli.run(["retrieve", "--retriever", "bm25", "--workdir", str(workdir.root)])
    assert (workdir.runs("test") / "bm25.trec").exists()


@pytest.mark.parametrize("name", ["config.json", "retrievers/trained/retriever.json"])
def test_a_damaged_pointer_file_costs_no_artifact(workdir: WorkDir, name: str) -> None:
    file = workdir.root / name
    before = workdir.data, workdir.retriever("trained").current("mined")
    file.write_text("{")
    message = refused(
        "inspect" if name == "config.json" else "train", "--workdir", str(workdir.root)
    )
    assert "is damaged" in message and "delete" not in message
    assert "move it away" in message
    file.rename(workdir.root.parent / "moved away")
    command = ["pipeline", "--until", "mine", "--workdir", str(workdir.root)]
    files = {"passages": "passages.tsv.gz", "train": "train.json", "dev": "dev.json"}
    files |= {"test": "test.qa.csv", "test-qrels": "test.qrels"}
    for setting, value in files.items():
        command += [f"--data.{setting}", str(FIXTURE / value)]
    cli.run(command)
    assert (workdir.data, workdir.retriever("trained").current("mined")) == before


def test_gc_leaves_folders_that_no_stage_made(workdir: WorkDir) -> None:
    theirs = [workdir.root / "notes-20261127", workdir.root / "data-20261127"]
    ours = workdir.root / "data-deadbeef"
    for folder in (*theirs, ours):
        folder.mkdir()
        (folder / "file.txt").write_text("mine")
    (ours / "manifest.json").write_text("{}")
    cli.run(["gc", "--workdir", str(workdir.root), "--yes"])
    assert all((folder / "file.txt").exists() for folder in theirs)
    assert not ours.exists()


def test_sizes_count_a_file_of_two_names_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    assert housekeeping.disk_bytes(tmp_path) == 1000


def test_only_prepare_takes_other_data(
    workdir: WorkDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = workdir.read()["config"]["data"]
    config = tmp_path / "other.py"
    config.write_text(
        "from dpr_jax.config import Config, DataConfig\n"
        "config = Config(data=DataConfig(passages='no/such/file.tsv'))\n"
    )
    cli.run(["inspect", str(config), "--workdir", str(workdir.root)])
    assert "the data are those that were prepared" in capfd.readouterr().err
    assert workdir.read()["config"]["data"] == stored
    message = refused("prepare", str(config), "--workdir", str(workdir.root))
    assert str(Path("no/such/file.tsv").absolute()) in message
    assert workdir.read()["config"]["data"] == stored


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("day=2026/p.tsv", "{here}/day=2026/p.tsv"),
        ("runs/day=2026/p.tsv", "{here}/runs/day=2026/p.tsv"),
        ("/data/day=2026/p.tsv", "/data/day=2026/p.tsv"),
        ("mine=p.tsv", "mine={here}/p.tsv"),
        ("mine=runs/day=1/p.tsv", "mine={here}/runs/day=1/p.tsv"),
        ("s3://bucket/day=2026/p.tsv", "s3://bucket/day=2026/p.tsv"),
        ("mine=s3://bucket/p.tsv", "mine=s3://bucket/p.tsv"),
        ("tfds:nq#test", "tfds:nq#test"),
    ],
)
def test_paths_are_stored_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, stored: str
) -> None:
    """A name before `=` has no slash; a folder that is there may be called so too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day=2026").mkdir()
    (tmp_path / "day=2026" / "p.tsv").write_text("")
    data = dataclasses.replace(Config().data, test=(given,))
    found = recipes.absolute(dataclasses.replace(Config(), data=data)).data.test
    assert found == (stored.format(here=tmp_path),)


@pytest.mark.parametrize("command", ["train", "mine", "encode", "evaluate", "index", "inspect"])
def test_a_command_without_data_makes_no_folder(tmp_path: Path, command: str) -> None:
    message = refused(command, "--workdir", str(tmp_path / "typo"))
    assert "is not a work directory" in message and "dpr prepare" in message
    assert list(tmp_path.iterdir()) == []


def test_training_without_questions_names_what_is_missing(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "one.txt").write_text("A llama carries the luggage.")
    (notes / "app.log").write_text("12:00 started")
    (notes / "drawing.xpm").write_text("/* XPM */")
    root = tmp_path / "w"
    cli.run(["prepare", "--workdir", str(root), "--data.passages", str(notes)])
    for command in ("train", "mine"):
        message = refused(command, "--workdir", str(root))
        assert "--data.train FILE" in message, command
        assert not open_workdir(root).retriever("trained").file.exists(), command


def test_files_of_unknown_kind_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("A llama carries the luggage.")
    (tmp_path / "app.log").write_text("12:00 started")
    flags = ["--data.passages", str(tmp_path), "--workdir", str(tmp_path.parent / "w")]
    cli.run(["prepare", *flags])
    assert "1 files passed over: text, but neither .txt" in capfd.readouterr().err
    (tmp_path / "one.txt").unlink()
    assert "none of its 1 files is a document" in refused("prepare", *flags)


def test_a_filter_is_known_by_all_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "deeper.py").write_text("LIMIT = 1\n")
    (tmp_path / "nearby.py").write_text("from deeper import LIMIT\n")
    (tmp_path / "c.py").write_text(
        "from nearby import LIMIT\n"
        "from dpr_jax.config import Config, MineConfig\n"
        "def keep(question, passages):\n"
        "    return [len(text) > LIMIT for _, text in passages]\n"
        "config = Config(mine=MineConfig(filter=keep))\n"
    )
    function = config_file.load(tmp_path / "c.py").mine.filter
    before = config_file.describe(function)
    (tmp_path / "unrelated.py").write_text("LIMIT = 5\n")
    assert config_file.describe(function) == before
    (tmp_path / "deeper.py").write_text("LIMIT = 2\n")
    assert config_file.describe(function) != before


@pytest.mark.parametrize("source", ["enc/bm25", "enc/hybrid", "enc/trained", "enc/an encoder"])
def test_an_encoder_whose_folder_has_a_taken_name_wants_another(source: str) -> None:
    config = dataclasses.replace(Config(), compare=("bm25", source))
    with pytest.raises(InputError, match=f"write NAME={source}"):
        pipeline.compared(config, trains=True)
    config = dataclasses.replace(Config(), compare=("bm25", f"mine={source}"))
    assert pipeline.compared(config, trains=True) == {"bm25": None, "mine": source}


def test_a_missing_encoder_is_named_before_the_first_stage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.passages", str(FIXTURE / "passages.tsv.gz")]
    missing = ["--model.init", str(tmp_path / "no encoder")]
    message = refused("pipeline", *data, *missing, "--workdir", str(tmp_path / "w"))
    assert "no encoder" in message
    assert "stage 1" not in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_epochs_take_the_place_of_stored_updates(workdir: WorkDir) -> None:
    flags = ["--workdir", str(workdir.root)]
    workdir.retriever("trained").update(recipe={"train": {"total_steps": 7}})
    config = cli.parse("train", ["--train.epochs", "2", *flags]).config
    assert (config.train.epochs, config.train.total_steps) == (2, None)
    assert cli.parse("train", flags).config.train.total_steps == 7
    same = cli.parse("train", ["--train.epochs", "None", *flags]).config.train
    assert (same.epochs, same.total_steps) == (None, 7)
    both = ["--train.epochs", "2", "--train.total-steps", "3", *flags]
    assert "set one of the two" in refused("train", *both)


def test_a_question_stands_anywhere_and_in_quotes(workdir: WorkDir) -> None:
    flags = ["--retriever", "bm25", "--workdir", str(workdir.root)]
    for args in (["-5 degrees?", *flags], [*flags, "-5 degrees?"]):
        assert cli.parse("ask", args).operands == ["-5 degrees?"]
    assert "put the question in quotes" in refused("ask", "what", "is", "gout", *flags)


@pytest.mark.parametrize("k", [None, 2.5, "3"])
def test_a_number_of_passages_that_is_none_is_refused(workdir: WorkDir, k: object) -> None:
    cli.run(["index", "--retriever", "bm25", "--workdir", str(workdir.root)])
    retriever = Retriever.load(workdir.root, "bm25")
    with pytest.raises(InputError, match="whole number"):
        retriever.search(["who?"], k=k)


def test_a_process_whose_lease_was_taken_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dpr_jax import lease\n"
        "lease.RENEW_S = 0.1\n"
        f"with lease.held(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        (tmp_path / lease.FILE).write_text('{"token": "another", "process": 7, "host": "far"}')
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "process 7 on far took the lease" in said and "run the same command again" in said
