"""BERT (Devlin et al., 2019, arXiv 1810.04805) in Flax linen, post-LayerNorm, layers unrolled.

Module names follow Hugging Face's checkpoint names, so that model/hf.py needs no table. Shape
letters: B rows, L tokens, D width, H heads, K width of a head, F width of the feed-forward layer.
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
    """What config.json says of the architecture."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str


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
        x_BLD = Embeddings(self.shape, self.dropout, self.dtype, name="embeddings")(
            ids_BL, positions_BL, train=train
        )

        def run(layer: Layer, *inputs: jax.Array | Wanted | None) -> jax.Array:
            return layer(*inputs, train=train)

        run = nn.remat(run) if self.remat else run
        count = self.shape.num_hidden_layers
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
            x_BLD = run(layer, x_BLD, mask_BLL, wanted if i + 1 == count else None)
        return x_BLD


class Embeddings(nn.Module):
    """Word + position + type 0, LayerNorm, dropout."""

    shape: BertShape
    dropout: float
    dtype: jnp.dtype

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
        kind = embed(shape.type_vocab_size, embedding_init=init, name="token_type_embeddings")
        x_BLD = word(ids_BL) + position(positions_BL)
        x_BLD += kind(jnp.zeros((), jnp.int32))
        x_BLD = _layer_norm(shape, self.dtype, "LayerNorm")(x_BLD)
        return Dropout(self.dropout)(x_BLD, train=train)


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
            y_BLD = dense(shape.hidden_size, name=name)(x_BLD)
            return y_BLD.reshape(*y_BLD.shape[:2], shape.num_attention_heads, -1)

        k_BLHK = heads(x_BLD, "attention_key")
        v_BLHK = heads(x_BLD, "attention_value")
        if wanted is not None:  # from here on L is the number of wanted tokens
            mask_BLL = wanted.mask_BSL
            x_BLD = wanted.states(x_BLD)
        rate = self.dropout if self.attention_dropout is None else self.attention_dropout
        y_BLHK = kernels.attention(
            heads(x_BLD, "attention_query"),
            k_BLHK,
            v_BLHK,
            mask_BLL,
            platform=self.platform,
            dropout_rate=rate,
            dropout_key=dropout.key(train=train, rate=rate),
        )
        y_BLD = dense(shape.hidden_size, name="attention_output")(y_BLHK.reshape(x_BLD.shape))
        x_BLD = _layer_norm(shape, self.dtype, "attention_LayerNorm")(x_BLD + drop(y_BLD))

        h_BLF = dense(shape.intermediate_size, name="intermediate")(x_BLD)
        h_BLF = ACTIVATIONS[shape.hidden_act](h_BLF)
        y_BLD = dense(shape.hidden_size, name="output")(h_BLF)
        return _layer_norm(shape, self.dtype, "output_LayerNorm")(x_BLD + drop(y_BLD))


def _layer_norm(shape: BertShape, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Flax takes the mean and variance in float32 whatever `dtype` is."""
    # the two-pass variance: the one-pass form loses digits at BERT's large means
    return nn.LayerNorm(
        epsilon=shape.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name
    )
