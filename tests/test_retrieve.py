"""The retrieval stage: what stands in the TREC and JSON files, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prepared import WordEmbedder, prepare, retriever

from dpr_jax import artifacts
from dpr_jax.config import Config, EncodeConfig, IndexConfig, RetrieveConfig
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index import update
from dpr_jax.retrieval import retrieve, searcher
from dpr_jax.retrieval.runs import Hit, RunFiles, falling
from dpr_jax.workdir import WorkDir, open_workdir

PASSAGES = [
    Passage("w1", "Rome", "The Tiber flows through Rome, the capital of Italy."),
    Passage("w2", "Paris", "The Seine flows through Paris, the capital of France."),
    Passage("w3", "Paris", "The Seine flows through Paris, the capital of France."),
    Passage("w4", "Mont Blanc", "Highest mountain of the Alps — “the white one”."),
    Passage("w5", "Danube", "Vienna, Budapest and Belgrade lie on its banks."),
]
QUESTIONS = [
    Question("q0", "which river flows through Paris?", ("Seine",), (1,), (), ()),
    Question("q1", "Alps highest mountain", ("Mont Blanc", "white one"), (3,), (), ()),
    Question("q2", "Vienna Budapest Belgrade banks", (), (4,), (), ()),
]
CONFIG = Config(
    encode=EncodeConfig(rows_per_shard=2),
    index=IndexConfig(kind="faiss", recall_queries=3),
    retrieve=RetrieveConfig(top_k=4),
)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """A work directory with the index of a dense retriever and of BM25."""
    root = tmp_path_factory.mktemp("retrieve") / "work"
    workdir = prepare(root, PASSAGES, QUESTIONS)
    index_both(workdir)
    return workdir


def index_both(workdir: WorkDir) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "load_embedder", lambda *_, **__: WordEmbedder())
        encode.run(CONFIG, retriever(workdir, "trained", CONFIG))
    for name in ("trained", "bm25"):
        update.run(CONFIG, retriever(workdir, name, CONFIG))


@pytest.fixture
def workdir(indexed: WorkDir, tmp_path: Path) -> WorkDir:
    shutil.copytree(indexed.root, tmp_path / "work", symlinks=True)
    return open_workdir(tmp_path / "work")


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    embedder = WordEmbedder()
    monkeypatch.setattr(searcher, "load_embedder", lambda *_, **__: embedder)
    return embedder


def answer(workdir: WorkDir, name: str, **changes: object) -> None:
    """Runs the stage for a retriever, with some settings of `retrieve` changed."""
    config = dataclasses.replace(CONFIG, retrieve=dataclasses.replace(CONFIG.retrieve, **changes))
    retrieve.run(config, retriever(workdir, name, config))


def _read(workdir: WorkDir, name: str) -> tuple[list[list[str]], list[dict]]:
    runs = workdir.runs("test")
    lines = (runs / f"{name}.trec").read_text(encoding="utf-8").splitlines()
    run = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    return [line.split(" ") for line in lines], run


def test_a_dense_run(workdir: WorkDir, embedder: WordEmbedder) -> None:
    answer(workdir, "trained")
    lines, run = _read(workdir, "trained")

    texts = [(passage.title, passage.text) for passage in PASSAGES]
    vectors_ND = embedder.encode(texts).astype(np.float16).astype(np.float32)
    queries_QD = embedder.encode([question.question for question in QUESTIONS])
    scores_QN = queries_QD @ vectors_ND.T
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")
    for i, question in enumerate(QUESTIONS):
        mine = [line for line in lines if line[0] == question.id]
        assert [line[3] for line in mine] == ["1", "2", "3", "4"]
        assert {(line[1], line[5]) for line in mine} == {("Q0", "trained")}
        # by title: w2 and w3 are equal, and an engine may take either
        wanted = [PASSAGES[row].title for row in order_QN[i, :4]]
        assert [ctx["title"] for ctx in run[i]["ctxs"]] == wanted
        assert [ctx["id"] for ctx in run[i]["ctxs"]] == [line[2] for line in mine]
        scores = np.array([line[4] for line in mine], np.float32)
        np.testing.assert_allclose(scores, -np.sort(-scores_QN[i])[:4], rtol=1e-4)
        assert (np.diff(scores) < 0).all()
        assert [np.float32(ctx["score"]) for ctx in run[i]["ctxs"]] == scores.tolist()
    facts = artifacts.verify(workdir.runs("test") / "trained.manifest.json")
    assert (facts["kind"], facts["count"], facts["top_k"]) == ("dense", 3, 4)


def test_dprs_json(workdir: WorkDir, embedder: WordEmbedder) -> None:
    answer(workdir, "trained")
    _, run = _read(workdir, "trained")
    assert [entry["question"] for entry in run] == [q.question for q in QUESTIONS]
    assert [entry["answers"] for entry in run] == [list(q.answers) for q in QUESTIONS]
    first = run[1]["ctxs"][0]
    assert list(first) == ["id", "title", "text", "score", "has_answer"]
    assert first["id"] == "w4" and first["title"] == "Mont Blanc"
    assert first["text"] == PASSAGES[3].text
    answered = {ctx["id"]: ctx["has_answer"] for ctx in run[1]["ctxs"]}
    assert answered.pop("w4") and not any(answered.values())  # the title is no text
    assert run[0]["ctxs"][0]["has_answer"] and not run[2]["ctxs"][0]["has_answer"]


def test_a_bm25_run_leaves_out_what_is_no_hit(workdir: WorkDir) -> None:
    answer(workdir, "bm25")
    lines, run = _read(workdir, "bm25")
    found = {q.id: [line[2] for line in lines if line[0] == q.id] for q in QUESTIONS}
    assert found == {"q0": ["w2", "w3", "w1"], "q1": ["w4"], "q2": ["w5"]}
    assert [len(entry["ctxs"]) for entry in run] == [3, 1, 1]
    assert float(lines[0][4]) > float(lines[1][4]) > float(lines[2][4])


def test_a_finished_run_is_not_made_again(workdir: WorkDir, embedder: WordEmbedder) -> None:
    answer(workdir, "trained")
    answer(workdir, "bm25")
    before = (workdir.runs("test") / "trained.trec").stat()
    embedder.encoded.clear()
    answer(workdir, "trained")
    assert embedder.encoded == []
    assert (workdir.runs("test") / "trained.trec").stat().st_ino == before.st_ino
    answer(workdir, "trained", top_k=9)
    assert len(_read(workdir, "trained")[0]) == 15  # three questions, five passages


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


def test_killed_in_the_middle(
    workdir: WorkDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(workdir, "trained")
    whole = _read(workdir, "trained")

    def killed(*_: object, **__: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_manifest", killed)
        with pytest.raises(_Killed):
            answer(workdir, "trained", top_k=2)
    answer(workdir, "trained")  # the files on disk are of the other run: made again
    assert _read(workdir, "trained") == whole
    names = {path.name for path in workdir.runs("test").iterdir()}
    assert names == {"trained.trec", "trained.json", "trained.manifest.json"}


def test_a_killed_run_goes_on_where_it_was(
    workdir: WorkDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the second batch was being written: the first is not searched again, and the
    files are an unbroken run's.
    """
    monkeypatch.setattr(retrieve, "QUESTIONS_AT_ONCE", 2)
    answer(workdir, "trained")
    files = [workdir.runs("test") / "trained.trec", workdir.runs("test") / "trained.json"]
    whole = [file.read_bytes() for file in files]
    for file in workdir.runs("test").iterdir():
        file.unlink()

    added: list[Question] = []
    add = RunFiles.add

    def add_two(files: RunFiles, question: Question, hits: list[Hit]) -> None:
        if len(added) == 2:
            # what the kernel still wrote of it, and no word of it in the plan
            files._files[0].write(b"q2 Q0 w1 1 0.5")
            raise _Killed
        added.append(question)
        add(files, question, hits)

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "add", add_two)
        with pytest.raises(_Killed):
            answer(workdir, "trained")
    assert not any(file.exists() for file in files)
    embedder.encoded.clear()
    answer(workdir, "trained")
    assert embedder.encoded == [QUESTIONS[2].question]
    assert [file.read_bytes() for file in files] == whole
    assert artifacts.verify(workdir.runs("test") / "trained.manifest.json")["count"] == 3


