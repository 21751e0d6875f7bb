"""The two towers: token ids to one vector a text (Karpukhin et al., 2020, arXiv 2004.04906, section 3.1)."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model.bert import Bert, BertShape

Side = Literal["question", "passage"]
Params = dict[str, Any]


class Tokens(NamedTuple):
    """A padded batch of texts.

    Attributes:
      ids_BL: int32 token ids; what stands after a row's length is never read.
      lengths_B: int32 number of tokens of each row, special tokens included.
    """

    ids_BL: jax.Array | np.ndarray
    lengths_B: jax.Array | np.ndarray


class Encoder(nn.Module):
    """One tower: BERT, pooling, optional scaling to unit length.

    Attributes:
      shape: BERT's architecture.
      pooling: "cls" is the last layer's [CLS] state, as in DPR (no pooler, no projection); "mean" the mean over real tokens.
      normalize: scale to unit length.
      dropout: rate, used when training.
      dtype: compute precision of BERT; pooling and the vectors are float32.
      frozen: levels of BERT from below without a gradient; see Bert.
      remat: compute each layer again in the backward pass instead of keeping its activations.
    """

    shape: BertShape
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    frozen: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Tokens, *, train: bool) -> jax.Array:
        """Returns float32 vectors [B, D]."""
        length = tokens.ids_BL.shape[1]
        mask_BL = jnp.arange(length)[None] < tokens.lengths_B[:, None]
        bert = Bert(
            self.shape,
            self.dropout,
            self.dtype,
            frozen=self.frozen,
            remat=self.remat,
            name="bert",
        )
        x_BLD = bert(tokens.ids_BL, mask_BL, train=train).astype(jnp.float32)
        if self.pooling == "cls":
            emb_BD = x_BLD[:, 0]
        else:
            total_BD = jnp.sum(jnp.where(mask_BL[..., None], x_BLD, 0.0), axis=1)
            emb_BD = total_BD / jnp.maximum(tokens.lengths_B, 1)[:, None]
        return unit_length(emb_BD) if self.normalize else emb_BD


def unit_length(emb_BD: jax.Array) -> jax.Array:
    """Every row divided by its length."""
    # rsqrt of the clamped square keeps the gradient finite at a zero vector
    square_B1 = jnp.sum(jnp.square(emb_BD), axis=-1, keepdims=True)
    return emb_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))


def dual_params(question: Params, passage: Params, *, shared: bool) -> Params:
    """The parameters of both towers; with `shared` there is one set, the question tower's."""
    if shared:
        return {"shared": question}
    return {"question": question, "passage": passage}


def tower(params: Params, side: Side) -> Params:
    """The parameters of one tower."""
    return params["shared"] if "shared" in params else params[side]


def encode(
    encoder: Encoder,
    params: Params,
    side: Side,
    tokens: Tokens,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Texts to vectors with one of the towers.

    Args:
      encoder: the architecture of both towers.
      params: of both towers, from `dual_params`.
      side: which tower.
      tokens: a padded batch.
      dropout_key: dropout on; None runs without.

    Returns:
      float32 [B, D].
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    variables = {"params": tower(params, side)}
    return encoder.apply(variables, tokens, train=dropout_key is not None, rngs=rngs)
