"""Retrieval by several processes: the runs are those of one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import tiny
from test_multiprocess import copied, twice

from dpr_jax import pipeline, recipes
from dpr_jax.config import Config, IndexConfig, ModelConfig, RetrieveConfig
from dpr_jax.workdir import WorkDir

NAMES = ("bm25", "exact", "ivf", "hybrid")
AT_ONCE = 16  # questions: four batches, the last one short
RETRIEVE = f"""
import sys
from pathlib import Path
from dpr_jax import joining, pipeline, recipes
from dpr_jax.retrieval import retrieve
from dpr_jax.workdir import open_workdir

retrieve.QUESTIONS_AT_ONCE = {AT_ONCE}
joining.initialize()
workdir = open_workdir(sys.argv[1])
for name in {NAMES}:
    retriever = workdir.retriever(name)
    config = pipeline.replace(recipes.load(retriever), retrieve={{"split": "test"}})
    pipeline.run_stage("retrieve", config, workdir, retriever)
joining.part()
"""


@pytest.fixture
def searchable(tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]) -> WorkDir:
    """A work directory with an index of every kind that is searched in another way."""
    base, prepared = nq_small_workdir
    workdir = copied(prepared, tmp_path / "w")
    source = str(tiny.write(tmp_path / "init"))
    model = ModelConfig(pooling="mean", max_question_tokens=16, max_passage_tokens=32)
    for name, index in (
        ("exact", IndexConfig(kind="exact")),
        ("ivf", IndexConfig(kind="faiss", faiss="ivf_flat")),
        ("bm25", IndexConfig()),
    ):
        config = dataclasses.replace(base, model=model, index=index)
        retriever = workdir.retriever(name)
        if name != "bm25":
            pipeline.run_stage("encode", config, workdir, retriever, source=source)
        pipeline.run_stage("index", config, workdir, retriever)
    parts = RetrieveConfig(kind="hybrid", parts=("bm25", "exact"), fusion_weight=1.0)
    recipes.store(workdir.retriever("hybrid"), dataclasses.replace(base, retrieve=parts))
    return workdir


def runs_of(processes: int, workdir: WorkDir, logs: Path) -> dict[str, str]:
    """Retrieves in so many processes; returns what each run holds."""
    shutil.rmtree(workdir.runs("test"), ignore_errors=True)
    result = twice(RETRIEVE, logs, str(workdir.root), processes=processes)
    assert result.returncode == 0, result.stdout + result.stderr
    return {path.stem: path.read_text() for path in workdir.runs("test").glob("*.trec")}


def test_two_processes_write_the_runs_of_one(searchable: WorkDir, tmp_path: Path) -> None:
    one, two = (runs_of(count, searchable, tmp_path / f"logs-{count}") for count in (1, 2))
    assert sorted(one) == sorted(two) == sorted(NAMES)
    for name in ("bm25", "ivf"):
        assert two[name] == one[name]  # to the last bit
    for name in ("exact", "hybrid"):  # blocks of another size may round otherwise
        found, wanted = ([line.split() for line in runs[name].splitlines()] for runs in (two, one))
        assert len(found) == len(wanted)
        for row, other in zip(found, wanted, strict=True):
            assert row[0] == other[0]
            assert float(row[4]) == pytest.approx(float(other[4]), rel=1e-5)
        same = sum(row[:3] == other[:3] for row, other in zip(found, wanted, strict=True))
        assert same > 0.99 * len(wanted)  # all but near ties
