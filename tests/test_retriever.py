"""Search from Python: the documented lines, every way to search, and what is refused."""

import dataclasses
import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from prepared import prepare
from test_retrieve import PASSAGES, QUESTIONS

from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, IndexConfig, RetrieveConfig
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index import build
from dpr_jax.model import hf
from dpr_jax.retrieval import retrieve, retriever
from dpr_jax.retrieval.retriever import Retriever

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, WorkDir]:
    """A work directory with a BERT of random weights: the mean over its tokens knows which words
    two texts share.
    """
    root = tmp_path_factory.mktemp("retriever")
    workdir = prepare(root / "runs" / "rivers", PASSAGES, QUESTIONS, dev=QUESTIONS)
    template = tiny.write(root / "encoder")
    for side in ("question", "passage"):
        folder = workdir.model / f"{side}_encoder"
        folder.mkdir(parents=True)
        hf.write_encoder(
            folder,
            template=template,
            shape=tiny.SHAPE,
            params=tiny.params(),
            settings=hf.EncoderSettings("mean", True, 32),
        )
    config = Config(
        index=IndexConfig(kind="exact", recall_queries=3),
        retrieve=RetrieveConfig(top_k=3),
    )
    encode.run(config, workdir)
    build.run(config, workdir)
    retrieve.run(config, workdir)
    return config, workdir


def test_the_documented_lines(
    finished: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished[1].root.parents[1])
    assert doctest.testmod(retriever) == (0, 4)
    page = str(ROOT / "docs" / "retrieval.md")
    assert doctest.testfile(page, module_relative=False) == (0, 8)


def test_it_finds_what_the_stage_finds(finished: tuple[Config, WorkDir]) -> None:
    config, workdir = finished
    found = Retriever.load(workdir.root, config).search(
        [question.question for question in QUESTIONS], k=3
    )
    lines = (workdir.runs / "trained.trec").read_text().splitlines()
    run = [(line.split()[2], float(line.split()[4])) for line in lines]
    mine = [(hit.id, hit.score) for hits in found for hit in hits]
    assert [id_ for id_, _ in mine] == [id_ for id_, _ in run]
    assert [s for _, s in mine] == pytest.approx([s for _, s in run], rel=1e-5)
    passages = {passage.id: passage for passage in PASSAGES}
    assert all(hit[:3] == passages[hit.id] for hits in found for hit in hits)


def test_one_question_at_a_time_is_the_same(
    finished: tuple[Config, WorkDir],
) -> None:
    one = Retriever.load(finished[1].root, finished[0])
    questions = [question.question for question in QUESTIONS]
    together = one.search(questions)
    assert [len(found) for found in together] == [5, 5, 5]  # the whole corpus
    for question, found in zip(questions, together, strict=True):
        [alone] = one.search([question])
        assert [hit.id for hit in alone] == [hit.id for hit in found]


@pytest.mark.parametrize("kind", ["bm25", "hybrid"])
def test_other_ways_to_search(finished: tuple[Config, WorkDir], kind: str) -> None:
    config = dataclasses.replace(finished[0], retrieve=RetrieveConfig(kind=kind))
    one = Retriever.load(finished[1].root, config)
    [alps, nothing] = one.search(["the Alps’ highest mountain", "qqqq"], k=2)
    assert alps[0].id == "w4"
    assert len(nothing) == (0 if kind == "bm25" else 2)


def test_what_is_refused(finished: tuple[Config, WorkDir], tmp_path: Path) -> None:
    config = dataclasses.replace(finished[0], retrieve=RetrieveConfig(kind="bm25"))
    one = Retriever.load(finished[1].root, config)
    assert one.search([]) == []
    with pytest.raises(InputError, match="must be a list of texts"):
        one.search("who?")
    with pytest.raises(InputError, match="not empty"):
        one.search(["who?", " "])
    with pytest.raises(InputError, match="k is 0"):
        one.search(["who?"], k=0)
    with pytest.raises(InputError, match="is not a work directory"):
        Retriever.load(tmp_path)


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
