"""The loss of DPR (Karpukhin et al., 2020, section 3.2), as pure functions of arrays.

Written for questions that look for their passage; the same functions serve passages that look for
their question.
"""

import jax
import jax.numpy as jnp

SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32: more are computed in blocks of questions


def scores(
    question_emb_BD: jax.Array,
    passage_emb_PD: jax.Array,
    temperature: float | jax.Array,
) -> jax.Array:
    """Returns inner products over temperature, computed in float32 whatever the inputs are.

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


def block_rows(questions: int, passages: int) -> int:
    """Returns how many questions are scored at once: all, or the most that divide them and keep to
    SCORES_AT_ONCE.
    """
    most = max(1, SCORES_AT_ONCE // passages)
    return next(size for size in range(min(questions, most), 0, -1) if questions % size == 0)


def same_text(known_texts_BM: jax.Array, texts_P: jax.Array) -> jax.Array:
    """Returns which passages have a text that is known to answer a question.

    Args:
      known_texts_BM: int32 keys of the texts of all positives of each question, filled up with a
        key that no passage has.
      texts_P: int32 key of each passage's text; equal texts have equal keys.

    Returns:
      bool [B, P].
    """
    return jnp.any(known_texts_BM[:, :, None] == texts_P[None, None], axis=1)


def usable(
    real_P: jax.Array, label_B: jax.Array, excluded_BP: jax.Array | None = None
) -> jax.Array:
    """Returns which candidates stand in a row's softmax: its label always, others where they are
    real and not excluded.

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
    """Returns the negative log likelihood of each row's match among all usable candidates.

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


def first_is_label(scores_BP: jax.Array, label_B: jax.Array, usable_BP: jax.Array) -> jax.Array:
    """Returns whether the match scores highest of all usable candidates: bool [B]."""
    masked_BP = jnp.where(usable_BP, scores_BP, -jnp.inf)
    return jnp.argmax(masked_BP, axis=1) == label_B


def teaches(scored_BG: jax.Array) -> jax.Array:
    """Returns which questions have a teacher's score of their positive and of one more passage:
    bool [B].

    Args:
      scored_BG: bool, which of each question's own passages a teacher scored, the positive first.
    """
    return scored_BG[:, 0] & jnp.any(scored_BG[:, 1:], axis=1)


def kl_from_teacher(scores_BG: jax.Array, teacher_BG: jax.Array, scored_BG: jax.Array) -> jax.Array:
    """Returns the Kullback-Leibler divergence of the student's distribution over a question's own
    passages from the teacher's.

    sum over g of t(g) (log t(g) - log s(g)),  t = softmax(teacher's scores),  s = softmax(student's
    scores)

    Distillation by matching distributions is Hinton et al.'s (2015, arXiv 1503.02531); over a
    question's candidates, from a cross-encoder, it is RocketQAv2's (Ren et al., 2021, arXiv
    2110.07367), from a reader Izacard and Grave's (2020, arXiv 2012.04584).

    Args:
      scores_BG: float32, the student's, the positive first.
      teacher_BG: float32, the teacher's over its temperature; read where scored.
      scored_BG: bool; other passages are in neither distribution.

    Returns:
      float32 [B], 0 or more; 0 where nothing is taught.
    """
    taught_B = teaches(scored_BG)
    # rows that teach nothing take all passages: a softmax over none has no gradient, not even one
    # to be thrown away
    stands_BG = scored_BG | ~taught_B[:, None]
    teacher_BG = jnp.where(scored_BG, teacher_BG, 0.0)
    log_s_BG, log_t_BG = (
        jax.nn.log_softmax(jnp.where(stands_BG, one, -jnp.inf), axis=1)
        for one in (scores_BG, teacher_BG)
    )
    gap_BG = jnp.where(stands_BG, log_t_BG - log_s_BG, 0.0)
    kl_B = jnp.sum(jnp.exp(log_t_BG) * gap_BG, axis=1)
    return jnp.where(taught_B, kl_B, 0.0)


def margin_mse(scores_BG: jax.Array, teacher_BG: jax.Array, scored_BG: jax.Array) -> jax.Array:
    """Returns the mean squared error of the student's margins of the positive over each negative
    (Hofstätter et al., 2020, arXiv 2010.02666).

    mean over scored g of ((s(0) - s(g)) - (t(0) - t(g)))^2

    Args:
      scores_BG: float32, the student's, the positive first.
      teacher_BG: float32, the teacher's over its temperature; read where scored.
      scored_BG: bool; other passages have no part in it.

    Returns:
      float32 [B]; 0 where nothing is taught.
    """
    counts_BN = scored_BG[:, 1:] & scored_BG[:, :1]
    teacher_BG = jnp.where(scored_BG, teacher_BG, 0.0)
    error_BG = scores_BG - teacher_BG
    square_BN = jnp.where(counts_BN, (error_BG[:, :1] - error_BG[:, 1:]) ** 2, 0.0)
    return jnp.sum(square_BN, axis=1) / jnp.maximum(jnp.sum(counts_BN, axis=1), 1)


def mean(terms: list[jax.Array]) -> jax.Array:
    """Returns the mean of one or more arrays of one shape; of a single one, itself."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total / len(terms) if len(terms) > 1 else total
