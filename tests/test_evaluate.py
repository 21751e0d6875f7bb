"""The stage on a small prepared data set whose numbers are worked out by hand."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from prepared import prepare

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config, EvaluateConfig
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.evaluation import evaluate
from dpr_jax.workdir import WorkDir, open_workdir

# Corpus row = number in the id. Paris stands in the text of 1 and 3, in the title alone of 4.
PASSAGES = [
    Passage("p0", "Rome", "Rome is the capital of Italy."),
    Passage("p1", "France", "Its capital is Paris."),
    Passage("p2", "Oslo", "Oslo is the capital of Norway <script>alert(1)</script>."),
    Passage("p3", "Louvre", "A museum in PARIS, by the Seine."),
    Passage("p4", "Paris", "A city of light."),
]
QUESTIONS = [
    Question("a", "capital of France?", ("Paris",), (1,), (), ()),
    Question("b", "capital of Norway?", ("Oslo",), (2,), (), ()),
    Question("c", "capital of Italy?", ("Rome",), (0, 4), (), ()),
    Question("d", "where is the Louvre?", ("Paris",), (3,), (), ()),
]
CONFIG = Config(
    evaluate=EvaluateConfig(cutoffs=(1, 2, 3)),
)


def prepared(root: Path, questions: list[Question]) -> WorkDir:
    workdir = prepare(root, PASSAGES, questions)
    workdir.runs("test").mkdir(parents=True)
    return workdir


def write_run(workdir: WorkDir, name: str, lists: dict[str, str]) -> Path:
    """Lists are passage numbers, best first, as in "310"."""
    path = workdir.runs("test") / f"{name}.trec"
    with path.open("w") as file:
        for question, passages in lists.items():
            for rank, number in enumerate(passages, start=1):
                file.write(f"{question} Q0 p{number} {rank} {9 - rank} {name}\n")
    return path


@pytest.fixture
def workdir(tmp_path: Path) -> WorkDir:
    workdir = prepared(tmp_path / "work", QUESTIONS)
    # Gold at ranks 2, 3, 1, none; answers at ranks 1 (p3), 3, 2, none.
    write_run(workdir, "bm25", {"a": "314", "b": "012", "c": "401", "d": "04"})
    # Gold at ranks 1, 1, 2, missing in the run.
    write_run(workdir, "trained", {"a": "134", "b": "21", "c": "302"})
    return workdir


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stage tells the user."""
    lines: list[str] = []
    monkeypatch.setattr(evaluate, "say", lines.append)
    return lines


def metrics(workdir: WorkDir, name: str) -> dict:
    return json.loads((workdir.metrics / "test" / f"{name}.json").read_text())