def test_what_was_begun_with_other_settings_is_dropped(
    workdir: WorkDir, embedder: WordEmbedder
) -> None:
    origin = {"stage": "another"}
    with RunFiles(workdir.runs("test"), "trained", origin, with_json=True) as files:
        files.add(QUESTIONS[0], [])
        files.save()
    answer(workdir, "trained")
    lines, run = _read(workdir, "trained")
    assert len(run) == 3 and len(lines) == 12
    assert not list(workdir.runs("test").glob("*.partial"))


def test_dev_runs_do_not_replace_test_runs(tmp_path: Path) -> None:
    workdir = prepare(tmp_path / "work", PASSAGES, QUESTIONS, dev=QUESTIONS[1:])
    update.run(CONFIG, retriever(workdir, "bm25", CONFIG))
    answer(workdir, "bm25")
    before = (workdir.runs("test") / "bm25.trec").read_bytes()
    answer(workdir, "bm25", split="dev")
    assert (workdir.runs("test") / "bm25.trec").read_bytes() == before
    run = json.loads((workdir.runs("dev") / "bm25.json").read_text(encoding="utf-8"))
    assert [entry["question"] for entry in run] == [q.question for q in QUESTIONS[1:]]
    assert workdir.retriever("bm25").read()["dev"] == {"MRR@10": 1.0, "questions": 2}


