"""A BERT of random weights, small enough for tests, with the real tokenizer of the packaged
encoder.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from dpr_jax.model import hf
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens

PACKAGED = "packaged:all-MiniLM-L6-v2"
SHAPE = BertShape(
    vocab_size=30522,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)


@functools.cache
def params(shape: BertShape = SHAPE, seed: int = 0) -> Params:
    """Random weights of one tower, host arrays."""
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    init = jax.jit(lambda key: Encoder(shape).init(key, tokens, train=False)["params"])
    return jax.tree.map(np.asarray, init(jax.random.key(seed)))


def packaged_as_bert(folder: Path) -> Path:
    """The packaged encoder as a folder that says nothing of itself: titles are a segment."""
    folder.mkdir(parents=True, exist_ok=True)
    source = hf.resolve(PACKAGED, "passage")
    for name in ("config.json", hf.WEIGHTS, *hf.TOKENIZER_FILES):
        if (source / name).exists():
            (folder / name).symlink_to(source / name)
    return folder


def write(folder: Path, seed: int = 0, layers: int = SHAPE.num_hidden_layers) -> Path:
    """One encoder in Hugging Face layout, without settings of ours.

    A training of one layer compiles in two thirds of the time of two.
    """
    folder.mkdir(parents=True)
    shape = dataclasses.replace(SHAPE, num_hidden_layers=layers)
    source = hf.resolve(PACKAGED, "question")
    for name in hf.TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    config = {"model_type": "bert", "architectures": ["BertModel"], **shape.__dict__}
    (folder / "config.json").write_text(json.dumps(config))
    hf.write_weights(folder, shape, params(shape, seed))
    return folder
