"""ModernBERT (Warner et al., 2024, arXiv 2412.13663) in Flax linen: LayerNorm before each part,
rotary positions, gated feed-forward layers, and layers whose tokens see only those nearby.

Shape letters as in bert.py.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpr_jax.model import kernels
from dpr_jax.model.bert import ACTIVATIONS, Wanted
from dpr_jax.model.dropout import Dropout


@dataclasses.dataclass(frozen=True)
class ModernBertShape:
    """What config.json says of the architecture.

    Attributes:
      is_local: of each layer, whether a token sees only those at most `window` tokens away.
      global_theta: base of the rotary angles in the layers that see all tokens.
      local_theta: likewise in the others.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str
    is_local: tuple[bool, ...]
    window: int
    global_theta: float
    local_theta: float
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def positions(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings

    @property
    def feed_forward_products(self) -> int:
        """Products of width times intermediate_size in a layer."""
        return 3


class ModernBert(nn.Module):
    """Token ids to the last layer's hidden states; attributes and arguments are those of Bert."""

    shape: ModernBertShape
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
        """Runs the tower; see Bert."""
        shape = self.shape
        x_BLD = Embeddings(shape, self.dropout, self.dtype, name="embeddings")(ids_BL, train=train)

        def run(layer: Layer, *inputs: jax.Array | Wanted | None) -> jax.Array:
            return layer(*inputs, train=train)

        run = nn.remat(run) if self.remat else run
        for i in range(shape.num_hidden_layers):
            if i + 1 == self.frozen:
                x_BLD = jax.lax.stop_gradient(x_BLD)
            layer = Layer(
                shape,
                i,
                self.dropout,
                self.dtype,
                self.attention_dropout,
                self.platform,
                name=f"layer_{i}",
            )
            last = i + 1 == shape.num_hidden_layers
            x_BLD = run(layer, x_BLD, mask_BLL, positions_BL, wanted if last else None)
        return _layer_norm(shape, self.dtype, "final_norm")(x_BLD)


class Embeddings(nn.Module):
    """Words, LayerNorm, dropout."""

    shape: ModernBertShape
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids_BL: jax.Array, *, train: bool) -> jax.Array:
        init, shape = nn.initializers.normal(0.02), self.shape
        words = nn.Embed(
            shape.vocab_size, shape.hidden_size, embedding_init=init, name="word_embeddings"
        )
        x_BLD = _layer_norm(shape, self.dtype, "LayerNorm")(words(ids_BL))
        return Dropout(self.dropout)(x_BLD, train=train)


class Layer(nn.Module):
    """Self-attention and a gated feed-forward layer, each with LayerNorm before and a residual."""

    shape: ModernBertShape
    number: int
    dropout: float
    dtype: jnp.dtype
    attention_dropout: float | None = None
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask_BLL: jax.Array,
        positions_BL: jax.Array,
        wanted: Wanted | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        shape, is_local = self.shape, self.shape.is_local[self.number]
        init = nn.initializers.normal(0.02)
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=init,
            dot_general=kernels.times_weights(self.platform),
        )
        dropout = Dropout(self.dropout)
        drop = functools.partial(dropout, train=train)
        norm = functools.partial(_layer_norm, shape, self.dtype)

        # the embeddings are normalized already
        h_BLD = norm("attention_norm")(x_BLD) if self.number else x_BLD.astype(self.dtype)
        qkv = dense(3 * shape.hidden_size, use_bias=shape.attention_bias, name="attention_qkv")
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
        rate = self.dropout if self.attention_dropout is None else self.attention_dropout
        y_BLHK = kernels.attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            mask_BLL & near_BLL if is_local else mask_BLL,
            platform=self.platform,
            dropout_rate=rate,
            dropout_key=dropout.key(train=train, rate=rate),
        )
        out = dense(shape.hidden_size, use_bias=shape.attention_bias, name="attention_output")
        x_BLD = x_BLD + drop(out(y_BLHK.reshape(x_BLD.shape)))

        inner = dense(2 * shape.intermediate_size, use_bias=shape.mlp_bias, name="intermediate")
        h_BLF, gate_BLF = jnp.split(inner(norm("mlp_norm")(x_BLD)), 2, axis=-1)
        h_BLF = ACTIVATIONS[shape.hidden_act](h_BLF) * gate_BLF
        out = dense(shape.hidden_size, use_bias=shape.mlp_bias, name="output")
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


def _layer_norm(shape: ModernBertShape, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=shape.layer_norm_eps,
        dtype=dtype,
        use_bias=shape.norm_bias,
        use_fast_variance=False,
        name=name,
    )
