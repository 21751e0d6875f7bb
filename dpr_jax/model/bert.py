"""BERT (Devlin et al., 2019, arXiv 1810.04805) in Flax linen, post-LayerNorm, layers unrolled; also
RoBERTa, XLM-RoBERTa, DistilBERT and MPNet, which differ from it in their embeddings and biases.

Shape letters: B rows, L tokens, D width, H heads, K width of a head, F width of the feed-forward
layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax.model import kernels
from dpr_jax.model.dropout import Dropout
from dpr_jax.model.layer_norm import LayerNorm
from dpr_jax.model.product import product_precision
from dpr_jax.model.relative import BUCKETS, bias, biased_attention


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


@dataclasses.dataclass(frozen=True)
class BertShape:
    """What config.json says of the architecture.

    Attributes:
      type_vocab_size: 0 for no token types.
      position_offset: rows of the position table before that of a text's first token.
      relative_bias: whether scores have a bias by the distance of two tokens.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    position_offset: int = 0
    relative_bias: bool = False

    @property
    def positions(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings - self.position_offset

    @property
    def feed_forward_products(self) -> int:
        """Products of width times intermediate_size in a layer."""
        return 2


class Wanted(NamedTuple):
    """The tokens of each row whose last states are asked for; the last layer then leaves out what
    only the others need.

    Attributes:
      pick_BSL: bool, a single True at the token that each of the S is; none at an empty place.
        None takes the first token of each row.
      mask_BSL: bool, which tokens each of the S sees.
    """

    pick_BSL: jax.Array | None
    mask_BSL: jax.Array

    def states(self, x_BLD: jax.Array) -> jax.Array:
        """Returns the states [B, S, D] of the wanted tokens."""
        if self.pick_BSL is None:
            return x_BLD[:, :1]
        # a product, not a gather: its gradient is the same sum in every run on every device
        return jnp.einsum(
            "bsl,bld->bsd",
            self.pick_BSL.astype(x_BLD.dtype),
            x_BLD,
            precision="highest",
            preferred_element_type=x_BLD.dtype,
        )


class Bert(nn.Module):
    """Token ids to the last layer's hidden states.

    Every token type is 0, also after the first [SEP], as in DPR.

    Attributes:
      shape: the architecture.
      dropout: rate for hidden states.
      dtype: compute precision of matrix products; weights are float32, LayerNorm and softmax are
        computed in float32.
      frozen: levels from below without a gradient, which is then not computed: 1 is the embeddings,
        1 + n the first n layers too.
      remat: keep only each layer's input for the backward pass, which computes the layer again.
      attention_dropout: rate for attention weights; None: as `dropout`.
      platform: cpu, gpu or tpu: that of the devices which it is mapped over.
    """

    shape: BertShape
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    frozen: int = 0
    remat: bool = False
    attention_dropout: float | None = None
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        ids_BL: jax.Array,
        mask_BLL: jax.Array,
        positions_BL: jax.Array,
        *,
        wanted: Wanted | None = None,
        train: bool,
    ) -> jax.Array:
        """Runs the tower.

        Args:
          ids_BL: int32 token ids.
          mask_BLL: bool, which tokens (last axis) each token sees; [B, 1, L] where all of a row see
            the same.
          positions_BL: int32 position of each token in its text; [1, L] where it is the same in
            every row.
          wanted: the tokens that are needed; None for all.
          train: dropout on; needs the rng "dropout".

        Returns:
          float array [B, L, D] of `dtype`, or [B, S, D] of the wanted tokens; rows at padding and
          at empty places are meaningless.
        """
        embeddings = Embeddings(
            self.shape, self.dropout, self.dtype, self.platform, name="embeddings"
        )
        x_BLD = embeddings(ids_BL, positions_BL, train=train)

        def run(layer: Layer, *inputs: jax.Array | Wanted | None) -> jax.Array:
            return layer(*inputs, train=train)

        run = nn.remat(run) if self.remat else run
        count = self.shape.num_hidden_layers
        biases = [None, None]  # of all tokens, and of the wanted ones
        if self.shape.relative_bias:
            init, name = nn.initializers.normal(0.02), "relative_attention_bias"
            heads = self.shape.num_attention_heads
            table_NH = nn.Embed(BUCKETS, heads, embedding_init=init, name=name).embedding
            biases = [bias(table_NH, positions_BL, positions_BL)] * 2
            if wanted is not None:
                at_BS1 = wanted.states(positions_BL[..., None].astype(jnp.float32))
                biases[1] = bias(table_NH, at_BS1[..., 0].astype(jnp.int32), positions_BL)
        for i in range(count):
            if i + 1 == self.frozen:
                x_BLD = jax.lax.stop_gradient(x_BLD)
            layer = Layer(
                self.shape,
                self.dropout,
                self.dtype,
                self.attention_dropout,
                self.platform,
                name=f"layer_{i}",
            )
            last = i + 1 == count
            x_BLD = run(layer, x_BLD, mask_BLL, wanted if last else None, biases[last])
        return x_BLD


