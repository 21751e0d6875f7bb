"""The programs that `train`, `encode` and exact search map, for devices that are not here.

They come from the same functions as those of the stages. Shapes take the place of arrays.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.config import Config
from dpr_jax.errors import InputError
from dpr_jax.index.engines import exact
from dpr_jax.model import description, dual_encoder, embed, hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens
from dpr_jax.model.stack import EncoderShape
from dpr_jax.training import program, setup
from dpr_jax.training.step import Batch

# encoders whose config.json is public knowledge: no network is needed to plan for them
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {},
    "bert-base-cased": {"vocab_size": 28996},
    "bert-large-uncased": _LARGE,
    "bert-large-cased": {**_LARGE, "vocab_size": 28996},
}
POSITIVES = 8  # marked for a question, at most: what `mask_duplicates` is given of each
MEAN_TOKENS = 130  # of a passage of 100 words with its title, special tokens included


class Model(NamedTuple):
    """Both towers of a config.

    Attributes:
      shape: architecture.
      question: how questions become vectors.
      passage: likewise of passages.
    """

    shape: EncoderShape
    question: EncoderSettings
    passage: EncoderSettings

    def cut(self, layers: int) -> "Model":
        """Returns the same with so many layers."""
        return self._replace(shape=dataclasses.replace(self.shape, num_hidden_layers=layers))


def read_model(config: Config) -> Model:
    """Returns the towers of `model.init` without their weights.

    Raises:
      InputError: it names another retriever, or cannot be had.
    """
    source = config.model.init
    if source.startswith("retriever:"):
        raise InputError(
            f"model.init is {source}, which is in a work directory; plan with the encoder that it"
            " was trained from: --model.init HUB_ID_OR_FOLDER"
        )
    known = PUBLISHED.get(source.removeprefix("google-bert/"))
    with tempfile.TemporaryDirectory() as temporary:
        if known is not None and not Path(source).exists():
            folder = Path(temporary)
            artifacts.write_json(folder / "config.json", {"model_type": "bert", **known})
            folders = {"question": folder, "passage": folder}
        else:
            folders = {side: hf.resolve(source, side) for side in ("question", "passage")}
        own = {side: description.read(folders[side], side, config.model) for side in folders}
        return Model(hf.read_shape(folders["question"]), own["question"], own["passage"])


def _params(encoder: Encoder) -> Params:
    """The shapes of one tower's weights."""
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))

    def init(key: jax.Array) -> Params:
        return encoder.init(key, tokens, train=False)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def train(
    config: Config,
    model: Model,
    devices: list[jax.Device],
    *,
    schedule: setup.Schedule,
) -> jax.stages.Lowered:
    """Lowers the update that `dpr train` maps over the devices."""
    spmd = parallel.spmd(config.train.spmd, devices)
    update, shapes = _update(config, model, spmd, schedule)
    return update.lower(*shapes)


def trace(config: Config, model: Model, spmd: parallel.Spmd, *, schedule: setup.Schedule) -> str:
    """Returns the text of the update before it is lowered."""
    update, shapes = _update(config, model, spmd, schedule)
    return str(jax.make_jaxpr(update)(*shapes))


def _update(
    config: Config,
    model: Model,
    spmd: parallel.Spmd,
    schedule: setup.Schedule,
) -> tuple[Any, tuple[Any, Any]]:
    """Returns the mapped update, and the shapes that it takes."""
    shapes = {"question": model.shape, "passage": model.shape}
    own = {"question": model.question, "passage": model.passage}
    planned = program.build(config, shapes, own, schedule, spmd)
    towers = map(_params, planned.encoder)
    params = dual_encoder.dual_params(*towers, shared=config.model.shared_towers)
    state = jax.eval_shape(planned.initial_state, params)
    return planned.update(config.train.chunk_size), planned.shapes(state, batch(config, model))


def batch(config: Config, model: Model) -> Batch:
    """Returns the shapes of a global batch, every text padded to its limit."""
    settings = config.train
    if settings.pack_rows or settings.mask_answers != "off":
        raise InputError(
            "train.pack_rows and train.mask_answers give batches whose shapes depend on the data;"
            " plan without them: the padded batch takes more"
        )
    questions = settings.batch_size
    passages = questions * (1 + settings.hard_negatives)

    def shape(*sizes: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def tokens(rows: int, length: int) -> Tokens:
        return Tokens(shape(rows, length), shape(rows))

    taught = settings.distillation != "off"
    return Batch(
        question=tokens(questions, model.question.max_tokens),
        passages=tokens(passages, model.passage.max_tokens),
        passage_texts_P=shape(passages),
        positive_texts_BM=shape(questions, POSITIVES if settings.mask_duplicates else 0),
        weight_B=shape(questions, dtype=np.float32),
        teacher_scores_BG=shape(questions, passages // questions, dtype=np.float32)
        if taught
        else None,
    )


class Encoding(NamedTuple):
    """One batch of the encoding stage.

    Attributes:
      lowered: its program.
      rows: passages in it, over all devices.
      length: tokens that each is padded to.
    """

    lowered: jax.stages.Lowered
    rows: int
    length: int


def encode(config: Config, model: Model, devices: list[jax.Device]) -> Encoding:
    """Lowers one batch of passages of mean length as `dpr encode` maps it over the devices of a
    host.
    """
    dtype = config.encode.dtype
    encoder = hf.encoder_of_shape(
        model.shape,
        model.passage,
        dtype=jnp.dtype("bfloat16" if dtype == "auto" else dtype),
        platform=parallel.platform_of(devices),
    )
    tokens = min(MEAN_TOKENS, model.passage.max_tokens)
    length = min(embed.padded_length(tokens, embed.FEW_TEXTS + 1), model.passage.max_tokens)
    lowered, rows = embed.lower(
        encoder, _params(encoder), devices, length, batch_tokens=config.encode.batch_tokens
    )
    return Encoding(lowered, rows, length)


def search(
    config: Config, width: int, passages: int, devices: list[jax.Device]
) -> tuple[jax.stages.Lowered, int]:
    """Lowers the search of one block of vectors; returns it with the number of blocks."""
    return exact.lower(
        devices,
        queries=exact.QUERIES_AT_ONCE,
        count=passages,
        dimension=config.index.dimensions or width,
        k=config.retrieve.top_k,
    )
