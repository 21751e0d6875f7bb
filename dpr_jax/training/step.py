"""One update, written for one device: collectives over one named axis make it exact for all.

With W devices, each scores its own questions against the passages of all (all_gather with gradient), takes the mean over its own
questions, and the gradients are averaged over devices. That is the gradient of the mean over the global batch, to rounding:
`tests/test_step.py` holds it against one device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from dpr_jax.model import dual_encoder
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens
from dpr_jax.training import loss


class Batch(NamedTuple):
    """One device's share of the global batch: B questions with G passages each, P = B * G.

    Attributes:
      question: B texts.
      passages: P texts; passages[i * G] is question i's positive, the following G - 1 its hard negatives.
      passage_rows_P: int32 corpus rows; negative for a dummy.
      positive_rows_BM: int32 corpus rows of all positives of each question, filled up with -2.
      weight_B: float32, 1 for a question, 0 for one that only fills the batch.
    """

    question: Tokens
    passages: Tokens
    passage_rows_P: jax.Array | np.ndarray
    positive_rows_BM: jax.Array | np.ndarray
    weight_B: jax.Array | np.ndarray


class TrainState(NamedTuple):
    """All that an update changes.

    Attributes:
      step: int32, updates done.
      params: float32 weights of both towers.
      opt_state: AdamW's moments.
    """

    step: jax.Array | np.ndarray
    params: Params
    opt_state: Any


class StepSettings(NamedTuple):
    """What an update needs besides state and batch.

    Attributes:
      encoder: architecture, dropout and precision of the towers.
      optimizer: from training/optimizer.py.
      temperature: scores are divided by it.
      mask_duplicates: see loss.usable_passages.
      seed: of dropout; the key of step n on device d is fold_in(fold_in(seed, n), d).
    """

    encoder: Encoder
    optimizer: optax.GradientTransformation
    temperature: float
    mask_duplicates: bool
    seed: int


def batch_loss(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This device's share of the global mean loss, scaled so that the mean over devices is the whole.

    Returns:
      float32 scalar loss, and {"loss", "accuracy"} as sums that pmean turns into means over the global batch.
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    question_emb_BD = dual_encoder.encode(
        settings.encoder, params, "question", batch.question, keys[0]
    )
    passage_emb_PD = dual_encoder.encode(
        settings.encoder, params, "passage", batch.passages, keys[1]
    )
    # with gradient: what other devices' questions say of this device's passages comes back here
    all_emb_PD = lax.all_gather(passage_emb_PD, axis, tiled=True)
    all_rows_P = lax.all_gather(batch.passage_rows_P, axis, tiled=True)

    questions = question_emb_BD.shape[0]
    local = batch.passage_rows_P.shape[0]
    first = lax.axis_index(axis) * local
    label_B = first + jnp.arange(questions) * (local // questions)
    scores_BP = loss.scores(question_emb_BD, all_emb_PD, settings.temperature)
    usable_BP = loss.usable_passages(
        all_rows_P,
        batch.positive_rows_BM,
        label_B,
        mask_duplicates=settings.mask_duplicates,
    )
    nll_B = loss.nll(scores_BP, label_B, usable_BP)
    hit_B = loss.first_is_label(scores_BP, label_B, usable_BP)
    share_B = batch.weight_B / lax.pmean(jnp.sum(batch.weight_B), axis)
    total = jnp.sum(nll_B * share_B)
    return total, {"loss": total, "accuracy": jnp.sum(hit_B * share_B)}


def global_gradient(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient and metrics of the mean loss over the global batch, the same on every device.

    One pmean over the whole tree: XLA makes one all-reduce of it, not one a leaf (tests/test_step.py counts them).
    """
    grad_of = jax.grad(batch_loss, has_aux=True)
    grads, sums = grad_of(params, batch, settings, dropout_key, axis)
    return lax.pmean((grads, sums), axis)


def train_step(
    state: TrainState, batch: Batch, *, settings: StepSettings, axis: str
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: the same on every device.
      batch: this device's share.
      settings: static.
      axis: name of the mapped axis.

    Returns:
      The new state and {"loss", "accuracy", "grad_norm"} (before clipping), the same on every device.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    key = jax.random.fold_in(key, lax.axis_index(axis))
    dropout_key = key if settings.encoder.dropout > 0 else None
    grads, metrics = global_gradient(state.params, batch, settings, dropout_key, axis)
    updates, opt_state = settings.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, opt_state), metrics
