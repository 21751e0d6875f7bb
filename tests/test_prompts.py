"""Prompts: read from a folder, known by name, set by hand, counted in lengths, kept with models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from dpr_jax import SentenceEncoder
from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf, tokenizer
from dpr_jax.model.embed import load_embedder

SENTENCE_CONFIG = "config_sentence_transformers.json"
AS_IT_SAYS = ModelConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "bert")


def prompts_of(folder: Path, model: ModelConfig = AS_IT_SAYS) -> list[str]:
    return [description.read(folder, side, model).prompt for side in ("question", "passage")]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"prompts": {"query": "q: ", "document": "d: "}}, ["q: ", "d: "]),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, ["q: ", "p: "]),
        ({"prompts": {"query": "q: "}}, ["q: ", ""]),
        ({"prompts": {"query": "q: ", "document": ""}}, ["q: ", ""]),
        ({"prompts": {"classify": "c: "}, "default_prompt_name": "classify"}, ["", ""]),
        ({}, ["", ""]),
    ],
)
def test_prompts_are_those_of_the_folder(folder: Path, said: dict, wanted: list[str]) -> None:
    (folder / SENTENCE_CONFIG).write_text(json.dumps(said))
    assert prompts_of(folder) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("e5-small-v2", ["query: ", "passage: "]),
        ("multilingual-e5-base", ["query: ", "passage: "]),
        (
            "models--BAAI--bge-small-en-v1.5/snapshots/abc",
            ["Represent this sentence for searching relevant passages: ", ""],
        ),
        ("bge-m3", ["", ""]),  # wants none
        ("multilingual-e5-large-instruct", ["", ""]),  # wants an instruction of each task
        ("my-e5-small-v2-tuned", ["", ""]),
    ],
)
def test_encoders_that_want_prompts_are_known(
    tmp_path: Path, folder: Path, name: str, wanted: list[str]
) -> None:
    """E5 and BGE, whose folders say nothing of prompts; what a folder says stands above."""
    copied = tmp_path / name
    shutil.copytree(folder, copied)
    assert prompts_of(copied) == wanted
    said = {"prompts": {"query": "ask: ", "document": "read: "}}
    (copied / SENTENCE_CONFIG).write_text(json.dumps(said))
    assert prompts_of(copied) == ["ask: ", "read: "]
    assert prompts_of(copied, ModelConfig(question_prompt="", passage_prompt="x")) == ["", "x"]


def test_a_folder_of_ours_without_prompts_wants_none_whatever_its_name_is(
    tmp_path: Path, folder: Path
) -> None:
    copied = tmp_path / "e5-small-v2"
    shutil.copytree(folder, copied)
    said = {"prompts": {"query": "", "document": ""}}
    (copied / SENTENCE_CONFIG).write_text(json.dumps(said))
    assert prompts_of(copied) == ["query: ", "passage: "]  # sentence-transformers saves it so
    (copied / "dpr_jax.json").write_text('{"title_and_text": "pair"}')
    assert prompts_of(copied) == ["", ""]


def test_a_prompt_stands_before_the_text_and_counts(folder: Path) -> None:
    model = ModelConfig(question_prompt="query: ", passage_prompt="passage: ")
    plain = load_embedder(str(folder), "question", model=AS_IT_SAYS)
    asked = load_embedder(str(folder), "question", model=model)
    np.testing.assert_array_equal(asked.encode(["who"]), plain.encode(["query: who"]))
    read = load_embedder(str(folder), "passage", model=model)
    plain = load_embedder(str(folder), "passage", model=AS_IT_SAYS)
    for pair, wanted in (
        (("Paris", "on the Seine"), ("passage: Paris", "on the Seine")),
        (("", "no title"), ("", "passage: no title")),
    ):
        np.testing.assert_array_equal(read.encode([pair]), plain.encode([wanted]))
    cut = tokenizer.load(folder, 8, "passage: ")
    assert len(cut.ids(["a b c d e f g h i"])[0]) == 8
    assert cut.ids(["a"])[0] == tokenizer.load(folder, 8).ids(["passage: a"])[0]


def test_a_prompt_is_part_of_an_encoder(folder: Path) -> None:
    """So vectors of another prompt are another encoder's, which an index refuses."""
    prints = {
        load_embedder(str(folder), "question", model=model).passage_fingerprint
        for model in (AS_IT_SAYS, ModelConfig(passage_prompt="passage: "))
    }
    assert len(prints) == 2
    asked = ModelConfig(question_prompt="query: ")
    plain, other = (load_embedder(str(folder), "question", model=m) for m in (AS_IT_SAYS, asked))
    assert plain.passage_fingerprint == other.passage_fingerprint
    assert plain.fingerprint != other.fingerprint


def test_prompts_are_written_with_a_model(tmp_path: Path, folder: Path) -> None:
    model = ModelConfig(question_prompt="query: ", passage_prompt="passage: ")
    for side in ("question", "passage"):
        out = tmp_path / side
        out.mkdir()
        settings = description.read(folder, side, model)
        hf.write_encoder(
            out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=settings
        )
        assert description.read(out, side, AS_IT_SAYS).prompt == f"{side}: ".replace(
            "question", "query"
        )


def test_what_cannot_be_done_is_named(folder: Path) -> None:
    pooling = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    pooling += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(pooling))
    (folder / "1_Pooling").mkdir()
    said = {"pooling_mode": "mean", "include_prompt": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    assert prompts_of(folder) == ["", ""]  # it changes nothing without a prompt
    with pytest.raises(InputError, match="include_prompt false.* --model.passage-prompt"):
        prompts_of(folder, ModelConfig(passage_prompt="p: "))
    (folder / SENTENCE_CONFIG).write_text('{"prompts": {"query": 3}}')
    with pytest.raises(InputError, match="has prompts .'query': 3.; they must be an object of"):
        prompts_of(folder)


def test_both_towers_as_one_object(folder: Path) -> None:
    """With sentence-transformers' names; a prompt that is given stands for the model's."""
    said = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / SENTENCE_CONFIG).write_text(json.dumps(said))
    encoder = SentenceEncoder.load(str(folder), dtype="float32")
    texts = ["a b", "c"]
    plain = encoder.encode([f"query: {text}" for text in texts])
    np.testing.assert_array_equal(encoder.encode_query(texts), plain)
    np.testing.assert_array_equal(encoder.encode_query(texts, prompt="query: "), plain)
    other = encoder.encode_document(texts, prompt="")
    np.testing.assert_array_equal(other, encoder.encode(texts))
    assert np.any(other != encoder.encode_document(texts))
    np.testing.assert_allclose(encoder.similarity(plain, other), plain @ other.T, rtol=1e-6)
