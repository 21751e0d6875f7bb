"""The two towers: token ids to one vector a text (Karpukhin et al., 2020, arXiv 2004.04906, section
3.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model import lora
from dpr_jax.model.families import MODULES
from dpr_jax.model.lora import LORA
from dpr_jax.model.modules import DenseShape
from dpr_jax.model.stack import TowerPart, Wanted

Side = Literal["question", "passage"]
Params = dict[str, Any]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
}
TEXTS_PER_ROW = 8  # most texts that share a packed row; a place for each is computed


class Tokens(NamedTuple):
    """A padded batch of texts.

    Attributes:
      ids_BL: int32 token ids; what stands after a row's length is never read.
      lengths_B: int32 number of tokens of each row, special tokens included.
    """

    ids_BL: jax.Array | np.ndarray
    lengths_B: jax.Array | np.ndarray

    @property
    def slots(self) -> int:
        """Tokens computed, padding included."""
        return self.ids_BL.size


class Rows(NamedTuple):
    """R rows of L tokens, each holding up to TEXTS_PER_ROW texts one after another.

    Attributes:
      ids_RL: int32 token ids.
      text_RL: int32 number of a token's text in its row, from 0; -1 for padding.
      position_RL: int32 position of a token in its text.
    """

    ids_RL: jax.Array | np.ndarray
    text_RL: jax.Array | np.ndarray
    position_RL: jax.Array | np.ndarray


class Packed(NamedTuple):
    """B texts in rows that they share.

    Attributes:
      rows: their tokens.
      slot_B: int32 place of each text: its row * TEXTS_PER_ROW + its number in the row.
      lengths_B: int32 number of tokens of each text.
    """

    rows: Rows
    slot_B: jax.Array | np.ndarray
    lengths_B: jax.Array | np.ndarray

    @property
    def slots(self) -> int:
        """Tokens computed, padding included."""
        return self.rows.ids_RL.size


class Encoder(TowerPart):
    """One tower: BERT or its like, pooling, linear layers, optional scaling to unit length.

    Its `dtype` holds up to the last layer; all after it is float32.

    Attributes:
      pooling: "cls" is the last layer's [CLS] state, as in DPR (no pooler, no projection); "mean"
        the mean over real tokens; the others are sentence-transformers' (modules.POOLINGS).
      normalize: scale to unit length.
      frozen: levels from below without a gradient; see Stack.
      remat: compute each layer again in the backward pass instead of keeping its activations.
      dense: layers after pooling.
      cut: numbers of a vector that are kept; None keeps all.
    """

    pooling: str = "cls"
    normalize: bool = False
    frozen: int = 0
    remat: bool = False
    dense: tuple[DenseShape, ...] = ()
    cut: int | None = None

    @property
    def width(self) -> int:
        """Size of a vector."""
        whole = self.dense[-1].outputs if self.dense else self.shape.hidden_size
        return min(self.cut or whole, whole)

    @property
    def drops(self) -> bool:
        """True where anything is dropped in training."""
        return self.dropout > 0 or (self.attention_dropout or 0) > 0

    @nn.compact
    def __call__(self, tokens: Tokens | Rows, *, train: bool) -> jax.Array:
        """Returns float32 vectors [B, D], of packed rows those of all R * TEXTS_PER_ROW places;
        they mean nothing where there is no text.
        """
        family = MODULES[type(self.shape)]
        states = self.part(family, "bert", frozen=self.frozen, remat=self.remat)
        if isinstance(tokens, Rows):
            ids_BL, text_BL, position_BL = tokens
            mask_BLL = text_BL[:, :, None] == text_BL[:, None, :]
            place_BSL = text_BL[:, None] == jnp.arange(TEXTS_PER_ROW)[None, :, None]
        else:
            ids_BL = tokens.ids_BL
            position_BL = jnp.arange(ids_BL.shape[1])[None]
            mask_BLL = place_BSL = (position_BL < tokens.lengths_B[:, None])[:, None]

        if self.pooling in ("cls", "lasttoken"):
            if self.pooling == "cls":
                pick_BSL = place_BSL & (position_BL[:, None] == 0)
                if self.platform != "cpu" and not isinstance(tokens, Rows):
                    pick_BSL = None  # a slice: a product costs a TPU as much as a tenth of a layer
            else:  # where the next token is of no text, or of another
                pick_BSL = place_BSL & ~jnp.pad(place_BSL[..., 1:], ((0, 0), (0, 0), (0, 1)))
            wanted = Wanted(pick_BSL, place_BSL)
            emb_BSD = states(ids_BL, mask_BLL, position_BL, wanted=wanted, train=train)
            emb_BSD = emb_BSD.astype(jnp.float32)
        else:
            x_BLD = states(ids_BL, mask_BLL, position_BL, train=train).astype(jnp.float32)
            emb_BSD = _pooled(x_BLD, place_BSL, position_BL, self.pooling)
        emb_BD = emb_BSD.reshape(-1, emb_BSD.shape[-1])
        for number, layer in enumerate(self.dense):
            linear = nn.Dense(
                layer.outputs, use_bias=layer.bias, precision="highest", name=f"dense_{number}"
            )
            emb_BD = ACTIVATIONS[layer.activation](linear(emb_BD))
        emb_BD = emb_BD[:, : self.width]
        return unit_length(emb_BD) if self.normalize else emb_BD


class EncoderPair(NamedTuple):
    """The architectures of both towers, which may differ."""

    question: Encoder
    passage: Encoder

    @property
    def normalize(self) -> bool:
        """True where vectors have unit length, which is the same for both."""
        return self.passage.normalize

    @property
    def drops(self) -> bool:
        """True where anything is dropped in training."""
        return self.passage.drops

    @property
    def platform(self) -> str:
        """That of the devices which both are mapped over."""
        return self.passage.platform

    @property
    def dtype(self) -> jnp.dtype:
        """Compute precision of both."""
        return self.passage.dtype

    def without_dropout(self) -> "EncoderPair":
        """Returns both as they are used outside of training."""
        off = {"dropout": 0.0, "attention_dropout": 0.0}
        return EncoderPair(*(dataclasses.replace(one, **off) for one in self))


def encoder_of(encoder: "Encoder | EncoderPair", side: Side) -> Encoder:
    """Returns the architecture of one tower."""
    return encoder if isinstance(encoder, Encoder) else getattr(encoder, side)


def _pooled(
    x_BLD: jax.Array, place_BSL: jax.Array, position_BL: jax.Array, pooling: str
) -> jax.Array:
    """Returns one vector per place from the states of its tokens: float32 [B, S, D]."""
    if pooling == "max":
        # one place after another: all at once would take S times the memory of the states
        def largest(place_BL: jax.Array) -> jax.Array:
            return jnp.max(jnp.where(place_BL[..., None], x_BLD, -jnp.inf), axis=1)

        tops = [largest(place_BSL[:, s]) for s in range(place_BSL.shape[1])]
        return jnp.where(jnp.any(place_BSL, axis=2)[..., None], jnp.stack(tops, axis=1), 0)
    weight_BSL = place_BSL.astype(jnp.float32)
    if pooling == "weightedmean":
        weight_BSL *= position_BL[:, None] + 1
    # a product, not a scatter: the same sum in every run on every device
    total_BSD = jnp.einsum("bsl,bld->bsd", weight_BSL, x_BLD, precision="highest")
    count_BS1 = jnp.maximum(jnp.sum(weight_BSL, axis=2, keepdims=True), 1)
    return total_BSD / (jnp.sqrt(count_BS1) if pooling == "mean_sqrt_len_tokens" else count_BS1)


def unit_length(emb_BD: jax.Array) -> jax.Array:
    """Divides every row by its length."""
    # rsqrt of the clamped square keeps the gradient finite at a zero vector
    square_B1 = jnp.sum(jnp.square(emb_BD), axis=-1, keepdims=True)
    return emb_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))


def dual_params(question: Params, passage: Params, *, shared: bool) -> Params:
    """Returns the parameters of both towers; with `shared` one set, the question tower's."""
    if shared:
        return {"shared": question}
    return {"question": question, "passage": passage}


def tower(params: Params, side: Side) -> Params:
    """Returns the parameters of one tower, adapters merged into them; host arrays."""
    name = _name(params, side)
    return lora.merged(params[name], params[LORA][name]) if LORA in params else params[name]


def _name(params: Params, side: Side) -> str:
    return "shared" if "shared" in params else side


def encode(
    encoder: Encoder | EncoderPair,
    params: Params,
    side: Side,
    tokens: Tokens | Packed | Rows,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Turns texts into vectors with one of the towers.

    Args:
      encoder: the architecture of the towers.
      params: of both towers, from `dual_params`, and of adapters where there are some.
      side: which tower.
      tokens: a padded or packed batch, or bare rows, of which all places are returned.
      dropout_key: dropout on; None runs without.

    Returns:
      float32 [B, D].
    """
    encoder = encoder_of(encoder, side)
    if isinstance(tokens, Packed):
        places = encode(encoder, params, side, tokens.rows, dropout_key)
        return places[tokens.slot_B]
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    name = _name(params, side)
    adapters = params[LORA][name] if LORA in params else None
    with lora.beside(adapters, encoder.platform):
        variables = {"params": params[name]}
        return encoder.apply(variables, tokens, train=dropout_key is not None, rngs=rngs)
