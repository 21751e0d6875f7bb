"""The loss of DPR (Karpukhin et al., 2020, section 3.2), as pure functions of arrays."""

import jax
import jax.numpy as jnp


def scores(
    question_emb_BD: jax.Array, passage_emb_PD: jax.Array, temperature: float
) -> jax.Array:
    """Inner products over temperature, computed in float32 whatever the inputs are.

    Args:
      question_emb_BD: question vectors.
      passage_emb_PD: passage vectors.
      temperature: 1 in the paper, where scores are in the tens; about 0.05 for unit vectors.

    Returns:
      float32 [B, P].
    """
    question_emb_BD = question_emb_BD.astype(jnp.float32)
    passage_emb_PD = passage_emb_PD.astype(jnp.float32)
    # "highest": TPUs and GPUs multiply float32 in fewer bits unless told otherwise
    product_BP = jnp.matmul(question_emb_BD, passage_emb_PD.T, precision="highest")
    return product_BP / temperature


def usable_passages(
    passage_rows_P: jax.Array,
    positive_rows_BM: jax.Array,
    label_B: jax.Array,
    *,
    mask_duplicates: bool,
) -> jax.Array:
    """Which passages stand in a question's softmax.

    Args:
      passage_rows_P: int32 corpus row of each passage; negative for a dummy, which no question sees.
      positive_rows_BM: int32 corpus rows of all positives of each question, filled up with negative numbers.
      label_B: int32 position in P of each question's own positive, which always stands.
      mask_duplicates: leave out other questions' passages that are a positive of this question too.

    Returns:
      bool [B, P].
    """
    usable_BP = jnp.broadcast_to(
        passage_rows_P[None] >= 0, (label_B.shape[0], passage_rows_P.shape[0])
    )
    if mask_duplicates:
        known_BMP = positive_rows_BM[:, :, None] == passage_rows_P[None, None]
        usable_BP &= ~jnp.any(known_BMP, axis=1)
    own_BP = jnp.arange(passage_rows_P.shape[0])[None] == label_B[:, None]
    return usable_BP | own_BP


def nll(scores_BP: jax.Array, label_B: jax.Array, usable_BP: jax.Array) -> jax.Array:
    """Negative log likelihood of the positive among all usable passages.

    -log( exp(s[i, label_i]) / sum over usable j of exp(s[i, j]) )

    Args:
      scores_BP: float32 scores.
      label_B: int32 position of each question's positive.
      usable_BP: bool; the label must be usable.

    Returns:
      float32 [B].
    """
    masked_BP = jnp.where(usable_BP, scores_BP, -jnp.inf)
    positive_B = jnp.take_along_axis(scores_BP, label_B[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(masked_BP, axis=1) - positive_B


def first_is_label(
    scores_BP: jax.Array, label_B: jax.Array, usable_BP: jax.Array
) -> jax.Array:
    """Whether the positive scores highest of all usable passages: bool [B]."""
    masked_BP = jnp.where(usable_BP, scores_BP, -jnp.inf)
    return jnp.argmax(masked_BP, axis=1) == label_B
