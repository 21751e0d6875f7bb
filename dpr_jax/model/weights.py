"""The weights of a tower from the files of its folder, and back."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.model import names, unpickle
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params
from dpr_jax.model.folder_json import load_json
from dpr_jax.model.modules import DenseShape
from dpr_jax.model.names import Weight
from dpr_jax.model.stack import EncoderShape

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # after either name, of weights in shards
# heads for training and tables that can be computed: no part of an encoder
NOT_OURS = re.compile(
    r"(pooler|cls|lm_head|mlm|qa_outputs|classifier|pre_classifier|projector|decoder"
    r"|vocab_(transform|layer_norm|projector)|head|predictions|seq_relationship)\b.*"
    r"|embeddings\.(position_ids|token_type_ids)|.*rotary_emb\.inv_freq"
)


def read_params(
    folder: Path, shape: EncoderShape, settings: EncoderSettings | None = None
) -> Params:
    """Returns the weights of one tower as float32 arrays, in the tree that `Encoder` uses.

    Args:
      folder: of the encoder.
      shape: its architecture.
      settings: of the tower, for the layers after pooling; None: there are none.

    Raises:
      InputError: a file is missing or damaged, or a tensor is missing, left over, has the wrong
        shape, or holds NaN or infinity.
    """
    path = weight_files(folder)[0]
    tensors = _tensors(folder)
    wanted = names.weights(shape)
    anchor = wanted[0].name
    starts = (name.removesuffix(anchor) for name in tensors if name.endswith(anchor))
    prefix = min(starts, key=len, default=None)
    if prefix is None:
        raise InputError(
            f"{path} has no tensor *{anchor}; it is not an encoder of the type that config.json"
            " names"
        )
    params: Params = {}
    used: set[str] = set()
    for weight in wanted:
        found = next(
            (n for n in (weight.name, *names.older(weight.name)) if prefix + n in tensors), None
        )
        if found is None:
            raise InputError(f"{path} has no tensor {prefix}{weight.name}; config.json promises it")
        used.add(prefix + found)
        _put(params, weight, prefix + found, tensors[prefix + found], path)
    if settings:
        _read_dense(folder, params, settings, tensors, used)
    _check_left_over(path, prefix, {*tensors} - used)
    return params


def _put(params: Params, weight: Weight, name: str, found: np.ndarray, path: Path) -> None:
    """Puts one tensor into its place in the tree."""
    is_kernel = weight.path[-1] == "kernel"
    expected = weight.sizes[::-1] if is_kernel else weight.sizes
    if found.shape != expected:
        raise InputError(
            f"{path}: tensor {name} has shape {found.shape}, the config says {expected}"
        )
    value = np.asarray(found, np.float32)
    if not np.isfinite(value).all():
        raise InputError(f"{path}: tensor {name} holds NaN or infinity")
    node = params
    for key in weight.path[:-1]:
        node = node.setdefault(key, {})
    node[weight.path[-1]] = np.ascontiguousarray(value.T if is_kernel else value)


def _read_dense(
    folder: Path,
    params: Params,
    settings: EncoderSettings,
    tensors: dict[str, np.ndarray],
    used: set[str],
) -> None:
    """Adds the layers after pooling; those of DPR's encode_proj lie among the encoder's."""
    folders = settings.dense_folders
    for number, layer in enumerate(settings.dense):
        where = weight_files(folders[number])[0] if folders else weight_files(folder)[0]
        there = _tensors(folders[number]) if folders else tensors
        start = "linear." if folders else "encode_proj."
        for weight in dense_weights(number, layer):
            name = next((n for n in there if n.endswith(start + weight.name)), None)
            if name is None:
                raise InputError(f"{where} has no tensor {start}{weight.name}")
            used.add(name)
            _put(params, weight, name, there[name], where)
        if folders and (left := {*there} - used):
            raise InputError(f"{where} has a tensor {min(left)}, which no Dense layer has")


def dense_weights(number: int, layer: DenseShape) -> list[Weight]:
    """Returns the arrays of a layer after pooling."""
    path, sizes = (f"dense_{number}",), (layer.inputs, layer.outputs)
    found = [Weight("weight", (*path, "kernel"), sizes)]
    return found + [Weight("bias", (*path, "bias"), sizes[1:])] * layer.bias


def _check_left_over(path: Path, prefix: str, left: set[str]) -> None:
    """Refuses tensors that the encoder does not have and that are no head for training."""
    unknown = sorted(
        name
        for name in left
        if not NOT_OURS.fullmatch(name.removeprefix(prefix)) and not NOT_OURS.fullmatch(name)
    )
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"{path} has a tensor {unknown[0]}{more}, which the encoder that config.json describes"
            " does not have; fetch the config.json that belongs to the weights"
        )


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a folder's weights: one, or the shards that its index names."""
    for name in (SAFETENSORS, TORCH):
        index = folder / (name + INDEX)
        if (folder / name).exists():
            return [folder / name]
        if index.exists():
            files = load_json(index).get("weight_map")
            if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
                raise InputError(
                    f"{index} has no weight_map of file names; fetch the model folder again"
                )
            return [folder / Path(name).name for name in sorted({*files.values()})]
    return [folder / SAFETENSORS]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a folder, in the precision that it is stored in."""
    tensors: dict[str, Any] = {}
    files = weight_files(folder)
    for file in files:
        if not file.exists():
            remedy = (
                f"{folder} has no weights: copy {SAFETENSORS} or {TORCH} there"
                if file.name == SAFETENSORS
                else f"an {INDEX.strip('.')} names it: fetch the model folder again"
            )
            raise InputError(f"{file} does not exist; {remedy}")
        if file.suffix == ".safetensors":
            try:
                tensors |= safetensors.numpy.load_file(file)
            except (safetensors.SafetensorError, OSError) as error:
                raise InputError(f"{file} is damaged: {error}") from None
            continue
        found = unpickle.load(file)
        found = found.get("state_dict", found) if isinstance(found, dict) else found
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(value, np.ndarray) for name, value in found.items()
        ):
            raise InputError(f"{file} is no table of tensors by name; save it as safetensors")
        tensors |= found
    return tensors


def write_weights(folder: Path, shape: EncoderShape, params: Params) -> None:
    """Writes model.safetensors of one tower, float32, under Hugging Face's names."""
    write_tensors(folder, names.weights(shape), params)


def write_tensors(
    folder: Path, weights: Iterable[Weight], params: Params, *, prefix: str = ""
) -> None:
    """Writes some arrays of a tower to model.safetensors, float32.

    Args:
      folder: existing.
      weights: which.
      params: the tower's tree, host arrays.
      prefix: before every name.
    """
    tensors = {prefix + weight.name: tensor(params, weight) for weight in weights}
    with artifacts.atomic_file(folder / SAFETENSORS) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})


def tensor(params: Params, weight: Weight) -> np.ndarray:
    """Returns one array of a tower, float32, as files have it."""
    value: Any = params
    for key in weight.path:
        value = value[key]
    value = np.asarray(jax.device_get(value), np.float32)
    return np.ascontiguousarray(value.T if weight.path[-1] == "kernel" else value)