def written(workdir: WorkDir) -> dict[Path, int]:
    """When each file of the evaluation was written, in ns."""
    files = [file for file in workdir.metrics.rglob("*") if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


def test_numbers_by_hand(workdir: WorkDir) -> None:
    evaluate.run(CONFIG, workdir)
    bm25, trained = metrics(workdir, "bm25"), metrics(workdir, "trained")

    def values(facts: dict, view: str, names: tuple[str, ...]) -> list[float]:
        return [facts[view]["metrics"][name]["value"] for name in names]

    top = ("top-1", "top-2", "top-3", "MRR@10")
    assert bm25["gold"]["first_hit_rank"] == [2, 3, 1, 0]
    assert bm25["answer"]["first_hit_rank"] == [1, 3, 2, 0]
    assert trained["gold"]["first_hit_rank"] == [1, 1, 2, 0]
    third = (1 / 2 + 1 / 3 + 1) / 4
    assert values(bm25, "gold", top) == pytest.approx([0.25, 0.5, 0.75, third])
    assert values(bm25, "answer", top) == pytest.approx([0.25, 0.5, 0.75, third])
    assert values(trained, "gold", top) == pytest.approx([0.5, 0.75, 0.75, 2.5 / 4])
    assert values(bm25, "gold", ("recall@1", "recall@3")) == pytest.approx([0.125, 0.75])
    # of c the two gold passages are at ranks 1 and 2, and in the other run one of them at rank 2
    assert values(bm25, "gold", ("MAP",)) == pytest.approx([third])
    assert values(trained, "gold", ("MAP",)) == pytest.approx([2.25 / 4])
    assert bm25["depth"] == 3
    assert bm25["compared_with"] == []
    assert trained["compared_with"] == ["bm25"]
    gap = trained["gold"]["difference"]["bm25"]["top-1"]
    assert gap["value"] == pytest.approx(0.25)
    assert gap["low"] <= 0.25 <= gap["high"]
    assert 0 < gap["p_value"] <= 1


def test_title_alone_is_no_answer(tmp_path: Path) -> None:
    workdir = prepared(tmp_path / "work", QUESTIONS[:1])
    write_run(workdir, "other", {"a": "4"})
    evaluate.run(CONFIG, workdir)
    assert metrics(workdir, "other")["answer"]["first_hit_rank"] == [0]


def test_regex_answers(tmp_path: Path) -> None:
    question = Question("a", "?", (r"capital\s+is\s+P\w+", "("), (), (), ())
    workdir = prepared(tmp_path / "work", [question])
    write_run(workdir, "other", {"a": "31"})
    regex = dataclasses.replace(CONFIG.evaluate, answer_match="regex")
    evaluate.run(dataclasses.replace(CONFIG, evaluate=regex), workdir)
    found = metrics(workdir, "other")
    assert found["answer"]["first_hit_rank"] == [2]
    assert "gold" not in found


def test_questions_without_gold_count_only_by_answer(tmp_path: Path) -> None:
    without = QUESTIONS[1]._replace(positives=())
    workdir = prepared(tmp_path / "work", [QUESTIONS[0], without])
    write_run(workdir, "bm25", {"a": "1", "b": "2"})
    evaluate.run(CONFIG, workdir)
    found = metrics(workdir, "bm25")
    assert found["gold"]["questions"] == 1
    assert found["gold"]["first_hit_rank"] == [1, None]
    assert found["answer"]["questions"] == 2
    assert found["answer"]["first_hit_rank"] == [1, 1]


def test_order_and_comparisons(workdir: WorkDir, capsys: pytest.CaptureFixture) -> None:
    for name in ("alpha", "zeta", "untrained", "hybrid"):
        write_run(workdir, name, {"a": "1"})
    recipes.store(workdir.retriever("hybrid"), CONFIG)
    evaluate.run(CONFIG, workdir)
    assert metrics(workdir, "trained")["compared_with"] == ["bm25", "untrained"]
    assert metrics(workdir, "hybrid")["compared_with"] == ["bm25", "trained"]
    assert metrics(workdir, "alpha")["compared_with"] == ["bm25"]
    out = capsys.readouterr().out
    names = [line.split()[1] for line in out.splitlines() if line.startswith("│")]
    assert names[:6] == ["bm25", "untrained", "trained", "hybrid", "alpha", "zeta"]
    assert "trained against untrained" in out
    assert "no clear difference" in out


def test_second_time_is_up_to_date_and_prints_the_same(
    workdir: WorkDir, capsys: pytest.CaptureFixture, said: list[str]
) -> None:
    evaluate.run(CONFIG, workdir)
    first = capsys.readouterr().out
    before = written(workdir)
    evaluate.run(CONFIG, workdir)
    assert "evaluate: up to date" in said
    assert capsys.readouterr().out == first
    assert before == written(workdir)


def test_two_evaluations_are_identical(workdir: WorkDir) -> None:
    evaluate.run(CONFIG, workdir)
    out = workdir.metrics / "test"
    first = (out / "trained.json").read_bytes()
    (out / "manifest.json").unlink()
    evaluate.run(CONFIG, workdir)
    assert (out / "trained.json").read_bytes() == first


@pytest.mark.parametrize("change", ["run", "new run", "setting", "deleted page", "training"])
def test_what_changed_is_done_again(workdir: WorkDir, said: list[str], change: str) -> None:
    evaluate.run(CONFIG, workdir)
    config = CONFIG
    if change == "run":
        write_run(workdir, "trained", {"a": "1"})
    elif change == "new run":
        write_run(workdir, "other", {"a": "1"})
    elif change == "setting":
        config = dataclasses.replace(CONFIG, seed=1)
    elif change == "deleted page":
        (workdir.metrics / "report.html").unlink()
    else:
        trained = workdir.retriever("trained")
        folder = trained.place("checkpoints", {})
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"st')
        trained.point("checkpoints", folder)
    evaluate.run(config, workdir)
    assert not any("up to date" in line for line in said)
    assert artifacts.verify(workdir.metrics / "test" / "manifest.json")


def test_killed_between_its_files_is_done_again(
    workdir: WorkDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back at the first settings after a run with others was killed, nothing of the others is
    left.
    """
    evaluate.run(CONFIG, workdir)
    out = workdir.metrics / "test"
    first = (out / "trained.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.report, "render", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate.run(dataclasses.replace(CONFIG, seed=99), workdir)
    assert (out / "trained.json").read_bytes() != first
    evaluate.run(CONFIG, workdir)
    assert not any("up to date" in line for line in said)
    assert (out / "trained.json").read_bytes() == first


def test_page_holds_the_numbers_and_escapes_passages(
    workdir: WorkDir,
) -> None:
    evaluate.run(CONFIG, workdir)
    page = (workdir.metrics / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    for text in ("bm25", "trained", "62.5", "capital of Norway?"):
        assert text in page


def test_runs_of_other_questions_lie_elsewhere(workdir: WorkDir) -> None:
    workdir.runs("dev").mkdir()
    write_run(workdir, "../dev/tuning", {"unknown": "1"})
    evaluate.run(CONFIG, workdir)
    assert {file.name for file in workdir.metrics.rglob("*.json")} == {
        "bm25.json", "trained.json", "manifest.json",
    }  # fmt: skip


def test_what_another_version_left_is_made_anew(
    workdir: WorkDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "FORMAT", 1)
        evaluate.run(CONFIG, workdir)
    (workdir.metrics / "test" / "bm25.json").write_text('{"name": "an old layout"}')
    evaluate.run(CONFIG, workdir)
    assert not any("up to date" in line for line in said)
    assert metrics(workdir, "bm25")["run"] == "bm25"


def test_the_page_tells_of_every_index(workdir: WorkDir) -> None:
    write_run(workdir, "untrained", {"a": "1"})
    for name in ("trained", "untrained"):
        retriever = workdir.retriever(name)
        folder = retriever.place("index", {})
        artifacts.write_json(folder / "index.json", {"kind": "faiss", "count": 5})
        retriever.point("index", folder)
    evaluate.run(CONFIG, workdir)
    page = (workdir.metrics / "report.html").read_text()
    assert "<th>trained</th><td>faiss" in page and "<th>untrained</th><td>faiss" in page


def test_shallow_runs_are_told(workdir: WorkDir, said: list[str]) -> None:
    write_run(workdir, "shallow", {"a": "1"})
    evaluate.run(CONFIG, workdir)
    assert any("run shallow has at most 1 passages per question" in line for line in said)


def refused(workdir: WorkDir, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        evaluate.run(CONFIG, workdir)
    assert "\n" not in str(error.value)
    assert not list(workdir.metrics.glob("*"))


def test_no_runs(tmp_path: Path) -> None:
    refused(
        prepared(tmp_path / "work", QUESTIONS),
        "no run of the test questions.*dpr retrieve",
    )


def test_no_data(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path / "work")
    workdir.runs("test").mkdir(parents=True)
    write_run(workdir, "bm25", {"a": "1"})
    refused(workdir, "has no data yet; run `dpr prepare")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("a Q0 p0\n", r"odd.trec:1: 3 fields"),
        ("zz Q0 p1 1 2 x\n", r"odd.trec:1: question 'zz' is not among"),
        ("a Q0 p1 1 2 x\na Q0 p9 2 1 x\n", r"odd.trec:2: passage 'p9' is not in the corpus"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_left_out(
    workdir: WorkDir, said: list[str], capsys: pytest.CaptureFixture, lines: str, why: str
) -> None:
    evaluate.run(CONFIG, workdir)
    table, alone = capsys.readouterr().out, metrics(workdir, "trained")
    run = workdir.runs("test") / "odd.trec"
    for content in ("a Q0 p1 1 2 x\n", lines, lines):  # sound, odd, odd and up to date
        run.write_text(content)
        said.clear()
        evaluate.run(CONFIG, workdir)
        found = [line for line in said if "WARNING: run odd is left out: " in line]
        assert [bool(re.search(why, line)) for line in found] == [True] * (content == lines)
    assert capsys.readouterr().out.endswith(table * 2)
    assert metrics(workdir, "trained") == alone
    assert not (workdir.metrics / "test" / "odd.json").exists()


def test_runs_of_which_none_can_be_read(tmp_path: Path) -> None:
    workdir = prepared(tmp_path / "work", QUESTIONS)
    write_run(workdir, "other", {"zz": "1"})
    refused(workdir, r"other.trec:1: question 'zz' is not among")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_run_that_found_nothing_is_a_row_of_zeros(
    workdir: WorkDir, said: list[str], content: str
) -> None:
    (workdir.runs("test") / "nothing.trec").write_text(content)
    evaluate.run(CONFIG, workdir)
    found = metrics(workdir, "nothing")
    assert found["gold"]["first_hit_rank"] == [0] * 4 and found["depth"] == 0
    assert {one["value"] for one in found["gold"]["metrics"].values()} == {0.0}
    assert any("WARNING: run nothing has no passage for any question" in line for line in said)


def test_an_imported_run_of_a_taken_name(workdir: WorkDir) -> None:
    folder = workdir.imported_runs("test")
    folder.mkdir()
    (folder / "bm25.trec").write_text("a Q0 p1 1 2 x\n")
    evaluate.run(CONFIG, workdir)
    assert metrics(workdir, "imported/bm25")["gold"]["first_hit_rank"] == [1, 0, 0, 0]
    assert metrics(workdir, "bm25")["gold"]["first_hit_rank"] == [2, 3, 1, 0]


def test_damaged_run(workdir: WorkDir) -> None:
    folder = workdir.runs("test")
    run, origin = folder / "trained.trec", artifacts.made_from("retrieve", {}, {})
    artifacts.write_manifest(folder / "trained.manifest.json", origin, [run], questions="test")
    run.write_text(run.read_text()[:30])
    refused(workdir, "trained.trec is damaged or was changed")


def test_questions_without_labels(tmp_path: Path, said: list[str]) -> None:
    bare = [q._replace(positives=(), answers=()) for q in QUESTIONS]
    workdir = prepared(tmp_path / "work", bare)
    write_run(workdir, "bm25", {"a": "1"})
    evaluate.run(CONFIG, workdir)
    assert "questions of test have neither gold passages nor answers" in "\n".join(said)
    assert not list(workdir.metrics.glob("*"))
