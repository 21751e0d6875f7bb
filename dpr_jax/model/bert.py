"""BERT (Devlin et al., 2019, arXiv 1810.04805) in Flax linen, post-LayerNorm, layers unrolled; also
RoBERTa, XLM-RoBERTa, DistilBERT and MPNet, which differ from it in their embeddings and biases.

Shape letters as in stack.py.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model import kernels
from dpr_jax.model.dropout import Dropout
from dpr_jax.model.product import product_precision
from dpr_jax.model.relative import BUCKETS, bias, biased_attention
from dpr_jax.model.stack import EncoderShape, Stack, TowerPart, Wanted


def _gelu(x: jax.Array) -> jax.Array:
    """GELU (Hendrycks and Gimpel, 2016, arXiv 1606.08415) by erf as in BERT, which costs less than
    jax.nn.gelu's erfc.
    """
    # in float32: 1 + erf loses the digits of the negative side
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(np.sqrt(0.5))))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertShape(EncoderShape):
    """The architecture of BERT and its like.

    Attributes:
      type_vocab_size: 0 for no token types.
      position_offset: rows of the position table before that of a text's first token.
      relative_bias: whether scores have a bias by the distance of two tokens.
    """

    type_vocab_size: int
    position_offset: int = 0
    relative_bias: bool = False

    @property
    def positions(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings - self.position_offset


class Bert(Stack):
    """BERT and its like. Every token type is 0, also after the first [SEP], as in DPR."""

    shape: BertShape

    @nn.nowrap
    def embedded(self, ids_BL: jax.Array, positions_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns the states that the first layer gets; see Stack."""
        return self.part(BertEmbeddings, "embeddings")(ids_BL, positions_BL, train=train)

    @nn.nowrap
    def layer(self, number: int) -> nn.Module:
        """Returns layer `number`."""
        return self.part(BertLayer, f"layer_{number}")

    @nn.nowrap
    def places(
        self, positions_BL: jax.Array, wanted: Wanted | None
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns the biases [B, H, L, L] of all tokens, and [B, H, S, L] of the wanted ones."""
        if not self.shape.relative_bias:
            return None, None
        init, name = nn.initializers.normal(0.02), "relative_attention_bias"
        heads = self.shape.num_attention_heads
        table_NH = nn.Embed(BUCKETS, heads, embedding_init=init, name=name).embedding
        of_all_BHLL = bias(table_NH, positions_BL, positions_BL)
        if wanted is None:
            return of_all_BHLL, of_all_BHLL
        at_BS1 = wanted.states(positions_BL[..., None].astype(jnp.float32))
        return of_all_BHLL, bias(table_NH, at_BS1[..., 0].astype(jnp.int32), positions_BL)


class BertEmbeddings(TowerPart):
    """Word + position + type 0 (where there are types), LayerNorm, dropout."""

    @nn.compact
    def __call__(self, ids_BL: jax.Array, positions_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns [B, L, D] of `dtype`."""
        shape = self.shape
        word = self.table(shape.vocab_size, "word_embeddings")
        position = self.table(shape.max_position_embeddings, "position_embeddings")
        if shape.position_offset:
            positions_BL = _without_padding(ids_BL, positions_BL, shape.position_offset)
        x_BLD = word(ids_BL) + position(positions_BL)
        if shape.type_vocab_size:
            kind = self.table(shape.type_vocab_size, "token_type_embeddings")
            x_BLD += kind(jnp.zeros((1,), jnp.int32))
        return Dropout(self.dropout)(self.norm("LayerNorm")(x_BLD), train=train)


def _without_padding(ids_BL: jax.Array, positions_BL: jax.Array, offset: int) -> jax.Array:
    """Returns the rows of RoBERTa's position table: a text may hold the padding token as a word,
    which is not counted and has the row before the first.
    """
    is_pad_BL = (ids_BL == offset - 1).astype(jnp.int32)
    before_BL = jnp.cumsum(is_pad_BL, axis=1) - is_pad_BL
    begins_BL = jnp.arange(ids_BL.shape[1])[None] - positions_BL
    begins_BL = jnp.broadcast_to(jnp.maximum(begins_BL, 0), ids_BL.shape)
    before_BL -= jnp.take_along_axis(before_BL, begins_BL, axis=1)
    return offset + jnp.where(is_pad_BL, -1, positions_BL - before_BL)


class BertLayer(TowerPart):
    """Self-attention and feed-forward, each with residual and LayerNorm after."""

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask_BLL: jax.Array,
        wanted: Wanted | None = None,
        bias_BHLL: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Returns the states after this layer: those of all tokens, or of the wanted ones."""
        shape = self.shape
        dropout = Dropout(self.dropout)
        drop = functools.partial(dropout, train=train)

        def heads(x_BLD: jax.Array, name: str) -> jax.Array:
            # values only where no gradient is wanted
            to_scores = self.platform == "tpu" and not (train and name == "attention_value")
            if to_scores and x_BLD.shape[1] > 1:
                return ToScores(shape.num_attention_heads, self.dtype, name=name)(x_BLD)
            y_BLD = self.product(shape.hidden_size, name)(x_BLD)
            return y_BLD.reshape(*y_BLD.shape[:2], shape.num_attention_heads, -1)

        k_BLHK = heads(x_BLD, "attention_key")
        v_BLHK = heads(x_BLD, "attention_value")
        if wanted is not None:  # from here on L is the number of wanted tokens
            mask_BLL = wanted.mask_BSL
            x_BLD = wanted.states(x_BLD)
        attend = functools.partial(kernels.attention, platform=self.platform)
        if bias_BHLL is not None:
            attend = functools.partial(biased_attention, bias_BHLM=bias_BHLL)
        y_BLHK = attend(
            heads(x_BLD, "attention_query"),
            k_BLHK,
            v_BLHK,
            mask_BLL,
            dropout_rate=self.attention_rate,
            dropout_key=dropout.key(train=train, rate=self.attention_rate),
        )
        y_BLD = self.product(shape.hidden_size, "attention_output")(y_BLHK.reshape(x_BLD.shape))
        x_BLD = self.norm("attention_LayerNorm")(x_BLD + drop(y_BLD))

        h_BLF = self.product(shape.intermediate_size, "intermediate")(x_BLD)
        h_BLF = ACTIVATIONS[shape.hidden_act](h_BLF)
        y_BLD = self.product(shape.hidden_size, "output")(h_BLF)
        return self.norm("output_LayerNorm")(x_BLD + drop(y_BLD))


class ToScores(nn.Module):
    """A Dense whose result is laid out with the tokens innermost, for the products of attention.

    Heads of 64 are narrower than a TPU's 128 lanes; else XLA copies its result there.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Returns [B, L, H, K] of `dtype`."""
        width = x_BLD.shape[-1]
        init = nn.initializers.normal(0.02)
        kernel_DF = self.param("kernel", init, (width, width)).astype(self.dtype)
        bias_F = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        y_BHLK = jnp.einsum(
            "bld,dhk->bhlk",
            x_BLD.astype(self.dtype),
            kernel_DF.reshape(width, self.heads, -1),
            precision=product_precision(self.dtype),
        )
        return (y_BHLK + bias_F.reshape(self.heads, 1, -1)).swapaxes(1, 2)
