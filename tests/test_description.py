"""A model folder is believed: pooling, unit length, lengths, and how title and text are joined."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf, tokenizer
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.embed import load_embedder

AS_IT_SAYS = ModelConfig()
TRANSFORMER, POOLING, NORMALIZE, DENSE = (
    {"path": path, "type": f"sentence_transformers.models.{kind}"}
    for path, kind in (
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
        ("2_Dense", "Dense"),
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "bert")


def says(folder: Path, modules: list[dict[str, str]], **pooling: object) -> None:
    """Writes what sentence-transformers would."""
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_the_packaged_encoder_without_a_flag() -> None:
    folder = hf.resolve(tiny.PACKAGED, "passage")
    found = description.read(folder, "passage", AS_IT_SAYS)
    assert found == EncoderSettings("mean", True, 256, "space")
    assert found.temperature == 0.05
    assert description.read(folder, "question", AS_IT_SAYS).max_tokens == 64


def test_a_folder_that_says_nothing_is_cls(folder: Path) -> None:
    found = description.read(folder, "passage", AS_IT_SAYS)
    assert found == EncoderSettings("cls", False, 64, "pair")  # it has 64 positions
    assert found.temperature == 1.0


def test_vectors_are_made_as_the_folder_says(folder: Path) -> None:
    texts = ["a question about something", "another"]
    plain = load_embedder(str(folder), "question", model=ModelConfig(pooling="mean")).encode(texts)
    says(folder, [TRANSFORMER, POOLING, NORMALIZE], pooling_mode_mean_tokens=True)
    found = load_embedder(str(folder), "question", model=AS_IT_SAYS).encode(texts)
    wanted = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        ([TRANSFORMER, POOLING, DENSE], {"pooling_mode_cls_token": True}, "a module Dense in '2_D"),
        ([TRANSFORMER, POOLING], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens; one"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "lasttoken"}, "says lasttoken; one of cls and"),
        (
            [TRANSFORMER, POOLING],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "says cls, mean; one of",
        ),
        ([TRANSFORMER | {"path": "0_Transformer"}], {}, "a module Transformer in '0_Transformer'"),
    ],
)
def test_what_a_folder_says_and_we_cannot_do_is_named(
    folder: Path, modules: list[dict[str, str]], pooling: dict[str, object], message: str
) -> None:
    says(folder, modules, **pooling)
    with pytest.raises(InputError, match=message):
        description.read(folder, "question", AS_IT_SAYS)


def test_cosine_means_unit_length(folder: Path) -> None:
    says(folder, [TRANSFORMER, POOLING], pooling_mode_cls_token=True)
    assert not description.read(folder, "question", AS_IT_SAYS).normalize
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    assert description.read(folder, "question", AS_IT_SAYS).normalize


def test_contradictions_and_prompts_are_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(description, "say", said.append)
    says(folder, [TRANSFORMER, POOLING], pooling_mode_mean_tokens=True)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    for _ in range(2):
        found = description.read(folder, "question", ModelConfig(pooling="cls"))
    assert found.pooling == "cls"
    assert len(said) == 2 and "model.pooling is cls, though" in said[1]
    assert "has a prompt 'query', 'query: '" in said[0]


def test_more_tokens_than_positions(folder: Path) -> None:
    with pytest.raises(InputError, match="model.max_passage_tokens is 65, but .* has 64 positions"):
        description.read(folder, "passage", ModelConfig(max_passage_tokens=65))


def test_what_we_write_is_what_we_read(tmp_path: Path, folder: Path) -> None:
    for number, settings in enumerate(
        (EncoderSettings("cls", False, 48, "pair"), EncoderSettings("mean", True, 20, "space"))
    ):
        out = tmp_path / str(number)
        out.mkdir()
        hf.write_encoder(
            out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=settings
        )
        for side in ("question", "passage"):
            assert description.read(out, side, AS_IT_SAYS) == settings


def test_title_and_text_are_joined_as_the_folder_says(folder: Path) -> None:
    texts = [("Paris", "lies on the Seine"), ("", "no title"), "a question"]
    pair = tokenizer.load(folder, 32).ids(texts)
    says(folder, [TRANSFORMER, POOLING], pooling_mode_mean_tokens=True)
    space = tokenizer.load(folder, 32)
    assert space.ids(texts) == space.ids(["Paris lies on the Seine", "no title", "a question"])
    assert len(pair[0]) == len(space.ids(texts)[0]) + 1  # one more [SEP]
    assert pair[1:] == space.ids(texts)[1:]


BASE = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "über",
    "uber",
    "die",
    "##r",
    "münchen",
    "munchen",
    "paris",
    "Paris",
    "##is",
    "Par",
    "富",
    "士",
    "山",
    "富士山",
    "[Q]",
    "query",
    "[",
    "Q",
    "]",
    ":",
    "mu",
    "##nchen",
]
ADDED = {"content": "<doc>", "special": True}


@pytest.mark.parametrize(
    ("settings", "added", "text", "tokens"),
    [
        ({}, {}, "Über München", "[CLS] uber munchen [SEP]"),
        ({"strip_accents": False}, {}, "Über München", "[CLS] über münchen [SEP]"),
        ({"do_lower_case": False}, {}, "Paris München", "[CLS] Paris [UNK] [SEP]"),
        (
            {"do_lower_case": False, "strip_accents": True},
            {},
            "Paris münchen",
            "[CLS] Paris munchen [SEP]",
        ),
        ({}, {}, "富士山", "[CLS] 富 士 山 [SEP]"),
        ({"tokenize_chinese_chars": False}, {}, "富士山", "[CLS] 富士山 [SEP]"),
        ({}, {"<doc>": len(BASE)}, "<doc> paris", "[CLS] <doc> paris [SEP]"),
        (
            {"added_tokens_decoder": {str(len(BASE)): ADDED}},
            {},
            "<doc> paris",
            "[CLS] <doc> paris [SEP]",
        ),
    ],
)
def test_a_vocabulary_is_read_as_its_settings_say(
    tmp_path: Path, settings: dict, added: dict, text: str, tokens: str
) -> None:
    """The tokens are those that transformers' BertTokenizer gives for the same folder."""
    (tmp_path / "vocab.txt").write_text("\n".join(BASE) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    found = tokenizer.load(tmp_path, 16)
    names = {id_: token for token, id_ in found.vocabulary.items()}
    assert " ".join(names[id_] for id_ in found.ids([text])[0]) == tokens


def test_other_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<pad>\n<unk>\n<s>\n</s>\n<mask>\nparis\n")
    names = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    settings = names | {"pad_token": "<pad>", "mask_token": {"content": "<mask>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer.load(tmp_path, 16).ids(["paris"]) == [[2, 5, 3]]


def test_an_added_token_in_another_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BASE) + "\n", encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<doc>": 99}))
    with pytest.raises(InputError, match="added token '<doc>' has id 99, but the vocabulary gives"):
        tokenizer.load(tmp_path, 16)
