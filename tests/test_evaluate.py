"""The stage on a small prepared data set whose numbers are worked out by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from dpr_jax import artifacts
from dpr_jax.config import Config, EvaluateConfig
from dpr_jax.data import store
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.evaluation import evaluate

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
    name="tiny",
    evaluate=EvaluateConfig(cutoffs=(1, 2, 3), bootstrap_samples=200, examples=4),
)


def prepared(root: Path, questions: list[Question]) -> artifacts.WorkDir:
    workdir = artifacts.open_workdir(root, "tiny")
    with artifacts.atomic_dir(workdir.data) as folder:
        files = store.write_corpus(folder, PASSAGES)
        files += store.write_questions(folder, {"test": questions})
        artifacts.write_manifest(
            folder / "manifest.json",
            artifacts.made_from("prepare", {}, {}, form=store.FORM),
            files,
            passages=len(PASSAGES),
            questions={"test": len(questions)},
        )
    workdir.runs.mkdir()
    return workdir


def write_run(workdir: artifacts.WorkDir, name: str, lists: dict[str, str]) -> Path:
    """Lists are passage numbers, best first, as in "310"."""
    path = workdir.runs / f"{name}.trec"
    with path.open("w") as file:
        for question, passages in lists.items():
            for rank, number in enumerate(passages, start=1):
                file.write(f"{question} Q0 p{number} {rank} {9 - rank} {name}\n")
    return path


@pytest.fixture
def workdir(tmp_path: Path) -> artifacts.WorkDir:
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


def metrics(workdir: artifacts.WorkDir, name: str) -> dict:
    return json.loads((workdir.metrics / f"{name}.json").read_text())


def test_numbers_by_hand(workdir: artifacts.WorkDir) -> None:
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


def test_order_and_comparisons(workdir: artifacts.WorkDir, capsys: pytest.CaptureFixture) -> None:
    for name in ("alpha", "zeta", "untrained", "hybrid"):
        write_run(workdir, name, {"a": "1"})
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
    workdir: artifacts.WorkDir, capsys: pytest.CaptureFixture, said: list[str]
) -> None:
    evaluate.run(CONFIG, workdir)
    first = capsys.readouterr().out
    before = {f: f.stat().st_mtime_ns for f in workdir.metrics.iterdir()}
    evaluate.run(CONFIG, workdir)
    assert said[-1].startswith("evaluate: up to date")
    assert capsys.readouterr().out == first
    assert before == {f: f.stat().st_mtime_ns for f in workdir.metrics.iterdir()}


def test_two_evaluations_are_identical(workdir: artifacts.WorkDir) -> None:
    evaluate.run(CONFIG, workdir)
    first = (workdir.metrics / "trained.json").read_bytes()
    (workdir.metrics / "manifest.json").unlink()
    evaluate.run(CONFIG, workdir)
    assert (workdir.metrics / "trained.json").read_bytes() == first


@pytest.mark.parametrize("change", ["run", "new run", "setting", "deleted page", "training"])
def test_what_changed_is_done_again(
    workdir: artifacts.WorkDir, said: list[str], change: str
) -> None:
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
        workdir.checkpoints.mkdir()
        (workdir.checkpoints / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"st')
    evaluate.run(config, workdir)
    assert not any("up to date" in line for line in said)
    assert artifacts.verify(workdir.metrics / "manifest.json")


def test_killed_between_its_files_is_done_again(
    workdir: artifacts.WorkDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back at the first settings after a run with others was killed, nothing of the others is
    left.
    """
    evaluate.run(CONFIG, workdir)
    first = (workdir.metrics / "trained.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.report, "render", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate.run(dataclasses.replace(CONFIG, seed=99), workdir)
    assert (workdir.metrics / "trained.json").read_bytes() != first
    evaluate.run(CONFIG, workdir)
    assert not any("up to date" in line for line in said)
    assert (workdir.metrics / "trained.json").read_bytes() == first


def test_page_holds_the_numbers_and_escapes_passages(
    workdir: artifacts.WorkDir,
) -> None:
    evaluate.run(CONFIG, workdir)
    page = (workdir.metrics / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    for text in ("bm25", "trained", "62.5", "capital of Norway?"):
        assert text in page


def test_runs_of_other_questions_lie_elsewhere(workdir: artifacts.WorkDir) -> None:
    (workdir.runs / "dev").mkdir()
    write_run(workdir, "dev/tuning", {"unknown": "1"})
    evaluate.run(CONFIG, workdir)
    assert {file.name for file in workdir.metrics.glob("*.json")} == {
        "bm25.json", "trained.json", "manifest.json",
    }  # fmt: skip


def test_what_another_version_left_is_made_anew(
    workdir: artifacts.WorkDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "FORMAT", 1)
        evaluate.run(CONFIG, workdir)
    (workdir.metrics / "bm25.json").write_text('{"name": "an old layout"}')
    evaluate.run(CONFIG, workdir)
    assert not any("up to date" in line for line in said)
    assert metrics(workdir, "bm25")["run"] == "bm25"


def test_the_page_tells_of_every_index(workdir: artifacts.WorkDir) -> None:
    for folder in ("index", "untrained/index"):
        artifacts.write_json(workdir.root / folder / "index.json", {"kind": "faiss", "count": 5})
    evaluate.run(CONFIG, workdir)
    page = (workdir.metrics / "report.html").read_text()
    assert "<th>index</th>" in page and "<th>untrained/index</th>" in page


def test_shallow_runs_are_told(workdir: artifacts.WorkDir, said: list[str]) -> None:
    write_run(workdir, "shallow", {"a": "1"})
    evaluate.run(CONFIG, workdir)
    assert any("run shallow has at most 1 passages a question" in line for line in said)


def refused(workdir: artifacts.WorkDir, match: str) -> None:
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
    workdir = artifacts.open_workdir(tmp_path / "work", "tiny")
    workdir.runs.mkdir()
    write_run(workdir, "bm25", {"a": "1"})
    refused(workdir, "manifest.json does not exist")


def test_malformed_line(workdir: artifacts.WorkDir) -> None:
    with (workdir.runs / "trained.trec").open("a") as file:
        file.write("a Q0 p0\n")
    refused(workdir, r"trained.trec:9: 3 fields")


def test_run_of_other_questions(workdir: artifacts.WorkDir) -> None:
    write_run(workdir, "other", {"zz": "1"})
    refused(workdir, r"other.trec:1: question 'zz' is not among")


def test_run_of_another_corpus(workdir: artifacts.WorkDir) -> None:
    write_run(workdir, "other", {"a": "19"})
    refused(workdir, r"other.trec:2: passage 'p9' is not in the corpus")


def test_damaged_run(workdir: artifacts.WorkDir) -> None:
    run = workdir.runs / "trained.trec"
    origin = artifacts.made_from("retrieve", {}, {})
    artifacts.write_manifest(workdir.runs / "trained.manifest.json", origin, [run], split="test")
    run.write_text(run.read_text()[:30])
    refused(workdir, "trained.trec is damaged or was changed")


def test_questions_without_labels(tmp_path: Path) -> None:
    bare = [q._replace(positives=(), answers=()) for q in QUESTIONS]
    workdir = prepared(tmp_path / "work", bare)
    write_run(workdir, "bm25", {"a": "1"})
    refused(workdir, "4 test questions have neither gold passages nor answers")
