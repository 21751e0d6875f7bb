"""Vectors that are each to be told which of many candidates is their match."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dpr_jax.training import loss


class Contrast(NamedTuple):
    """B vectors, each to be told which of P candidates is its match.

    Attributes:
      emb_BD: the vectors.
      candidate_emb_PD: those of the candidates.
      label_B: position of each match.
      given_B: further arrays with an entry per vector.
      usable: (label_B, *given_B) of some of the vectors -> bool [B, P], their usable candidates.
    """

    emb_BD: jax.Array
    candidate_emb_PD: jax.Array
    label_B: jax.Array
    given_B: tuple[jax.Array, ...]
    usable: Callable[..., jax.Array]


class Judged(NamedTuple):
    """What the scores of a contrast say of each vector; see training/loss.py.

    Attributes:
      nll_B: negative log likelihood of its match.
      hit_B: whether the match scores highest.
      own_scores_BG: scores of its match and the candidates after it.
    """

    nll_B: jax.Array
    hit_B: jax.Array
    own_scores_BG: jax.Array | None


def judge(one: Contrast, temperature: float | jax.Array, own: int | None) -> Judged:
    """Scores the vectors of a contrast, in blocks where the matrix of all scores would be large.

    Args:
      one: the contrast.
      temperature: scores are divided by it.
      own: how many scores from the match on are wanted; None for none.
    """

    def of_rows(emb_BD: jax.Array, label_B: jax.Array, *given_B: jax.Array) -> Judged:
        usable_BP = one.usable(label_B, *given_B)
        scores_BP = loss.scores(emb_BD, one.candidate_emb_PD, temperature)
        nll_B = loss.nll(scores_BP, label_B, usable_BP)
        hit_B = loss.first_is_label(scores_BP, label_B, usable_BP)
        own_BG = None
        if own is not None:
            own_BG = label_B[:, None] + jnp.arange(own)
            own_BG = jnp.take_along_axis(scores_BP, own_BG, axis=1)
        return Judged(nll_B, hit_B, own_BG)

    rows = one.emb_BD, one.label_B, *one.given_B
    count = len(one.emb_BD)
    block = loss.block_rows(count, len(one.candidate_emb_PD))
    if block == count:
        return of_rows(*rows)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), rows)
    # scores are computed again in the backward pass: a block's are all that is kept
    again = jax.checkpoint(lambda block: of_rows(*block), prevent_cse=False)
    judged = lax.map(again, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), judged)