def test_the_json_may_be_left_out(workdir: WorkDir) -> None:
    answer(workdir, "bm25", json_run=False)
    assert {path.name for path in workdir.runs("test").iterdir()} == {
        "bm25.trec",
        "bm25.manifest.json",
    }


# --- questions of a file


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("mine.tsv", "x1\tAlps highest mountain\nx2\tVienna banks\n", ["x1", "x2"]),
        ("mine.csv", "Alps highest mountain\t['white one']\n", ["0"]),
        (
            "mine.xml",
            "<top>\n<num> Number: 7\n<title> Alps highest mountain\n</top>\n",
            ["7"],
        ),
        ("mine.json", '[{"question": "Seine?", "answers": ["Paris"]}]', ["0"]),
    ],
)
def test_questions_of_a_file(
    workdir: WorkDir, tmp_path: Path, name: str, text: str, ids: list[str]
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    answer(workdir, "bm25", questions=str(file))
    (folder,) = workdir.root.glob("runs/mine-*")
    lines = (folder / "bm25.trec").read_text().splitlines()
    assert list(dict.fromkeys(line.split()[0] for line in lines)) == ids
    run = json.loads((folder / "bm25.json").read_text(encoding="utf-8"))
    assert run[0]["ctxs"][0]["has_answer"] == bool(run[0]["answers"])
    first = (folder / "bm25.trec").stat().st_ino
    answer(workdir, "bm25", questions=str(file))
    assert (folder / "bm25.trec").stat().st_ino == first


def test_files_of_one_name_and_of_the_splits_names_keep_apart(
    workdir: WorkDir, tmp_path: Path
) -> None:
    """Every BEIR set has a queries file, and a user's file may be called test."""
    answer(workdir, "bm25")
    for folder, name in (("a", "queries.tsv"), ("b", "queries.tsv"), ("c", "test.tsv")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / name
        file.write_text(f"{folder}1\tAlps highest mountain {folder}\n")
        answer(workdir, "bm25", questions=str(file))
    ids = {
        path.parent.name: path.read_text().split()[0]
        for path in workdir.root.glob("runs/*/bm25.trec")
    }
    assert sorted(ids.values()) == ["a1", "b1", "c1", "q0"] and ids["test"] == "q0"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.txt", "Seine?\n", "mine.txt: not a known layout of questions"),
        ("mine.tsv", "", "mine.tsv is empty"),
        ("mine.tsv", "a\tSeine?\na\tTiber?\n", "mine.tsv:2: question id 'a' occurs"),
        ("mine.tsv", "a\tSeine?\nb\t\n", "mine.tsv:2: no question"),
    ],
)
def test_a_file_of_questions_that_is_wrong(
    workdir: WorkDir, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        answer(workdir, "bm25", questions=str(tmp_path / name))
    assert not (workdir.root / "runs").exists()


def test_no_file_of_questions(workdir: WorkDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.tsv does not exist"):
        answer(workdir, "bm25", questions=str(tmp_path / "none.tsv"))


# --- hybrid


def test_the_weight_is_found_on_dev(tmp_path: Path, embedder: WordEmbedder) -> None:
    """Of equal gold, the dev split decides; the test split is not looked at."""
    workdir = prepare(tmp_path / "work", PASSAGES, QUESTIONS[:1], dev=QUESTIONS)
    index_both(workdir)
    answer(workdir, "hybrid")
    found = artifacts.read_json(workdir.retriever("hybrid").current("weight") / "manifest.json")
    assert found["questions"] == 3
    tried = {one["weight"]: one["mrr"] for one in found["mrr"]["hybrid"]}
    assert len(tried) == 17 and tried[found["weight"]] == max(tried.values())
    manifest = artifacts.verify(workdir.runs("test") / "hybrid.manifest.json")
    assert manifest["weight"] == found["weight"]

    # the same weight, given: the same run, and nothing is searched for it
    lines, _ = _read(workdir, "hybrid")
    embedder.encoded.clear()
    answer(workdir, "hybrid", fusion_weight=found["weight"])
    assert _read(workdir, "hybrid")[0] == lines
    assert embedder.encoded == [QUESTIONS[0].question]
    # and back: it is known by now
    embedder.encoded.clear()
    answer(workdir, "hybrid")
    assert embedder.encoded == [QUESTIONS[0].question]


def test_a_hybrid_run_is_the_sum(workdir: WorkDir, embedder: WordEmbedder) -> None:
    answer(workdir, "trained")
    answer(workdir, "bm25")
    answer(workdir, "hybrid", fusion_weight=0.5)
    scores = {
        name: {(line[0], line[2]): float(line[4]) for line in _read(workdir, name)[0]}
        for name in ("trained", "bm25", "hybrid")
    }
    both = scores["bm25"].keys() & scores["trained"].keys()
    assert len(both) >= 4
    for key in both:
        wanted = scores["bm25"][key] + 0.5 * scores["trained"][key]
        assert scores["hybrid"][key] == pytest.approx(wanted, rel=1e-5)


def test_reciprocal_rank_fusion_needs_no_dev(workdir: WorkDir, embedder: WordEmbedder) -> None:
    answer(workdir, "hybrid", fusion="rrf")
    lines, _ = _read(workdir, "hybrid")
    # q1 shares its words with w4 alone: first in both rankings
    first = next(line for line in lines if line[0] == "q1")
    assert first[2] == "w4" and float(first[4]) == pytest.approx(2 / 61)
    assert workdir.retriever("hybrid").find("weight") is None


def test_a_weight_without_dev_questions(workdir: WorkDir, embedder: WordEmbedder) -> None:
    with pytest.raises(InputError, match="give --retrieve.fusion-weight"):
        answer(workdir, "hybrid")


def test_vectors_of_another_model_are_refused(workdir: WorkDir, embedder: WordEmbedder) -> None:
    embedder.passage_fingerprint = "another"
    with pytest.raises(InputError, match="passages of another encoder"):
        answer(workdir, "trained")
    assert not (workdir.root / "runs").exists()


def test_an_index_of_another_corpus_is_refused(workdir: WorkDir, embedder: WordEmbedder) -> None:
    prepare(workdir.root, PASSAGES[:3], QUESTIONS[:1])
    for name in ("trained", "bm25"):
        with pytest.raises(InputError, match=f"retriever {name} is behind the corpus"):
            answer(workdir, name)


def test_a_hybrid_of_what_is_not_there(workdir: WorkDir, embedder: WordEmbedder) -> None:
    with pytest.raises(InputError, match="no retriever 'e5'; there is bm25, hybrid, trained"):
        answer(workdir, "hybrid", parts=("bm25", "e5"))


def test_another_retriever_leaves_the_runs_of_this_one(
    workdir: WorkDir, embedder: WordEmbedder
) -> None:
    """`--retrieve.kind bm25` once replaced the trained run by BM25's."""
    answer(workdir, "trained")
    before = _read(workdir, "trained")
    with pytest.raises(InputError, match="trained is dense, and retrieve.kind says bm25"):
        answer(workdir, "trained", kind="bm25")
    assert _read(workdir, "trained") == before


def test_ids_that_trec_cannot_hold(tmp_path: Path) -> None:
    spaced = PASSAGES[1]._replace(id="w 2")
    workdir = prepare(tmp_path / "work", [PASSAGES[0], spaced], QUESTIONS[:1])
    update.run(CONFIG, retriever(workdir, "bm25", CONFIG))
    with pytest.raises(InputError, match="passage id 'w 2'"):
        answer(workdir, "bm25")
    assert list(workdir.runs("test").iterdir()) == []


def test_falling_scores_change_as_little_as_possible() -> None:
    scores_K = np.array([3.5, 2.0, 2.0, 2.0, -1.0], np.float32)
    falling_K = falling(scores_K)
    assert (np.diff(falling_K) < 0).all()
    np.testing.assert_array_equal(falling_K[[0, 1, 4]], scores_K[[0, 1, 4]])
    np.testing.assert_allclose(falling_K, scores_K, rtol=3e-7)


def test_importing_the_stages_starts_no_device() -> None:
    """Processes join (jax.distributed.initialize) after the imports, and before anything
    computes.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    command = [sys.executable, "-c", "import dpr_jax.index.bm25, dpr_jax.pipeline"]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], check=True)
