"""What the training benchmarks share: real questions with mined negatives, and towers of any size
with random weights.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, DataConfig, MineConfig
from dpr_jax.data import prepare, store
from dpr_jax.mining import mine
from dpr_jax.model import hf
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Tokens

SEED = 13


def prepared(folder: Path, scratch: Path, count: int) -> tuple[WorkDir, store.Questions]:
    """A work directory with training questions from all over the file and hard negatives that BM25
    finds.

    Args:
      folder: holds passages.tsv and train.json in DPR's layout.
      scratch: an empty folder.
      count: how many questions.
    """
    rows = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    (scratch / "train.json").write_text(json.dumps(rows[:: len(rows) // count or 1]))
    config = Config(
        name="benchmark",
        data=DataConfig(
            passages=str(folder / "passages.tsv"),
            train=str(scratch / "train.json"),
            max_train_questions=count,
        ),
        mine=MineConfig(depth=4),
    )
    workdir = artifacts.open_workdir(scratch / "run", config.name)
    prepare.run(config, workdir)
    mine.run(config, workdir)
    return workdir, store.open_questions(workdir, "train", mined=True)


def random_tower(folder: Path, *, layers: int, width: int, heads: int) -> Path:
    """A BERT of random weights as a Hugging Face folder, with the vocabulary of the packaged
    encoder.
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
        shutil.copyfile(packaged / name, folder / name)
    config = {"model_type": "bert", "architectures": ["BertModel"], **shape.__dict__}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    init = jax.jit(functools.partial(Encoder(shape).init, train=False))
    hf.write_weights(folder, shape, init(jax.random.key(SEED), tokens)["params"])
    return folder
