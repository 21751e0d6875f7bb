"""Two runs side by side, on the small data set that test_evaluate works out by hand."""

from pathlib import Path

import pytest
from test_evaluate import CONFIG, QUESTIONS, prepared, write_run

from dpr_jax import artifacts, cli, recipes
from dpr_jax.errors import InputError
from dpr_jax.evaluation import compare
from dpr_jax.workdir import WorkDir


@pytest.fixture
def workdir(tmp_path: Path) -> WorkDir:
    workdir = prepared(tmp_path / "work", QUESTIONS)
    # Gold at ranks 2, 3, 1, none and at ranks 1, 1, 2, none.
    write_run(workdir, "bm25", {"a": "314", "b": "012", "c": "401", "d": "04"})
    write_run(workdir, "trained", {"a": "134", "b": "21", "c": "302"})
    return workdir


def rows(out: str) -> list[list[str]]:
    """The cells of every table line."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in out.splitlines()
        if line.startswith("│")
    ]


def test_numbers_wins_and_losses(workdir: WorkDir, capsys: pytest.CaptureFixture) -> None:
    compare.run(CONFIG, workdir, "trained", "bm25")
    out = capsys.readouterr().out
    found = rows(out)
    top_1 = next(row for row in found if row[0] == "top-1")
    assert top_1[1:3] == ["50.0", "25.0"] and top_1[3].startswith("+25.0 [")
    assert 0 < float(top_1[4]) <= 1 and top_1[5] == "no clear difference"
    # by gold passage: a and b are won at rank 1, c is lost; two have a hit in both among the first
    # 3, d in neither
    assert [row for row in found if row[0] in "123"][:3] == [
        ["1", "0", "2", "1", "1"],
        ["2", "2", "1", "0", "1"],
        ["3", "3", "0", "0", "1"],
    ]
    assert "trained right and bm25 wrong at rank 1: 2 of 2 questions" in out
    assert "bm25 right and trained wrong at rank 1: 1 of 1 questions" in out
    lost = out[out.index("bm25 right and trained wrong") :]
    assert "capital of Italy?" in lost and "answer: Rome" in lost
    assert "gold: Rome: Rome is the capital" in lost
    assert "trained (first hit at rank 2): Louvre: A museum" in lost


def test_a_file_from_elsewhere(
    workdir: WorkDir, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = write_run(workdir, "other", {"a": "1"}).rename(tmp_path / "other.txt")
    compare.run(CONFIG, workdir, str(other), "bm25")
    assert "other.txt right and bm25 wrong" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("trained", "trained"), "both runs are 'trained'"),
        (("trained", "best"), r"no run 'best'.*\(bm25, trained\)"),
    ],
)
def test_runs_that_cannot_be_compared(
    workdir: WorkDir, pair: tuple[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare.run(CONFIG, workdir, *pair)


def test_a_run_of_other_questions(workdir: WorkDir) -> None:
    """Their ids may be the test questions' too, as DPR's row numbers are."""
    workdir.runs("dev").mkdir()
    run = write_run(workdir, "../dev/trained", {"a": "1"})
    origin = artifacts.made_from("retrieve", {}, {})
    artifacts.write_manifest(run.with_name("trained.manifest.json"), origin, [run], questions="dev")
    with pytest.raises(InputError, match="answers the questions of 'dev'"):
        compare.run(CONFIG, workdir, str(run), "bm25")


def test_command_line(workdir: WorkDir, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipes.store_workdir(workdir, CONFIG)
    place = ["--workdir", str(workdir.root)]
    cli.run(["compare", "trained", "bm25", *place])
    assert "trained right and bm25 wrong" in capsys.readouterr().out
    for args in ([], ["trained"], ["trained", *place]):
        with pytest.raises(InputError, match="dpr compare takes A and B first"):
            cli.run(["compare", *args])
