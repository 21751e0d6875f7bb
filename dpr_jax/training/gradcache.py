"""GradCache (Gao et al., 2021, arXiv 2101.06983): a batch of any size in the memory of one chunk.

The paper's four steps are: encode all chunks without keeping activations; compute the loss and its
gradient with respect to the vectors; encode each chunk again, this time with activations; push the
cached gradients of its vectors back through it, summing the gradients of the weights. In JAX that
is what the gradient of a `lax.map` over a rematerialized function does, so it is written as one:
the loss around it does not know of chunks, its collectives stay outside of them, and both passes of
a chunk get the same dropout since its key is an input.
"""

import functools
import math

import jax
from jax import lax

from dpr_jax.model import dual_encoder
from dpr_jax.model.dual_encoder import Encoder, EncoderPair, Packed, Params, Rows, Side, Tokens


def encode(
    encoder: Encoder | EncoderPair,
    params: Params,
    side: Side,
    tokens: Tokens | Packed | Rows,
    dropout_key: jax.Array | None,
    *,
    chunk_size: int,
) -> jax.Array:
    """Encodes as `dual_encoder.encode`; its gradient keeps the activations of one chunk alone.

    Args:
      encoder: the architecture of both towers.
      params: of both towers.
      side: which tower.
      tokens: a padded batch of B texts, or a packed one, whose rows then count as texts.
      dropout_key: chunk i drops by the i-th of the keys split from it; None runs without dropout.
      chunk_size: most texts encoded at once; where it does not divide B, their greatest common
        divisor.

    Returns:
      float32 [B, D].
    """
    if isinstance(tokens, Packed):
        places = encode(encoder, params, side, tokens.rows, dropout_key, chunk_size=chunk_size)
        return places[tokens.slot_B]
    rows = len(jax.tree.leaves(tokens)[0])
    chunk_size = math.gcd(chunk_size, rows)
    chunks = rows // chunk_size
    keys = None if dropout_key is None else jax.random.split(dropout_key, chunks)
    split = jax.tree.map(lambda leaf: leaf.reshape(chunks, chunk_size, *leaf.shape[1:]), tokens)

    # a loop's body is compiled once for both passes: nothing could be merged between them
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(chunk: tuple[Tokens | Rows, jax.Array | None]) -> jax.Array:
        return dual_encoder.encode(encoder, params, side, *chunk)

    emb_KBD = lax.map(one_chunk, (split, keys))
    return emb_KBD.reshape(-1, emb_KBD.shape[-1])
