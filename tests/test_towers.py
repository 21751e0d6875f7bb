"""Which two towers belong together: one may be newer than the other, and only what the newer one
made is made again.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from prepared import prepare

from dpr_jax import artifacts, pipeline
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import (
    Config,
    EncodeConfig,
    IndexConfig,
    ModelConfig,
    RetrieveConfig,
)
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.model.bert import BertShape
from dpr_jax.model.embed import load_embedder

PASSAGES = [
    Passage("w1", "Rome", "The Tiber flows through Rome."),
    Passage("w2", "Paris", "The Seine flows through Paris."),
    Passage("w3", "Alps", "Mont Blanc is their highest mountain."),
]
QUESTIONS = [
    Question("q0", "which river flows through Paris?", ("Seine",), (1,), (), ()),
    Question("q1", "highest mountain", ("Mont Blanc",), (2,), (), ()),
]
CONFIG = Config(
    model=ModelConfig(max_question_tokens=32, max_passage_tokens=32),
    encode=EncodeConfig(dtype="float32"),
    index=IndexConfig(kind="exact", recall_queries=2),
    retrieve=RetrieveConfig(top_k=3),
)
OF_QUESTIONS = dataclasses.replace(
    CONFIG, encode=dataclasses.replace(CONFIG.encode, questions="test")
)
MEASURED_WITH_QUESTIONS = dataclasses.replace(
    CONFIG, index=dataclasses.replace(CONFIG.index, queries="embeddings-test")
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """Up to the run."""
    root = tmp_path_factory.mktemp("towers") / "work"
    workdir = prepare(root, PASSAGES, QUESTIONS)
    write_tower(workdir, "question", seed=0)
    write_tower(workdir, "passage", seed=1)
    search(workdir)
    return workdir


@pytest.fixture
def workdir(finished: WorkDir, tmp_path: Path) -> WorkDir:
    shutil.copytree(finished.root, tmp_path / "work")
    return WorkDir(tmp_path / "work")


def write_tower(workdir: WorkDir, side: str, seed: int) -> None:
    folder = workdir.model / f"{side}_encoder"
    shutil.rmtree(folder, ignore_errors=True)
    tiny.write(folder, seed=seed)


def search(workdir: WorkDir, config: Config = CONFIG) -> None:
    for stage in ("encode", "index", "retrieve"):
        pipeline.STAGES[stage](config, workdir)


def scores(workdir: WorkDir) -> list[float]:
    lines = (workdir.runs / "trained.trec").read_text().splitlines()
    return [float(line.split()[4]) for line in lines]


def wanted_scores(workdir: WorkDir) -> np.ndarray:
    """By the two towers as they are now."""
    question, passage = (
        load_embedder("model", workdir, side, model=CONFIG.model, dtype="float32")
        for side in ("question", "passage")
    )
    emb_PD = passage.encode([(one.title, one.text) for one in PASSAGES])
    emb_QD = question.encode([one.question for one in QUESTIONS])
    scores_QP = emb_QD @ emb_PD.astype(np.float16).astype(np.float32).T
    return -np.sort(-scores_QP).ravel()


def written(workdir: WorkDir) -> list[int]:
    """When embeddings and index were."""
    files = ("embeddings/manifest.json", "index/index.json")
    return [(workdir.root / file).stat().st_mtime_ns for file in files]


def test_a_newer_question_tower_keeps_embeddings_and_index(workdir: WorkDir) -> None:
    before, old = written(workdir), scores(workdir)
    write_tower(workdir, "question", seed=2)
    search(workdir)
    assert written(workdir) == before
    assert scores(workdir) != old
    np.testing.assert_allclose(scores(workdir), wanted_scores(workdir), rtol=1e-5)


def test_a_newer_passage_tower_makes_them_anew(workdir: WorkDir) -> None:
    before = written(workdir)
    write_tower(workdir, "passage", seed=2)
    shutil.rmtree(workdir.runs)
    with pytest.raises(InputError, match="another model encoded than the passage enc"):
        pipeline.STAGES["retrieve"](CONFIG, workdir)
    search(workdir)
    assert all(now > then for now, then in zip(written(workdir), before, strict=True))
    np.testing.assert_allclose(scores(workdir), wanted_scores(workdir), rtol=1e-5)


def test_towers_that_change_places_are_another_model(workdir: WorkDir) -> None:
    write_tower(workdir, "question", seed=1)
    write_tower(workdir, "passage", seed=0)
    with pytest.raises(InputError, match="another model encoded"):
        pipeline.STAGES["retrieve"](CONFIG, workdir)


def test_vectors_of_questions_stay_beside_a_newer_passage_tower(
    workdir: WorkDir,
) -> None:
    pipeline.STAGES["encode"](OF_QUESTIONS, workdir)
    folder = workdir.inside("embeddings-test")
    (vectors,) = folder.glob("*.npy")
    before = vectors.stat().st_mtime_ns
    write_tower(workdir, "passage", seed=2)
    pipeline.STAGES["encode"](CONFIG, workdir)
    with pytest.raises(InputError, match="vectors are of another model"):
        pipeline.STAGES["index"](MEASURED_WITH_QUESTIONS, workdir)
    pipeline.STAGES["encode"](OF_QUESTIONS, workdir)
    assert vectors.stat().st_mtime_ns == before
    artifacts.verify(folder / "manifest.json")
    pipeline.STAGES["index"](MEASURED_WITH_QUESTIONS, workdir)


def test_an_index_of_an_older_form_is_built_anew(workdir: WorkDir) -> None:
    """Embeddings and index of when `model` was a hash of both towers."""
    embeddings, index = (
        workdir.root / file for file in ("embeddings/manifest.json", "index/index.json")
    )
    artifacts.restate(embeddings, model="both")
    made_from = artifacts.read_json(index)["made_from"]
    del made_from["form"]
    artifacts.restate(index, model="both", made_from=made_from)
    vectors = workdir.root / "embeddings" / "shard-00000-of-00001.npy"
    before = vectors.stat().st_mtime_ns
    shutil.rmtree(workdir.runs)
    with pytest.raises(InputError, match="run encode and index with that model"):
        pipeline.STAGES["retrieve"](CONFIG, workdir)
    search(workdir)
    assert vectors.stat().st_mtime_ns == before
    np.testing.assert_allclose(scores(workdir), wanted_scores(workdir), rtol=1e-5)


def test_an_index_follows_when_its_vectors_get_another_encoder(
    workdir: WorkDir,
) -> None:
    """The same vectors of another encoder, which encode names after the index was built."""
    embeddings, index = (
        workdir.root / file for file in ("embeddings/manifest.json", "index/index.json")
    )
    name = artifacts.read_json(index)["model"]
    artifacts.restate(embeddings, model="another")
    pipeline.STAGES["index"](CONFIG, workdir)
    assert artifacts.read_json(index)["model"] == "another"
    artifacts.restate(embeddings, model=name)
    search(workdir)
    np.testing.assert_allclose(scores(workdir), wanted_scores(workdir), rtol=1e-5)


def test_towers_that_training_did_not_write_together(workdir: WorkDir) -> None:
    manifest = workdir.model / "manifest.json"
    files = [path for path in workdir.model.rglob("*") if path.is_file()]
    artifacts.write_manifest(manifest, artifacts.made_from("train", {}, {}), files)
    search(workdir)
    write_tower(workdir, "question", seed=2)
    for stage in ("encode", "retrieve"):
        with pytest.raises(InputError, match="must be those of one training") as error:
            pipeline.STAGES[stage](CONFIG, workdir)
        assert "question_encoder/model.safetensors is damaged" in str(error.value)
    manifest.unlink()  # put together on purpose
    search(workdir)


def test_towers_of_two_widths(workdir: WorkDir, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = BertShape(**{**tiny.SHAPE.__dict__, "hidden_size": 16})
    monkeypatch.setattr(tiny, "SHAPE", narrow)
    monkeypatch.setattr(tiny, "params", lambda seed, params=tiny.params: params(narrow, seed))
    write_tower(workdir, "question", seed=0)
    with pytest.raises(InputError, match="vectors of width 16, its passage encoder of"):
        pipeline.STAGES["retrieve"](CONFIG, workdir)