class Embeddings(nn.Module):
    """Word + position + type 0 (where there are types), LayerNorm, dropout."""

    shape: BertShape
    dropout: float
    dtype: jnp.dtype
    platform: str = "cpu"

    @nn.compact
    def __call__(self, ids_BL: jax.Array, positions_BL: jax.Array, *, train: bool) -> jax.Array:
        shape, init = self.shape, nn.initializers.normal(0.02)
        embed = functools.partial(nn.Embed, features=shape.hidden_size)
        word = embed(shape.vocab_size, embedding_init=init, name="word_embeddings")
        position = embed(
            shape.max_position_embeddings,
            embedding_init=init,
            name="position_embeddings",
        )
        if shape.position_offset:
            positions_BL = _without_padding(ids_BL, positions_BL, shape.position_offset)
        x_BLD = word(ids_BL) + position(positions_BL)
        if shape.type_vocab_size:
            kind = embed(shape.type_vocab_size, embedding_init=init, name="token_type_embeddings")
            x_BLD += kind(jnp.zeros((1,), jnp.int32))
        x_BLD = _layer_norm(shape, self.dtype, "LayerNorm", self.platform)(x_BLD)
        return Dropout(self.dropout)(x_BLD, train=train)


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


class Layer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm after."""

    shape: BertShape
    dropout: float
    dtype: jnp.dtype
    attention_dropout: float | None = None
    platform: str = "cpu"

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
        shape = self.shape
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            dot_general=kernels.times_weights(self.platform),
        )
        dropout = Dropout(self.dropout)
        drop = functools.partial(dropout, train=train)

        def heads(x_BLD: jax.Array, name: str) -> jax.Array:
            # values only where no gradient is wanted
            to_scores = self.platform == "tpu" and not (train and name == "attention_value")
            if to_scores and x_BLD.shape[1] > 1:
                return ToScores(shape.num_attention_heads, self.dtype, name=name)(x_BLD)
            y_BLD = dense(shape.hidden_size, name=name)(x_BLD)
            return y_BLD.reshape(*y_BLD.shape[:2], shape.num_attention_heads, -1)

        k_BLHK = heads(x_BLD, "attention_key")
        v_BLHK = heads(x_BLD, "attention_value")
        if wanted is not None:  # from here on L is the number of wanted tokens
            mask_BLL = wanted.mask_BSL
            x_BLD = wanted.states(x_BLD)
        rate = self.dropout if self.attention_dropout is None else self.attention_dropout
        attend = functools.partial(kernels.attention, platform=self.platform)
        if bias_BHLL is not None:
            attend = functools.partial(biased_attention, bias_BHLM=bias_BHLL)
        y_BLHK = attend(
            heads(x_BLD, "attention_query"),
            k_BLHK,
            v_BLHK,
            mask_BLL,
            dropout_rate=rate,
            dropout_key=dropout.key(train=train, rate=rate),
        )
        y_BLD = dense(shape.hidden_size, name="attention_output")(y_BLHK.reshape(x_BLD.shape))
        x_BLD = _layer_norm(shape, self.dtype, "attention_LayerNorm", self.platform)(
            x_BLD + drop(y_BLD)
        )

        h_BLF = dense(shape.intermediate_size, name="intermediate")(x_BLD)
        h_BLF = ACTIVATIONS[shape.hidden_act](h_BLF)
        y_BLD = dense(shape.hidden_size, name="output")(h_BLF)
        return _layer_norm(shape, self.dtype, "output_LayerNorm", self.platform)(
            x_BLD + drop(y_BLD)
        )


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


def _layer_norm(
    shape: BertShape, dtype: jnp.dtype, name: str, platform: str = "cpu"
) -> nn.LayerNorm | LayerNorm:
    """Mean and variance are taken in float32 whatever `dtype` is."""
    if platform != "cpu":
        return LayerNorm(shape.layer_norm_eps, dtype, name=name)
    # the two-pass variance: the one-pass form loses digits at BERT's large means
    return nn.LayerNorm(
        epsilon=shape.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name
    )
