"""Towers of other families are trained, packed and in chunks, and what comes out is read again."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from dpr_jax.config import Config, ModelConfig, TrainConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf
from dpr_jax.model.dual_encoder import EncoderPair
from dpr_jax.model.embed import load_embedder
from dpr_jax.training import loop, setup
from dpr_jax.training.export import Towers, write_towers
from dpr_jax.workdir import WorkDir, open_workdir

GOLDEN = Path(__file__).parent / "golden/encoders"
SIDES = ("question", "passage")
AS_IT_SAYS = ModelConfig()


PAIRS = [("mpnet", "modernbert"), ("roberta", "distilbert")]


@pytest.fixture
def two_kinds(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A family for questions and another for passages, which have the same width."""
    folder = tmp_path / "init"
    for side, name in zip(SIDES, getattr(request, "param", PAIRS[0]), strict=True):
        shutil.copytree(GOLDEN / name, folder / f"{side}_encoder")
    return folder


@pytest.mark.parametrize("two_kinds", PAIRS, indirect=True)
def test_two_kinds_of_towers_are_trained_packed_and_in_chunks(
    tmp_path: Path, two_kinds: Path, nq_small_workdir: tuple[Config, WorkDir], own_programs: None
) -> None:
    config, prepared = nq_small_workdir
    shutil.copytree(prepared.root, tmp_path / "run", symlinks=True)
    retriever = open_workdir(tmp_path / "run").retriever("trained")
    model = ModelConfig(
        init=str(two_kinds),
        pooling="mean",
        max_passage_tokens=32,
        question_prompt="query: ",
        passage_prompt="passage: ",
    )
    train = TrainConfig(
        batch_size=16,
        total_steps=2,
        learning_rate=1e-2,
        chunk_size=1,
        pack_rows=1,
        warmup=0,
        dropout=0,
    )
    data = dataclasses.replace(config.data, dev=None)
    config = dataclasses.replace(config, model=model, train=train, data=data)
    loop.run(config, retriever)

    out = retriever.current("model")
    assert json.loads((out / "router_config.json").read_text())["structure"] == {
        "query": ["question_encoder", "question_encoder/1_Pooling"],
        "document": ["passage_encoder", "passage_encoder/1_Pooling"],
    }
    for side in SIDES:
        folder = hf.resolve(str(out), side)
        assert folder == out / f"{side}_encoder"
        found = description.read(folder, side, AS_IT_SAYS)
        wanted = {"question": "query: ", "passage": "passage: "}[side]
        assert (found.prompt, found.pooling, found.temperature) == (wanted, "mean", 1.0)
        shape = hf.read_shape(folder)
        before, after = (hf.read_params(one / f"{side}_encoder", shape) for one in (two_kinds, out))
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
        assert all(jax.tree.leaves(moved))
    emb_1D = load_embedder(str(out), "question", model=AS_IT_SAYS).encode(["who?"])
    assert emb_1D.shape == (1, 32) and np.isfinite(emb_1D).all()


def test_towers_that_do_not_fit_are_refused(two_kinds: Path) -> None:
    settings = [description.read(two_kinds / f"{side}_encoder", side, AS_IT_SAYS) for side in SIDES]
    folders = [two_kinds / f"{side}_encoder" for side in SIDES]
    pair = EncoderPair(*map(hf.read_encoder, folders, settings))
    setup.check_alike("init", pair, shared=False)
    with pytest.raises(InputError, match="model.shared_towers to false where they are of diff"):
        setup.check_alike("init", pair, shared=True)
    narrow = pair._replace(passage=pair.passage.clone(cut=8))
    with pytest.raises(InputError, match="of width 32, its passage encoder of width 8"):
        setup.check_alike("init", narrow, shared=False)


def test_a_shared_tower_is_one_plain_folder(tmp_path: Path) -> None:
    init = tiny.write(tmp_path / "init")
    model = ModelConfig(max_question_tokens=16, max_passage_tokens=32, question_prompt="query: ")
    own = {side: description.read(init, side, model) for side in SIDES}
    towers = Towers({s: tiny.SHAPE for s in SIDES}, {s: init for s in SIDES}, own, 0.25)
    params = {"shared": tiny.params(seed=3)}
    out = tmp_path / "model"
    write_towers(out, params, towers, {"stage": "train"})
    for side in SIDES:
        assert hf.resolve(str(out), side) == out
        found = description.read(out, side, AS_IT_SAYS)
        assert found == own[side]._replace(trained_temperature=0.25)
        assert found.temperature == 0.25
    jax.tree.map(
        np.testing.assert_array_equal, hf.read_params(out, tiny.SHAPE), tiny.params(seed=3)
    )
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    with pytest.raises(InputError, match="config.json .*must be those of one training"):
        load_embedder(str(out), "question", model=AS_IT_SAYS)
