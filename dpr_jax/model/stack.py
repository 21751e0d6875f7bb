"""The part that towers of all families share: their sizes, and the way through their layers.

Shape letters: B rows, L tokens, D width, H heads, K width of a head, F width of the feed-forward
layer, S wanted tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpr_jax.model import kernels
from dpr_jax.model.layer_norm import LayerNorm

PASSED_ON = ("shape", "dropout", "dtype", "attention_dropout", "platform")  # to parts of a tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The architecture in config.json, by the names there; a family adds its own.

    Attributes:
      norm_bias: whether a LayerNorm adds a bias.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str
    norm_bias: bool = True

    feed_forward_products: ClassVar[int] = 2  # of width times intermediate_size in a layer

    @property
    def positions(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings


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


class TowerPart(nn.Module):
    """A tower or a part of one, with the settings that hold for all of it.

    Attributes:
      shape: the architecture.
      dropout: rate for hidden states, used when training.
      dtype: compute precision of matrix products; weights are float32, LayerNorm and softmax are
        computed in float32.
      attention_dropout: rate for attention weights; None: as `dropout`.
      platform: cpu, gpu or tpu, whose forms are computed: parallel.platform_of the devices that it
        is mapped over, which may be others than the process has.
    """

    shape: EncoderShape
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    attention_dropout: float | None = None
    platform: str = "cpu"

    @property
    def attention_rate(self) -> float:
        """The rate for attention weights."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @nn.nowrap
    def part(self, kind: Callable[..., nn.Module], name: str, **more: Any) -> nn.Module:
        """Returns a part with the settings of this one."""
        settings = {field: getattr(self, field) for field in PASSED_ON}
        return kind(**settings, **more, name=name)

    @nn.nowrap
    def table(self, rows: int, name: str) -> nn.Embed:
        """Returns an embedding table of the hidden states' width."""
        init = nn.initializers.normal(0.02)
        return nn.Embed(rows, self.shape.hidden_size, embedding_init=init, name=name)

    @nn.nowrap
    def product(self, width: int, name: str, *, bias: bool = True) -> nn.Dense:
        """Returns a product with a weight matrix, in the form of the platform."""
        return nn.Dense(
            width,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            dot_general=kernels.dense_dot_general(self.platform),
            name=name,
        )

    @nn.nowrap
    def norm(self, name: str) -> nn.Module:
        """Returns a LayerNorm; mean and variance are taken in float32 whatever `dtype` is."""
        epsilon, has_bias = self.shape.layer_norm_eps, self.shape.norm_bias
        if self.platform != "cpu" and has_bias:
            return LayerNorm(epsilon, self.dtype, name=name)
        # the two-pass variance: the one-pass form loses digits at BERT's large means
        return nn.LayerNorm(
            epsilon=epsilon,
            dtype=self.dtype,
            use_bias=has_bias,
            use_fast_variance=False,
            name=name,
        )


class Stack(TowerPart):
    """Token ids to the last layer's hidden states; a family says what its parts are.

    Attributes:
      frozen: levels from below without a gradient, which is then not computed: 1 is the embeddings,
        1 + n the first n layers too.
      remat: keep only each layer's input for the backward pass, which computes the layer again.
    """

    frozen: int = 0
    remat: bool = False

    def embedded(self, ids_BL: jax.Array, positions_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns the states [B, L, D] that the first layer gets."""
        raise NotImplementedError

    def layer(self, number: int) -> nn.Module:
        """Returns layer `number`, called with states, mask, wanted tokens and places."""
        raise NotImplementedError

    def places(self, positions_BL: jax.Array, wanted: Wanted | None) -> tuple[Any, Any]:
        """Returns what layers are told of the tokens' positions: all but the last, and the last."""
        raise NotImplementedError

    def finished(self, x_BLD: jax.Array) -> jax.Array:
        """Returns the states after all layers."""
        return x_BLD

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
        x_BLD = self.embedded(ids_BL, positions_BL, train=train)

        def run(layer: nn.Module, *inputs: Any) -> jax.Array:
            return layer(*inputs, train=train)

        run = nn.remat(run) if self.remat else run
        places, count = self.places(positions_BL, wanted), self.shape.num_hidden_layers
        for i in range(count):
            if i + 1 == self.frozen:
                x_BLD = jax.lax.stop_gradient(x_BLD)
            last = i + 1 == count
            layer = self.layer(i)
            x_BLD = run(layer, x_BLD, mask_BLL, wanted if last else None, places[last])
        return self.finished(x_BLD)
