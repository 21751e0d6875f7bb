"""Which two towers belong together: one may be newer than the other, and only what the newer one
made is made again.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from prepared import prepare, retriever

from dpr_jax import artifacts, pipeline
from dpr_jax.config import (
    Config,
    EncodeConfig,
    IndexConfig,
    ModelConfig,
    RetrieveConfig,
)
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.model.bert import BertShape
from dpr_jax.model.embed import load_embedder
from dpr_jax.workdir import RetrieverDir, open_workdir

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
    CONFIG, index=dataclasses.replace(CONFIG.index, queries="test")
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two towers and a work directory up to the run."""
    root = tmp_path_factory.mktemp("towers")
    write_tower(root, "question", seed=0)
    write_tower(root, "passage", seed=1)
    workdir = prepare(root / "work", PASSAGES, QUESTIONS)
    search(retriever(workdir, "trained", CONFIG, source=str(root / "model")))
    return root


@pytest.fixture
def target(finished: Path, tmp_path: Path) -> RetrieverDir:
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    workdir = open_workdir(tmp_path / "copy" / "work")
    return retriever(workdir, "trained", CONFIG, source=str(tmp_path / "copy" / "model"))


def write_tower(root: Path, side: str, seed: int) -> None:
    folder = root / "model" / f"{side}_encoder"
    shutil.rmtree(folder, ignore_errors=True)
    tiny.write(folder, seed=seed)


def search(target: RetrieverDir, config: Config = CONFIG) -> None:
    for stage in ("encode", "index", "retrieve"):
        pipeline.STAGES[stage](config, target)


def scores(target: RetrieverDir) -> list[float]:
    lines = (target.workdir.runs("test") / "trained.trec").read_text().splitlines()
    return [float(line.split()[4]) for line in lines]


def wanted_scores(target: RetrieverDir) -> np.ndarray:
    """By the two towers as they are now."""
    question, passage = (
        load_embedder(target.encoder, side, model=CONFIG.model, dtype="float32")
        for side in ("question", "passage")
    )
    emb_PD = passage.encode([(one.title, one.text) for one in PASSAGES])
    emb_QD = question.encode([one.question for one in QUESTIONS])
    scores_QP = emb_QD @ emb_PD.astype(np.float16).astype(np.float32).T
    return -np.sort(-scores_QP).ravel()


def current(target: RetrieverDir) -> list[Path]:
    return [target.current(stage) for stage in ("embeddings", "index")]


def test_a_newer_question_tower_keeps_embeddings_and_index(target: RetrieverDir) -> None:
    before, old = current(target), scores(target)
    write_tower(target.root.parent, "question", seed=2)
    search(target)
    assert current(target) == before
    assert scores(target) != old
    np.testing.assert_allclose(scores(target), wanted_scores(target), rtol=1e-5)


def test_a_newer_passage_tower_makes_them_anew(target: RetrieverDir) -> None:
    before = current(target)
    write_tower(target.root.parent, "passage", seed=2)
    with pytest.raises(InputError, match="passages of another encoder"):
        pipeline.STAGES["retrieve"](CONFIG, target)
    search(target)
    assert all(now != then for now, then in zip(current(target), before, strict=True))
    np.testing.assert_allclose(scores(target), wanted_scores(target), rtol=1e-5)


def test_towers_that_change_places_are_another_model(target: RetrieverDir) -> None:
    write_tower(target.root.parent, "question", seed=1)
    write_tower(target.root.parent, "passage", seed=0)
    with pytest.raises(InputError, match="passages of another encoder"):
        pipeline.STAGES["retrieve"](CONFIG, target)


def test_vectors_of_questions_stay_beside_a_newer_passage_tower(
    target: RetrieverDir,
) -> None:
    pipeline.STAGES["encode"](OF_QUESTIONS, target)
    folder = target.current("questions/test")
    (vectors,) = folder.glob("*.npy")
    before = vectors.stat().st_mtime_ns
    write_tower(target.root.parent, "passage", seed=2)
    pipeline.STAGES["encode"](CONFIG, target)
    with pytest.raises(
        InputError, match="holds vectors of another model than that of the passages"
    ):
        pipeline.STAGES["index"](MEASURED_WITH_QUESTIONS, target)
    pipeline.STAGES["encode"](OF_QUESTIONS, target)
    assert vectors.stat().st_mtime_ns == before
    artifacts.verify(folder / "manifest.json")
    pipeline.STAGES["index"](MEASURED_WITH_QUESTIONS, target)


def test_towers_that_training_did_not_write_together(target: RetrieverDir) -> None:
    manifest = Path(target.encoder) / "manifest.json"
    files = [path for path in manifest.parent.rglob("*") if path.is_file()]
    artifacts.write_manifest(manifest, artifacts.made_from("train", {}, {}), files)
    search(target)
    write_tower(target.root.parent, "question", seed=2)
    for stage in ("encode", "retrieve"):
        with pytest.raises(InputError, match="must be those of one training") as error:
            pipeline.STAGES[stage](CONFIG, target)
        assert "question_encoder/model.safetensors is damaged" in str(error.value)
    manifest.unlink()  # put together on purpose
    search(target)


def test_towers_of_two_widths(target: RetrieverDir, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = BertShape(**{**tiny.SHAPE.__dict__, "hidden_size": 16})
    monkeypatch.setattr(tiny, "SHAPE", narrow)
    monkeypatch.setattr(tiny, "params", lambda *_, params=tiny.params: params(narrow, 0))
    write_tower(target.root.parent, "question", seed=0)
    with pytest.raises(InputError, match="vectors of width 16, its passage encoder of"):
        pipeline.STAGES["retrieve"](CONFIG, target)
