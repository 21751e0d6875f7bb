"""The loss of DPR (Karpukhin et al., 2020, section 3.2), as pure functions of arrays.

Written for questions that look for their passage; the same functions serve passages that look for their question.
"""

import jax
import jax.numpy as jnp


def scores(
    question_emb_BD: jax.Array,
    passage_emb_PD: jax.Array,
    temperature: float | jax.Array,
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


def same_text(known_texts_BM: jax.Array, texts_P: jax.Array) -> jax.Array:
    """Which passages have a text that is known to answer a question.

    Args:
      known_texts_BM: int32 keys of the texts of all positives of each question, filled up with a key that no passage has.
      texts_P: int32 key of each passage's text; equal texts have equal keys.

    Returns:
      bool [B, P].
    """
    return jnp.any(known_texts_BM[:, :, None] == texts_P[None, None], axis=1)


def usable(
    real_P: jax.Array, label_B: jax.Array, excluded_BP: jax.Array | None = None
) -> jax.Array:
    """Which candidates stand in a row's softmax: its label always, others where they are real and not excluded.

    Args:
      real_P: bool, false for a dummy.
      label_B: int32 position of each row's match.
      excluded_BP: bool, candidates that are no negatives of a row.

    Returns:
      bool [B, P].
    """
    own_BP = jnp.arange(real_P.shape[0])[None] == label_B[:, None]
    stands_BP = real_P[None] if excluded_BP is None else real_P[None] & ~excluded_BP
    return stands_BP | own_BP


def nll(scores_BP: jax.Array, label_B: jax.Array, usable_BP: jax.Array) -> jax.Array:
    """Negative log likelihood of each row's match among all usable candidates.

    -log( exp(s[i, label_i]) / sum over usable j of exp(s[i, j]) )

    Args:
      scores_BP: float32 scores.
      label_B: int32 position of each row's match.
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
    """Whether the match scores highest of all usable candidates: bool [B]."""
    masked_BP = jnp.where(usable_BP, scores_BP, -jnp.inf)
    return jnp.argmax(masked_BP, axis=1) == label_B


def mean(terms: list[jax.Array]) -> jax.Array:
    """The mean of one or more arrays of one shape; of a single one, itself."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total / len(terms) if len(terms) > 1 else total
