"""An encoder as transformers' DPRQuestionEncoder or DPRContextEncoder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.export.model_tower import Tower
from dpr_jax.model import hf, names, weights
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Side
from dpr_jax.model.folder_json import load_json

CLASSES = {"question": "DPRQuestionEncoder", "passage": "DPRContextEncoder"}
PREFIXES = {"question": "question_encoder.", "passage": "ctx_encoder."}


def write(folder: Path, side: Side, tower: Tower) -> None:
    """Writes one tower; the folder says nothing that DPR cannot do.

    Args:
      folder: existing, empty.
      side: which tower, which decides the class.
      tower: its content.

    Raises:
      InputError: its vectors are not BERT's [CLS], with or without a projection.
    """
    _check(side, tower)
    config: dict[str, Any] = load_json(tower.folder / "config.json")
    config |= {
        "architectures": [CLASSES[side]],
        "model_type": "dpr",
        "projection_dim": tower.settings.dense[0].outputs if tower.settings.dense else 0,
        "dtype": "float32",
    }
    for name in ("torch_dtype", "auto_map"):
        config.pop(name, None)
    artifacts.write_json(folder / "config.json", config)
    for name in hf.TOKENIZER_FILES:
        if (tower.folder / name).exists():
            shutil.copyfile(tower.folder / name, folder / name)
    tensors: dict[str, np.ndarray] = {
        f"{PREFIXES[side]}bert_model.{weight.name}": weights.tensor(tower.params, weight)
        for weight in names.weights(tower.shape)
    }
    for layer in tower.settings.dense:
        for weight in weights.dense_weights(0, layer):
            value = weights.tensor(tower.params, weight)
            tensors[f"{PREFIXES[side]}encode_proj.{weight.name}"] = value
    with artifacts.atomic_file(folder / hf.WEIGHTS) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})


def _check(side: Side, tower: Tower) -> None:
    """Names what DPR's classes do not do."""
    own, shape = tower.settings, tower.shape
    kind = load_json(tower.folder / "config.json").get("model_type")
    layers = [(layer.activation, layer.bias) for layer in own.dense]
    wrong = {
        f"is of type {kind!r}": kind not in ("bert", "dpr") or not isinstance(shape, BertShape),
        f"has pooling {own.pooling!r}": own.pooling != "cls",
        "scales vectors to unit length": own.normalize,
        "has Dense layers other than one without activation": layers not in ([], [("identity", 1)]),
        f"cuts vectors to {own.width} numbers": own.width is not None,
        f"puts {own.prompt!r} before texts": bool(own.prompt),
    }
    if found := [text for text, is_wrong in wrong.items() if is_wrong]:
        raise InputError(
            f"the {side} encoder {' and '.join(found)}, which {CLASSES[side]} does not do: its"
            " vector is BERT's [CLS]; train with model.pooling cls and model.normalize False, or"
            " use the model folder itself, which sentence-transformers opens"
        )
