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
ST = "sentence_transformers.models."
TRANSFORMER, POOLING, NORMALIZE, DENSE = (
    {"path": path, "type": ST + kind}
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
    assert description.read(folder, "question", AS_IT_SAYS).max_tokens == 256  # its own limit


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
        ([TRANSFORMER, POOLING, DENSE], {"pooling_mode": "cls"}, "no in_features and out_features"),
        ([TRANSFORMER, POOLING, NORMALIZE, DENSE], {"pooling_mode": "cls"}, "a module Dense in"),
        ([TRANSFORMER, POOLING | {"type": ST + "CNN"}], {}, "a module CNN in '1_Pooling'"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "median"}, "says median; one of cls, mean, max"),
        (
            [TRANSFORMER, POOLING],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "says cls, mean; one of",
        ),
        ([TRANSFORMER | {"path": "0_Transformer"}], {}, "a module Transformer in '0_Transformer'"),
        ([{"path": "", "type": "custom_st.Transformer"}], {}, "a module custom_st.Transformer in"),
        ([TRANSFORMER, POOLING | {"type": "my_code.Pooling"}], {}, "a module my_code.Pooling in"),
        ([TRANSFORMER, POOLING], {"pooling_mode": ["cls", "mean"]}, "says cls, mean; one of"),
    ],
)
def test_what_a_folder_says_and_we_cannot_do_is_named(
    folder: Path, modules: list[dict[str, str]], pooling: dict[str, object], message: str
) -> None:
    says(folder, modules, **pooling)
    with pytest.raises(InputError, match=message):
        description.read(folder, "question", AS_IT_SAYS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", {"path": ""}, "modules.json holds a dict, where a list is expected"),
        ("modules.json", [{"path": ""}], "a module .'path': ''.; each must be an object with a"),
        ("modules.json", ["Transformer"], "a module 'Transformer'; each must be an object with"),
        ("modules.json", [{"path": None, "type": "a"}], "each must be an object with a type"),
        ("dpr_jax.json", {"temperature": 1.0}, 'title_and_text None; write "pair" or "space"'),
        ("dpr_jax.json", {"title_and_text": "tab"}, "dpr_jax.json has title_and_text 'tab'; write"),
        ("sentence_bert_config.json", {"max_seq_length": "48"}, "max_seq_length '48'; it must be"),
        ("sentence_bert_config.json", [48], "holds a list, where a dict is expected"),
        (
            "config.json",
            {"model_type": "bert", "max_position_embeddings": "512"},
            "max_position_embeddings '512'; it",
        ),
        ("config.json", ["bert"], "config.json holds a list, where a dict is expected"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts .'query: '.;"),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "euclidean"},
            "similarity_fn_name 'euclidean'; cosine and dot are supported",
        ),
    ],
)
def test_what_is_malformed_is_one_line(
    folder: Path, name: str, content: object, message: str
) -> None:
    says(folder, [TRANSFORMER, POOLING], pooling_mode_cls_token=True)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        load_embedder(str(folder), "question", model=AS_IT_SAYS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "unit_length"),
    [
        ({}, False),
        ({"similarity_fn_name": "dot"}, False),
        ({"similarity_fn_name": "cosine"}, True),
        ({"similarity_fn_name": None}, True),  # as sentence-transformers 6.2 takes it
    ],
)
def test_cosine_means_unit_length(folder: Path, said: dict, unit_length: bool) -> None:
    says(folder, [TRANSFORMER, POOLING], pooling_mode_cls_token=True)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert description.read(folder, "question", AS_IT_SAYS).normalize == unit_length


def test_module_names_of_sentence_transformers_6(folder: Path) -> None:
    package = "sentence_transformers"
    pooling = f"{package}.sentence_transformer.modules.pooling.Pooling"
    modules = [
        {"path": "", "type": f"{package}.base.modules.transformer.Transformer"},
        {"path": "1_Pooling", "type": pooling},
        {"path": "2_Normalize", "type": f"{package}.base.modules.normalize.Normalize"},
    ]
    says(folder, modules, pooling_mode="mean")
    found = description.read(folder, "passage", AS_IT_SAYS)
    assert found == EncoderSettings("mean", True, 64, "space")


def test_contradictions_are_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(description, "say", said.append)
    says(folder, [TRANSFORMER, POOLING], pooling_mode_mean_tokens=True)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    for _ in range(2):
        model = ModelConfig(pooling="cls", question_prompt="ask: ")
        found = description.read(folder, "question", model)
    assert (found.pooling, found.prompt) == ("cls", "ask: ")
    assert len(said) == 2 and "model.pooling is cls, though" in said[0]
    assert "model.question_prompt is 'ask: ', though" in said[1] and "'query: '" in said[1]


@pytest.mark.parametrize(
    ("ours", "asked", "messages"),
    [(False, 48, 1), (False, 16, 0), (False, 8, 0), (True, 48, 1), (True, 16, 0), (True, 8, 1)],
)
def test_a_length_that_contradicts_the_folder_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ours: bool, asked: int, messages: int
) -> None:
    """Fewer tokens than another's folder takes contradict nothing; than ours, its training."""
    said: list[str] = []
    monkeypatch.setattr(description, "say", said.append)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    if ours:
        (folder / "dpr_jax.json").write_text('{"title_and_text": "pair"}')
    for _ in range(2):
        found = description.read(folder, "passage", ModelConfig(max_passage_tokens=asked))
    assert found.max_tokens == asked
    assert (
        said == [f"model: model.max_passage_tokens is {asked}, though {folder} says 16"] * messages
    )


