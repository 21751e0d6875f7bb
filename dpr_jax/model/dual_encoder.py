"""The two towers: token ids to one vector a text (Karpukhin et al., 2020, arXiv 2004.04906, section
3.1).
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model.bert import Bert, BertShape, Wanted

Side = Literal["question", "passage"]
Params = dict[str, Any]
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


class Encoder(nn.Module):
    """One tower: BERT, pooling, optional scaling to unit length.

    Attributes:
      shape: BERT's architecture.
      pooling: "cls" is the last layer's [CLS] state, as in DPR (no pooler, no projection); "mean"
        the mean over real tokens.
      normalize: scale to unit length.
      dropout: rate for hidden states, used when training.
      dtype: compute precision of BERT; pooling and the vectors are float32.
      frozen: levels of BERT from below without a gradient; see Bert.
      remat: compute each layer again in the backward pass instead of keeping its activations.
      attention_dropout: rate for attention weights; None: as `dropout`.
      platform: cpu, gpu or tpu, whose forms are computed: parallel.platform_of the devices that it
        is mapped over, which may be others than the process has.
    """

    shape: BertShape
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    frozen: int = 0
    remat: bool = False
    attention_dropout: float | None = None
    platform: str = "cpu"

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        return self.dropout > 0 or (self.attention_dropout or 0) > 0

    @nn.compact
    def __call__(self, tokens: Tokens | Rows, *, train: bool) -> jax.Array:
        """Returns float32 vectors [B, D], of packed rows those of all R * TEXTS_PER_ROW places;
        they mean nothing where there is no text.
        """
        bert = Bert(
            self.shape,
            self.dropout,
            self.dtype,
            frozen=self.frozen,
            remat=self.remat,
            attention_dropout=self.attention_dropout,
            platform=self.platform,
            name="bert",
        )
        if isinstance(tokens, Rows):
            ids_BL, text_BL, position_BL = tokens
            mask_BLL = text_BL[:, :, None] == text_BL[:, None, :]
            place_BSL = text_BL[:, None] == jnp.arange(TEXTS_PER_ROW)[None, :, None]
        else:
            ids_BL = tokens.ids_BL
            position_BL = jnp.arange(ids_BL.shape[1])[None]
            mask_BLL = place_BSL = (position_BL < tokens.lengths_B[:, None])[:, None]

        if self.pooling == "cls":
            pick_BSL = place_BSL & (position_BL[:, None] == 0)
            if self.platform != "cpu" and not isinstance(tokens, Rows):
                pick_BSL = None  # a slice: a product costs a TPU as much as a tenth of a layer
            wanted = Wanted(pick_BSL, place_BSL)
            emb_BSD = bert(ids_BL, mask_BLL, position_BL, wanted=wanted, train=train)
            emb_BSD = emb_BSD.astype(jnp.float32)
        else:
            x_BLD = bert(ids_BL, mask_BLL, position_BL, train=train)
            # a product, not a scatter: the same sum in every run on every device
            total_BSD = jnp.einsum(
                "bsl,bld->bsd",
                place_BSL.astype(jnp.float32),
                x_BLD.astype(jnp.float32),
                precision="highest",
            )
            count_BS1 = jnp.sum(place_BSL, axis=2, keepdims=True)
            emb_BSD = total_BSD / jnp.maximum(count_BS1, 1)
        emb_BD = emb_BSD.reshape(-1, emb_BSD.shape[-1])
        return unit_length(emb_BD) if self.normalize else emb_BD


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
    """Returns the parameters of one tower."""
    return params["shared"] if "shared" in params else params[side]


def encode(
    encoder: Encoder,
    params: Params,
    side: Side,
    tokens: Tokens | Packed | Rows,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Turns texts into vectors with one of the towers.

    Args:
      encoder: the architecture of both towers.
      params: of both towers, from `dual_params`.
      side: which tower.
      tokens: a padded or packed batch, or bare rows, of which all places are returned.
      dropout_key: dropout on; None runs without.

    Returns:
      float32 [B, D].
    """
    if isinstance(tokens, Packed):
        places = encode(encoder, params, side, tokens.rows, dropout_key)
        return places[tokens.slot_B]
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    variables = {"params": tower(params, side)}
    return encoder.apply(variables, tokens, train=dropout_key is not None, rngs=rngs)
