"""Encoders in and out: what we write is what we read, and what is wrong is named."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
import tokenizers

from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.embed import load_embedder

SETTINGS = EncoderSettings("mean", True, 32, "pair")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "bert")


def test_written_encoder_reads_back_equal(tmp_path: Path, folder: Path) -> None:
    wanted = tiny.params(seed=5)
    out = tmp_path / "out"
    out.mkdir()
    hf.write_encoder(out, template=folder, shape=tiny.SHAPE, params=wanted, settings=SETTINGS)
    assert hf.read_shape(out) == tiny.SHAPE
    assert description.read(out, "question", ModelConfig()) == SETTINGS
    jax.tree.map(np.testing.assert_array_equal, hf.read_params(out, tiny.SHAPE), wanted)


def test_an_encoders_own_settings_win(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hf.write_encoder(
        out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=SETTINGS
    )
    texts = ["a question about something"]
    ours = load_embedder(str(out), "question", model=ModelConfig()).encode(texts)
    plain = load_embedder(str(folder), "question", model=ModelConfig()).encode(texts)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, rtol=1e-3)
    assert np.linalg.norm(plain) > 2  # [CLS] after LayerNorm: the square root of the width


def test_tensor_names_of_other_writers(folder: Path) -> None:
    """A `bert.` prefix, and LayerNorm's weight as gamma, as in the first checkpoints."""
    path = folder / "model.safetensors"
    wanted = hf.read_params(folder, tiny.SHAPE)
    tensors = safetensors.numpy.load_file(path)
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in tensors.items()
    }
    safetensors.numpy.save_file(renamed, path)
    jax.tree.map(np.testing.assert_array_equal, hf.read_params(folder, tiny.SHAPE), wanted)


def test_towers_of_one_folder_and_of_two(tmp_path: Path, folder: Path) -> None:
    assert hf.resolve(str(folder), "question") == folder
    both = tmp_path / "both"
    tiny.write(both / "question_encoder")
    tiny.write(both / "passage_encoder", seed=1)
    assert hf.resolve(str(both), "passage") == both / "passage_encoder"
    sides = [
        load_embedder(str(both), side, model=ModelConfig()) for side in ("question", "passage")
    ]
    assert sides[0].fingerprint != sides[1].fingerprint
    assert sides[0].passage_fingerprint == sides[1].passage_fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "packaged:nothing",
            "no packaged model 'nothing'; there is packaged:all-MiniLM",
        ),
        ("nobody/no-such-model", "is no folder in .* and could not be fetched"),
        (
            "./no/such/folder",
            "model folder ./no/such/folder does not exist",
        ),
    ],
)
def test_unknown_models_are_refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        hf.resolve(source, "question")
    assert "\n" not in str(caught.value)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5"}, "type 't5'; the types that can be used are bert, dpr, roberta"),
        ({"model_type": "qwen3"}, "type 'qwen3', a decoder, whose tokens see only what stands"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'; known are gelu"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"model_type": "dpr", "projection_dim": 12}, "has no tensor encode_proj.weight"),
        (
            {"model_type": "new", "auto_map": {"AutoConfig": "configuration.New"}},
            "type 'new', and its code .auto_map. is never run",
        ),
        ({"hidden_size": "wide"}, "hidden_size 'wide'; it must be a whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers 2.5; it must be a whole number"),
        ({"num_attention_heads": 5}, "hidden_size 32, which its num_attention_heads 5 do not"),
        ({"hidden_act": ["gelu"]}, "hidden_act .'gelu'.; known are gelu"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'; it must lie between"),
        ({"is_decoder": True}, "is_decoder true; only encoders"),
        (["bert"], "config.json holds a list, where a dict is expected"),
    ],
)
def test_other_architectures_are_refused(
    folder: Path, values: dict[str, object] | list[str], message: str
) -> None:
    if isinstance(values, list):
        (folder / "config.json").write_text(json.dumps(values))
    else:
        change_config(folder, **values)
    with pytest.raises(InputError, match=message) as caught:
        load_embedder(str(folder), "question", model=ModelConfig())
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        hf.read_params(folder, tiny.SHAPE)
    path.unlink()
    with pytest.raises(InputError, match="does not exist; .* has no weights: copy model.safet"):
        hf.read_params(folder, tiny.SHAPE)


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "encoder.layer.1.output.dense.weight"
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if k != name}, path)
    with pytest.raises(InputError, match=f"no tensor {name}"):
        hf.read_params(folder, tiny.SHAPE)
    safetensors.numpy.save_file(tensors | {name: tensors[name][:, :7].copy()}, path)
    with pytest.raises(InputError, match=f"tensor {name} has shape"):
        hf.read_params(folder, tiny.SHAPE)
    for left_over in ("encode_proj.weight", "encoder.layer.2.output.dense.weight"):
        safetensors.numpy.save_file(tensors | {left_over: np.eye(32, dtype=np.float32)}, path)
        with pytest.raises(InputError, match=f"has a tensor {left_over}, which the encoder"):
            hf.read_params(folder, tiny.SHAPE)
    heads = ("pooler.dense.weight", "cls.predictions.bias", "embeddings.position_ids")
    safetensors.numpy.save_file(tensors | {name: np.ones(2, np.float32) for name in heads}, path)
    hf.read_params(folder, tiny.SHAPE)


