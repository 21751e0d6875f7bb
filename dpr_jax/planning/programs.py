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
from dpr_jax.model.dual_encoder import Encoder, Params, Side, Tokens
from dpr_jax.model.stack import EncoderShape
from dpr_jax.training import packing, program, setup
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
# special tokens included: a question of Natural Questions; 100 words with their title
MEAN_TOKENS: dict[Side, int] = {"question": 12, "passage": 130}


class Model(NamedTuple):
    """Both towers of a config.

    Attributes:
      shapes: architecture of each side.
      own: how its texts become vectors.
    """

    shapes: dict[Side, EncoderShape]
    own: dict[Side, EncoderSettings]

    @property
    def layers(self) -> int:
        """Layers of the deeper tower."""
        return max(shape.num_hidden_layers for shape in self.shapes.values())

    @property
    def width(self) -> int:
        """Size of a vector."""
        return self.encoder("passage", jnp.float32, "cpu").width

    def cut(self, layers: int) -> "Model":
        """Returns the same with so many layers."""
        return self._replace(
            shapes={
                side: dataclasses.replace(shape, num_hidden_layers=layers)
                for side, shape in self.shapes.items()
            }
        )

    def encoder(self, side: Side, dtype: jnp.dtype, platform: str) -> Encoder:
        """Returns the architecture of one tower without dropout."""
        return hf.encoder_of_shape(
            self.shapes[side], self.own[side], dtype=dtype, platform=platform
        )


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
            folders: dict[Side, Path] = {"question": folder, "passage": folder}
        else:
            folders = {side: hf.resolve(source, side) for side in ("question", "passage")}
        return Model(
            {side: hf.read_shape(folder) for side, folder in folders.items()},
            {
                side: description.read(folder, side, config.model)
                for side, folder in folders.items()
            },
        )


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
    update, shapes = _update(config, model, spmd, schedule, len(devices))
    return update.lower(*shapes)


def trace(config: Config, model: Model, spmd: parallel.Spmd, *, schedule: setup.Schedule) -> str:
    """Returns the text of the update before it is lowered."""
    update, shapes = _update(config, model, spmd, schedule, jax.device_count())
    return str(jax.make_jaxpr(update)(*shapes))


def _update(
    config: Config,
    model: Model,
    spmd: parallel.Spmd,
    schedule: setup.Schedule,
    devices: int,
) -> tuple[Any, tuple[Any, Any]]:
    """Returns the mapped update, and the shapes that it takes."""
    planned = program.build(config, model.shapes, model.own, schedule, spmd)
    towers = map(_params, planned.encoder)
    params = dual_encoder.dual_params(*towers, shared=config.model.shared_towers)
    state = jax.eval_shape(planned.initial_state, params)
    shapes = planned.shapes(state, batch(config, model, devices))
    return planned.update(config.train.chunk_size), shapes


def batch(config: Config, model: Model, devices: int) -> Batch:
    """Returns the shapes of a global batch.

    Every text is padded to its limit. With `train.pack_rows` the rows are as many as texts of
    `tokens_of` need.
    """
    settings = config.train
    questions = settings.batch_size
    passages = questions * (1 + settings.hard_negatives)

    def tokens(side: Side, rows: int) -> Tokens:
        lengths = np.full(rows, tokens_of(model, side), np.int32)
        return Tokens(np.zeros((rows, model.own[side].max_tokens), np.int32), lengths)

    masks = settings.mask_answers != "off"
    taught = settings.distillation != "off"
    whole = Batch(
        question=tokens("question", questions),
        passages=tokens("passage", passages),
        passage_texts_P=np.zeros(passages, np.int32),
        positive_texts_BM=np.zeros(
            (questions, POSITIVES if settings.mask_duplicates else 0), np.int32
        ),
        weight_B=np.ones(questions, np.float32),
        passage_columns_P=np.zeros(passages, np.int32) if masks else None,
        holds_answer_BP=np.zeros((questions, passages), bool) if masks else None,
        teacher_scores_BG=np.zeros((questions, passages // questions), np.float32)
        if taught
        else None,
    )
    if settings.pack_rows:
        layout = packing.Layout(settings.pack_rows, devices, settings.chunk_size)
        whole = packing.pack(whole, packing.shape_for([whole], layout), layout)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), whole)


def tokens_of(model: Model, side: Side) -> int:
    """Returns the tokens that a text of this side is taken to have."""
    return min(MEAN_TOKENS[side], model.own[side].max_tokens)


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
    dtype = jnp.dtype("bfloat16" if dtype == "auto" else dtype)
    encoder = model.encoder("passage", dtype, parallel.platform_of(devices))
    length = embed.padded_length(tokens_of(model, "passage"), embed.FEW_TEXTS + 1)
    length = min(length, model.own["passage"].max_tokens)
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
