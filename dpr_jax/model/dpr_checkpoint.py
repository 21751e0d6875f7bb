"""Reads the checkpoints that facebookresearch/DPR's own code writes: both towers in one file.

The file has no tokenizer and no config.json. The architecture is that of its arrays; the vocabulary
is a vocab.txt beside it, or that of the encoder which the checkpoint says it began with.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.model import unpickle
from dpr_jax.model.dual_encoder import Side

PREFIXES: dict[Side, str] = {"question": "question_model.", "passage": "ctx_model."}
VOCABULARY = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
HEAD_WIDTH = 64  # of every BERT by Google


def tower(file: Path, side: Side, resolve: Callable[[str, Side], Path]) -> Path:
    """Returns the folder of one tower, written beside the checkpoint when it is first used.

    Args:
      file: the checkpoint.
      side: which tower.
      resolve: finds the folder of the encoder whose vocabulary is used.

    Raises:
      InputError: the file is no such checkpoint, or no vocabulary can be had.
    """
    folder = file.with_name(f"{file.name}.towers")
    facts = file.stat()
    origin = artifacts.made_from("towers", {"bytes": facts.st_size, "ns": facts.st_mtime_ns}, {})
    if not artifacts.is_fresh(folder / "manifest.json", origin):
        _convert(file, folder, origin, resolve)
    return folder / f"{side}_encoder"


def _convert(
    file: Path, folder: Path, origin: dict[str, Any], resolve: Callable[[str, Side], Path]
) -> None:
    unwanted = ("optimizer_dict", "scheduler_dict")
    found = unpickle.load(file, leave_out=unwanted)
    if isinstance(found, list) and len(found) == 6:  # the state of DPR's first version
        found = {"model_dict": found[0], "encoder_params": found[5]}
    tensors = found.get("model_dict") if isinstance(found, dict) else None
    if not isinstance(tensors, dict):
        raise InputError(
            f"{file} has no model_dict; it is no checkpoint of facebookresearch/DPR: give the"
            " folder of an encoder"
        )
    said = found.get("encoder_params") or {}
    vocabulary = _vocabulary(file, said, resolve)
    with artifacts.atomic_dir(folder) as partial:
        for side, prefix in PREFIXES.items():
            own = {
                name.removeprefix(prefix): np.ascontiguousarray(value)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            if not own:
                raise InputError(f"{file} has no tensors {prefix}*: no {side} encoder is in it")
            target = partial / f"{side}_encoder"
            target.mkdir()
            artifacts.write_json(target / "config.json", _config(file, own))
            for name in VOCABULARY:
                if (vocabulary / name).exists():
                    shutil.copyfile(vocabulary / name, target / name)
            safetensors.numpy.save_file(own, target / "model.safetensors")
        files = [path for path in partial.rglob("*") if path.is_file()]
        artifacts.write_manifest(partial / "manifest.json", origin, files)


def _config(file: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the architecture that arrays of these sizes have."""
    try:
        sizes = {
            name: tensors[f"embeddings.{name}_embeddings.weight"].shape
            for name in ("word", "position", "token_type")
        }
        inner = tensors["encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"{file} has no tensor {error.args[0]}; only BERT can be read") from None
    layers = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in tensors]
    width = sizes["word"][1]
    config = {
        "model_type": "dpr",
        "vocab_size": sizes["word"][0],
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(one[1]) for one in layers if one),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "intermediate_size": inner,
        "max_position_embeddings": sizes["position"][0],
        "type_vocab_size": sizes["token_type"][0],
    }
    if (projection := tensors.get("encode_proj.weight")) is not None:
        config["projection_dim"] = projection.shape[0]
    return config


def _vocabulary(file: Path, said: Any, resolve: Callable[[str, Side], Path]) -> Path:
    """Returns a folder with the tokenizer's files."""
    if (file.parent / "vocab.txt").exists():
        return file.parent
    began_with = said.get("pretrained_model_cfg") if isinstance(said, dict) else None
    try:
        return resolve(str(began_with or "bert-base-uncased"), "question")
    except InputError as error:
        raise InputError(
            f"{file} has no tokenizer; copy vocab.txt of the BERT that it was trained from beside"
            f" it ({error})"
        ) from None
