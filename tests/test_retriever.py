"""Search from Python: the documented lines, every way to search, and what is refused."""

import dataclasses
import doctest
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from prepared import prepare, retriever
from test_retrieve import PASSAGES, QUESTIONS

from dpr_jax.config import Bm25Config, Config, IndexConfig, RetrieveConfig
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index import update
from dpr_jax.model import hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.retrieval import ask, retrieve
from dpr_jax.retrieval import retriever as module
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import WorkDir, open_workdir

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """A work directory with a BERT of random weights: the mean over its tokens knows which words
    two texts share.
    """
    root = tmp_path_factory.mktemp("retriever")
    workdir = prepare(root / "runs" / "rivers", PASSAGES, QUESTIONS, dev=QUESTIONS)
    template = tiny.write(root / "encoder")
    for side in ("question", "passage"):
        folder = root / "model" / f"{side}_encoder"
        folder.mkdir(parents=True)
        hf.write_encoder(
            folder,
            template=template,
            shape=tiny.SHAPE,
            params=tiny.params(),
            settings=EncoderSettings("mean", True, 32),
        )
    config = Config(
        index=IndexConfig(kind="exact", recall_queries=3),
        retrieve=RetrieveConfig(top_k=3),
    )
    for name in ("bm25", "trained", "hybrid"):
        one = retriever(workdir, name, config, source=str(root / "model"))
        if name == "trained":
            encode.run(config, one)
        update.run(config, one)
        for split in ("dev", "test"):
            asked = dataclasses.replace(config.retrieve, split=split)
            retrieve.run(dataclasses.replace(config, retrieve=asked), one)
    return workdir


def test_the_documented_lines(finished: WorkDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.root.parents[1])
    assert doctest.testmod(module) == (0, 4)
    page = str(ROOT / "docs" / "retrieval.md")
    assert doctest.testfile(page, module_relative=False) == (0, 8)


@pytest.mark.parametrize("name", ["bm25", "trained", "hybrid"])
def test_it_finds_what_the_stage_found(finished: WorkDir, name: str) -> None:
    found = Retriever.load(finished.root, name).search(
        [question.question for question in QUESTIONS], k=3
    )
    lines = (finished.runs("test") / f"{name}.trec").read_text().splitlines()
    run = [(line.split()[2], float(line.split()[4])) for line in lines]
    mine = [(hit.id, hit.score) for hits in found for hit in hits]
    assert [id_ for id_, _ in mine] == [id_ for id_, _ in run]
    assert [s for _, s in mine] == pytest.approx([s for _, s in run], rel=1e-5)
    passages = {passage.id: passage for passage in PASSAGES}
    assert all(hit[:3] == passages[hit.id] for hits in found for hit in hits)


def test_loading_and_asking_write_nothing(finished: WorkDir) -> None:
    def files() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in finished.root.rglob("*")}

    before = files()
    for name in (None, "bm25", "trained", "hybrid"):
        Retriever.load(finished.root, name).search(["Alps?"])
    assert files() == before


def test_the_best_on_dev_is_loaded(finished: WorkDir, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "w", symlinks=True)
    workdir = open_workdir(tmp_path / "w")
    for name, value in (("bm25", 0.5), ("trained", 0.9), ("hybrid", 0.7)):
        workdir.retriever(name).update(dev={"MRR@10": value})
    one = Retriever.load(workdir.root)
    assert (one.name, one.why) == ("trained", "best on the dev questions, MRR@10 90.0")
    for name in ("bm25", "trained", "hybrid"):
        workdir.retriever(name).update(dev={})
    assert Retriever.load(workdir.root).name == "hybrid"


def test_a_weight_of_other_parts_is_refused(finished: WorkDir, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "w", symlinks=True)
    workdir = open_workdir(tmp_path / "w")
    config = dataclasses.replace(Config(), bm25=Bm25Config(k1=2.0))
    update.run(config, retriever(workdir, "bm25", config))
    Retriever.load(workdir.root, "bm25")
    with pytest.raises(InputError, match="run `dpr retrieve --retriever hybrid"):
        Retriever.load(workdir.root, "hybrid")


def test_one_question_at_a_time_is_the_same(finished: WorkDir) -> None:
    one = Retriever.load(finished.root, "trained")
    questions = [question.question for question in QUESTIONS]
    together = one.search(questions)
    assert [len(found) for found in together] == [5, 5, 5]  # the whole corpus
    for question, found in zip(questions, together, strict=True):
        [alone] = one.search([question])
        assert [hit.id for hit in alone] == [hit.id for hit in found]


@pytest.mark.parametrize("name", ["bm25", "hybrid"])
def test_other_ways_to_search(finished: WorkDir, name: str) -> None:
    [alps, nothing] = Retriever.load(finished.root, name).search(
        (text for text in ["the Alps’ highest mountain", "qqqq"]), k=2
    )
    assert alps[0].id == "w4"
    assert len(nothing) == (0 if name == "bm25" else 2)


def test_what_is_refused(finished: WorkDir, tmp_path: Path) -> None:
    one = Retriever.load(finished.root, "bm25")
    assert one.search([]) == []
    assert [len(found) for found in one.search(np.array(["Alps?", "Seine?"]))] == [1, 2]
    for questions, message in (
        ("who?", "questions are one text"),
        (["who?", " "], "question 1 is ' '"),
        (["who?", None], "question 1 is 'None' .NoneType."),
        (None, "questions are NoneType"),
        (np.zeros((2, 3)), "question 0 is .* .ndarray."),
    ):
        with pytest.raises(InputError, match=message):
            one.search(questions)
    with pytest.raises(InputError, match="k is 0"):
        one.search(["who?"], k=0)
    with pytest.raises(InputError, match="is not a work directory"):
        Retriever.load(tmp_path)
    with pytest.raises(InputError, match="no retriever 'e5'; there is bm25, hybrid, trained"):
        Retriever.load(finished.root, "e5")


def test_ask_prints_passages_and_json(
    finished: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    ask.run(finished, "highest mountain of the Alps?", name="bm25", k=2, as_json=False)
    assert capsys.readouterr().out.startswith("1. Mont Blanc  [w4, score ")
    ask.run(finished, "highest mountain of the Alps?", name="bm25", k=1, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["retriever"] == "bm25"
    assert [passage["id"] for passage in answer["passages"]] == ["w4"]


def test_the_package_imports_jax_only_when_asked_to_search() -> None:
    code = """
import sys, dpr_jax
assert "jax" not in sys.modules
from dpr_jax import Retriever
assert Retriever is dpr_jax.Retriever and "jax" in sys.modules
try:
    dpr_jax.Retreiver
except AttributeError as error:
    assert "Retreiver" in str(error)
else:
    raise SystemExit("no error")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
