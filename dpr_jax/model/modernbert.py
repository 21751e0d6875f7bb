"""ModernBERT (Warner et al., 2024, arXiv 2412.13663) in Flax linen: LayerNorm before each part,
rotary positions, gated feed-forward layers, and layers whose tokens see only those nearby.

Shape letters as in stack.py.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpr_jax.model import kernels
from dpr_jax.model.bert import ACTIVATIONS
from dpr_jax.model.dropout import Dropout
from dpr_jax.model.stack import EncoderShape, Stack, TowerPart, Wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBertShape(EncoderShape):
    """The architecture of ModernBERT.

    Attributes:
      is_local: of each layer, whether a token sees only those at most `window` tokens away.
      window: tokens to either side.
      global_theta: base of the rotary angles in the layers that see all tokens.
      local_theta: likewise in the others.
      attention_bias: whether the products of attention add a bias.
      mlp_bias: likewise those of feed-forward layers.
    """

    is_local: tuple[bool, ...]
    window: int
    global_theta: float
    local_theta: float
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    feed_forward_products: ClassVar[int] = 3


class ModernBert(Stack):
    """ModernBERT."""

    shape: ModernBertShape

    @nn.nowrap
    def embedded(self, ids_BL: jax.Array, positions_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns the states that the first layer gets; see Stack."""
        return self.part(ModernBertEmbeddings, "embeddings")(ids_BL, train=train)

    @nn.nowrap
    def layer(self, number: int) -> nn.Module:
        """Returns layer `number`."""
        return self.part(ModernBertLayer, f"layer_{number}", number=number)

    @nn.nowrap
    def places(self, positions_BL: jax.Array, wanted: Wanted | None) -> tuple[jax.Array, jax.Array]:
        """Returns the positions, for all layers."""
        return positions_BL, positions_BL

    @nn.nowrap
    def finished(self, x_BLD: jax.Array) -> jax.Array:
        """Returns the states, normalized."""
        return self.norm("final_norm")(x_BLD)


class ModernBertEmbeddings(TowerPart):
    """Words, LayerNorm, dropout."""

    @nn.compact
    def __call__(self, ids_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns [B, L, D] of `dtype`."""
        words = self.table(self.shape.vocab_size, "word_embeddings")
        return Dropout(self.dropout)(self.norm("LayerNorm")(words(ids_BL)), train=train)


class ModernBertLayer(TowerPart):
    """Self-attention and a gated feed-forward layer, each with LayerNorm before and a residual.

    Attributes:
      number: of the layer, from 0.
    """

    number: int = 0

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask_BLL: jax.Array,
        wanted: Wanted | None,
        positions_BL: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Returns the states after this layer: those of all tokens, or of the wanted ones."""
        shape, is_local = self.shape, self.shape.is_local[self.number]
        dropout = Dropout(self.dropout)
        drop = functools.partial(dropout, train=train)

        # the embeddings are normalized already
        h_BLD = self.norm("attention_norm")(x_BLD) if self.number else x_BLD.astype(self.dtype)
        qkv = self.product(3 * shape.hidden_size, "attention_qkv", bias=shape.attention_bias)
        split = (*h_BLD.shape[:2], 3, shape.num_attention_heads, -1)
        q_BLHK, k_BLHK, v_BLHK = jnp.moveaxis(qkv(h_BLD).reshape(split), 2, 0)
        theta = shape.local_theta if is_local else shape.global_theta
        q_BLHK, k_BLHK = (rotated(each, positions_BL, theta) for each in (q_BLHK, k_BLHK))
        if is_local:
            apart_BLL = jnp.abs(positions_BL[:, :, None] - positions_BL[:, None, :])
            near_BLL = apart_BLL <= shape.window
        if wanted is not None:  # from here on L is the number of wanted tokens
            heads = q_BLHK.shape[2:]
            q_BLHK = wanted.states(q_BLHK.reshape(x_BLD.shape)).reshape(len(x_BLD), -1, *heads)
            x_BLD, mask_BLL = wanted.states(x_BLD), wanted.mask_BSL
            if is_local:
                near_BLL = jnp.broadcast_to(near_BLL, (len(x_BLD), *near_BLL.shape[1:]))
                near_BLL = wanted.states(near_BLL.astype(jnp.float32)) > 0.5
        y_BLHK = kernels.attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            mask_BLL & near_BLL if is_local else mask_BLL,
            platform=self.platform,
            dropout_rate=self.attention_rate,
            dropout_key=dropout.key(train=train, rate=self.attention_rate),
        )
        out = self.product(shape.hidden_size, "attention_output", bias=shape.attention_bias)
        x_BLD = x_BLD + drop(out(y_BLHK.reshape(x_BLD.shape)))

        inner = self.product(2 * shape.intermediate_size, "intermediate", bias=shape.mlp_bias)
        h_BLF, gate_BLF = jnp.split(inner(self.norm("mlp_norm")(x_BLD)), 2, axis=-1)
        h_BLF = ACTIVATIONS[shape.hidden_act](h_BLF) * gate_BLF
        out = self.product(shape.hidden_size, "output", bias=shape.mlp_bias)
        return x_BLD + drop(out(h_BLF))


def rotated(x_BLHK: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Turns each pair of numbers of a head by an angle that grows with the position (Su et al.,
    2021, arXiv 2104.09864).

    Args:
      x_BLHK: queries or keys.
      positions_BL: int32 position of each token in its text.
      theta: base of the angles.
    """
    width = x_BLHK.shape[-1]
    rates_K = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles_BLK = positions_BL[..., None].astype(jnp.float32) * rates_K
    cos, sin = (f(angles_BLK)[:, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLHK.dtype)