def test_more_tokens_than_positions(folder: Path) -> None:
    with pytest.raises(InputError, match="model.max_passage_tokens is 65, but .* has 64 positions"):
        description.read(folder, "passage", ModelConfig(max_passage_tokens=65))


def test_what_we_write_is_what_we_read(tmp_path: Path, folder: Path) -> None:
    for number, settings in enumerate(
        (
            EncoderSettings("cls", False, 48, "pair"),
            EncoderSettings("mean", True, 20, "space", lowercase=True),
        )
    ):
        out = tmp_path / str(number)
        out.mkdir()
        hf.write_encoder(
            out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=settings
        )
        for side in ("question", "passage"):
            assert description.read(out, side, AS_IT_SAYS) == settings
        joined = ("'title [SEP] text'", "'title text'")[number]
        ours = json.loads((out / "dpr_jax.json").read_text())
        assert joined in ours["in_sentence_transformers"]


def test_a_pair_is_one_string_with_the_separator(folder: Path) -> None:
    """So dpr_jax.json says it; sentence-transformers 6.2 then gives the same vectors."""
    found = tokenizer.load(folder, 32)
    pair, string = found.ids([("Paris", "on the Seine"), "Paris [SEP] on the Seine"])
    assert pair == string


def test_lower_case_is_part_of_an_encoder(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["do_lower_case"] = False  # which stands above tokenizer.json, as in transformers
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = ["PARIS [SEP] a", "paris [SEP] a"]
    upper, lower = tokenizer.load(folder, 32).ids(texts)
    cased = load_embedder(str(folder), "question", model=AS_IT_SAYS).fingerprint
    assert upper != lower
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert tokenizer.load(folder, 32).ids(texts) == [lower, lower]
    assert load_embedder(str(folder), "question", model=AS_IT_SAYS).fingerprint != cased


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
DOC = str(len(BASE))
FLAGS = {
    "normalized": False,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "special": False,
}


def added(text: str, id_: str = DOC, **flags: bool) -> dict:
    """Returns what tokenizer_config.json says of one added token."""
    return {"added_tokens_decoder": {id_: {"content": text} | FLAGS | flags}}


@pytest.mark.parametrize(
    ("settings", "older", "text", "tokens"),
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
        ({}, {"<doc>": len(BASE)}, "<DOC> paris", "[CLS] <doc> paris [SEP]"),
        (added("<doc>"), {}, "<doc> paris", "[CLS] <doc> paris [SEP]"),
        (added("<doc>"), {}, "<DOC> paris", "[CLS] [UNK] [UNK] [UNK] paris [SEP]"),
        (added("<doc>", special=True), {}, "a<doc>", "[CLS] [UNK] <doc> [SEP]"),
        (added("<DOC>", normalized=True), {}, "<doc> paris", "[CLS] <DOC> paris [SEP]"),
        (added("mun"), {}, "munchen", "[CLS] mun [UNK] [SEP]"),
        (added("mun", single_word=True), {}, "munchen mun", "[CLS] munchen mun [SEP]"),
        (added("[Q]", "19", special=True), {}, "[Q]: paris", "[CLS] [Q] : paris [SEP]"),
        ({}, {}, "[Q]: paris", "[CLS] [ [UNK] ] : paris [SEP]"),
        ({"additional_special_tokens": ["[Q]"]}, {}, "[Q] paris", "[CLS] [Q] paris [SEP]"),
        (added("[MASK]", "4", normalized=True), {}, "[mask] paris", "[CLS] [MASK] paris [SEP]"),
        ({"tokenizer_class": "BertTokenizerFast"}, {}, "paris", "[CLS] paris [SEP]"),
    ],
)
def test_a_vocabulary_is_read_as_its_settings_say(
    tmp_path: Path, settings: dict, older: dict, text: str, tokens: str
) -> None:
    """The tokens are those that transformers' BertTokenizer gives for the same folder."""
    (tmp_path / "vocab.txt").write_text("\n".join(BASE) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text(json.dumps(older))
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


@pytest.mark.parametrize("strips", [{"lstrip": True}, {"rstrip": True}])
def test_an_added_token_takes_the_spaces_that_it_says(tmp_path: Path, strips: dict) -> None:
    """BERT's words never hold spaces, so those show only in the offsets of the token."""
    (tmp_path / "vocab.txt").write_text("\n".join(BASE) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added("<doc>", **strips)))
    backend = tokenizer.load(tmp_path, 16)._backend
    wanted = (5, 11) if "lstrip" in strips else (6, 12)
    assert backend.encode("paris <doc> paris").offsets[2] == wanted


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BASE) + "\n", encoding="utf-8")
    (tmp_path / file).write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(
        InputError, match="tokenizer_class 'BertJapaneseTokenizer', which can only be read from"
    ):
        tokenizer.load(tmp_path, 16)