def test_a_models_own_code_is_never_run(folder: Path) -> None:
    """Nor asked about: transformers would read the answer from standard input."""
    ran = folder / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass New: pass\n"
    (folder / "configuration.py").write_text(code)
    change_config(folder, auto_map={"AutoConfig": "configuration.New"})
    assert hf.read_shape(folder) == tiny.SHAPE  # what it says of itself is plain BERT
    assert not ran.exists()


def test_a_models_own_code_is_not_passed_on(tmp_path: Path, folder: Path) -> None:
    files = ("config.json", "tokenizer_config.json")
    before = [json.loads((folder / name).read_text()) for name in files]
    for name, said in zip(files, before, strict=True):
        (folder / name).write_text(json.dumps(said | {"auto_map": {"AutoModel": "new.New"}}))
    out = tmp_path / "out"
    out.mkdir()
    hf.write_encoder(
        out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=SETTINGS
    )
    after = [json.loads((out / name).read_text()) for name in files]
    assert after == [before[0] | {"dtype": "float32"}, before[1]]


def test_weights_in_shards_are_those_of_one_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    wanted = hf.read_params(folder, tiny.SHAPE)
    tensors = safetensors.numpy.load_file(path)
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    before = hf.fingerprint(folder, SETTINGS)
    path.unlink()
    jax.tree.map(np.testing.assert_array_equal, hf.read_params(folder, tiny.SHAPE), wanted)
    assert hf.fingerprint(folder, SETTINGS) != before
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="00002-of-00002.safetensors does not exist; .* fetch the"):
        hf.read_params(folder, tiny.SHAPE)
    for index in ({}, {"weight_map": ["model.safetensors"]}, {"weight_map": {"a": 1}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="index.json has no weight_map of file names; fetch"):
            load_embedder(str(folder), "question", model=ModelConfig())


def test_unsound_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "encoder.layer.1.output.dense.bias"
    tensors[name][3] = np.nan
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=f"tensor {name} holds NaN"):
        hf.read_params(folder, tiny.SHAPE)


def test_written_files_follow_the_umask(tmp_path: Path, folder: Path) -> None:
    """A service of another user has to read them."""
    out = tmp_path / "out"
    out.mkdir()
    hf.write_encoder(
        out, template=folder, shape=tiny.SHAPE, params=tiny.params(), settings=SETTINGS
    )
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode & 0o777}


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert hf.resolve("~/bert", "question") == folder


def test_a_tokenizer_beyond_the_table_is_named(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(["tagus"])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="1 tokens beyond the 30,522 rows .* such as 'tagus'"):
        load_embedder(str(folder), "question", model=ModelConfig())
