"""Rounds of training in the pipeline: each mines with the model before it and trains it on, in a
folder of its own.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from dpr_jax import artifacts, pipeline
from dpr_jax.config import (
    Config,
    EncodeConfig,
    IndexConfig,
    MineConfig,
    ModelConfig,
    TrainConfig,
)
from dpr_jax.config_rules import validate
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.index.open import open_index
from dpr_jax.mining import mine
from dpr_jax.model.embed import load_embedder
from dpr_jax.workdir import WorkDir, open_workdir

WINDOW = 30


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, nq_small_workdir: tuple[Config, WorkDir]
) -> tuple[Config, WorkDir]:
    """Two rounds of a tiny model, two steps each; the first try is killed while the second round
    mines.
    """
    base, _ = nq_small_workdir
    folder = tmp_path_factory.mktemp("rounds")
    tiny.write(folder / "init", layers=1)
    config = dataclasses.replace(
        base,
        rounds=2,
        compare=("bm25",),
        data=dataclasses.replace(base.data, dev=None),
        mine=MineConfig(window=WINDOW, depth=4),
        model=ModelConfig(
            init=str(folder / "init"),
            pooling="mean",
            normalize=True,
            max_question_tokens=16,
            max_passage_tokens=32,
        ),
        train=TrainConfig(batch_size=8, total_steps=2, learning_rate=1e-2, warmup=0.5, dropout=0),
        encode=EncodeConfig(dtype="float32"),
        index=IndexConfig(kind="faiss", recall_queries=5),
    )
    workdir = open_workdir(folder / "work")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        later = workdir.retriever("round-2")
        original = mine.rules.hard_negatives
        patch.setattr(
            mine.rules,
            "hard_negatives",
            lambda *args: killed() if later.file.exists() else original(*args),
        )
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, workdir)
    pipeline.run(config, workdir)
    return config, workdir


def test_the_second_round_mines_with_the_first_ones_model(
    finished: tuple[Config, WorkDir],
) -> None:
    config, workdir = finished
    first, second = workdir.retriever("trained"), workdir.retriever("round-2")
    index = open_index(first.current("index"))
    embedder = load_embedder(first.encoder, "question", model=config.model, dtype="float32")
    before = list(store.open_questions(workdir, "train", first.current("mined")))
    after = list(store.open_questions(workdir, "train", second.current("mined")))
    _, rows_QK = index.search(embedder.encode([q.question for q in after]), WINDOW)
    for question, rows in zip(after, rows_QK.tolist(), strict=True):
        places = [rows.index(row) for row in question.hard_negatives]
        assert places == sorted(places)
    assert [q.hard_negatives for q in before] != [q.hard_negatives for q in after]
    mined = artifacts.read_json(second.current("mined") / "manifest.json")["made_from"]
    embeddings = artifacts.fingerprint(first.current("embeddings") / "manifest.json")
    assert embeddings in mined["inputs"].values()


def test_the_second_round_trains_the_first_ones_model_on(
    finished: tuple[Config, WorkDir],
) -> None:
    config, workdir = finished
    sources = {"init": config.model.init}
    sources |= {name: workdir.retriever(name).encoder for name in ("trained", "round-2")}
    texts = ["who wrote the first of these books"]
    vectors = {
        name: load_embedder(source, "question", model=config.model).encode(texts)
        for name, source in sources.items()
    }
    step_one = np.abs(vectors["trained"] - vectors["init"]).max()
    step_two = np.abs(vectors["round-2"] - vectors["trained"]).max()
    assert step_one > 1e-3 and step_two > 1e-3


def test_every_round_stands_in_the_report(finished: tuple[Config, WorkDir]) -> None:
    _, workdir = finished
    page = (workdir.metrics / "report.html").read_text()
    assert "round-2" in page
    for run in ("trained", "round-2"):
        assert f"Training of {run}: loss over the steps" in page
    facts = artifacts.read_json(workdir.metrics / "test" / "round-2.json")
    assert facts["compared_with"] == ["bm25", "trained"]


def test_nothing_is_done_again_even_after_a_move(
    finished: tuple[Config, WorkDir], tmp_path: Path
) -> None:
    config, workdir = finished
    shutil.copytree(workdir.root, tmp_path / "moved", symlinks=True)
    moved = open_workdir(tmp_path / "moved")
    before = {p: p.stat().st_mtime_ns for p in moved.root.rglob("*") if p.is_file()}
    pipeline.run(config, moved)
    after = {p: p.stat().st_mtime_ns for p in moved.root.rglob("*") if p.is_file()}
    assert after == before


def test_rounds_need_mining() -> None:
    with pytest.raises(InputError, match="rounds is 2; it must be 1 when mine.enabled"):
        validate(Config(rounds=2, mine=MineConfig(enabled=False)))
