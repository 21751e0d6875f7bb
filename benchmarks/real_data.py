"""Shared by the training benchmarks: real questions with mined negatives, and towers of random
weights.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from dpr_jax import recipes
from dpr_jax.config import Config, DataConfig, MineConfig
from dpr_jax.data import prepare, store
from dpr_jax.mining import mine
from dpr_jax.model import hf
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Tokens
from dpr_jax.workdir import RetrieverDir, open_workdir

SEED = 13


def prepared(folder: Path, scratch: Path, count: int) -> RetrieverDir:
    """Prepares training questions from all over a file, and mines hard negatives by BM25.

    Args:
      folder: holds passages.tsv and train.json in DPR's layout.
      scratch: an empty folder.
      count: how many questions.

    Returns:
      A retriever that has everything but its training.
    """
    rows = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    (scratch / "train.json").write_text(json.dumps(rows[:: len(rows) // count or 1]))
    config = Config(
        data=DataConfig(
            passages=str(folder / "passages.tsv"),
            train=str(scratch / "train.json"),
            max_train_questions=count,
        ),
        mine=MineConfig(depth=4),
    )
    workdir = open_workdir(scratch / "run")
    prepare.run(config, workdir)
    retriever = workdir.retriever(recipes.MAIN)
    recipes.store(retriever, config)
    mine.run(config, retriever)
    return retriever


def mined_questions(retriever: RetrieverDir) -> store.Questions:
    """Opens the training questions with their mined hard negatives."""
    return store.open_questions(retriever.workdir, "train", mined=retriever.current("mined"))


def random_tower(folder: Path, *, layers: int, width: int, heads: int) -> Path:
    """Writes a BERT of random weights with the packaged encoder's vocabulary.

    Returns:
      Its folder, in Hugging Face's layout.
    """
    shape = BertShape(
        vocab_size=30522,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    )
    folder.mkdir()
    packaged = hf.resolve("packaged:all-MiniLM-L6-v2", "question")
    for name in hf.TOKENIZER_FILES:
        if (packaged / name).exists():
            shutil.copyfile(packaged / name, folder / name)
    config = {"model_type": "bert", "architectures": ["BertModel"], **shape.__dict__}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    init = jax.jit(functools.partial(Encoder(shape).init, train=False))
    hf.write_weights(folder, shape, init(jax.random.key(SEED), tokens)["params"])
    return folder
