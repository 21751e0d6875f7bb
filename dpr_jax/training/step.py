"""One update, written for one device: collectives over one named axis make it exact for all.

With W devices, each scores its own questions against the passages of all (all_gather with
gradient) and takes the mean over its own questions. The gradients are then averaged over devices.
That is the gradient of the mean over the global batch, to rounding: `tests/test_step.py` holds it
against one device. Options of the loss are decided while tracing: one that is off leaves no
instruction.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from dpr_jax.config import TrainConfig
from dpr_jax.model import dual_encoder, kernels, lora
from dpr_jax.model.dual_encoder import Encoder, EncoderPair, Packed, Params, Tokens
from dpr_jax.training import contrast, gradcache, loss, shards
from dpr_jax.training.contrast import Contrast

LOG_TEMPERATURE = "log_temperature"  # beside the towers in the params, where learned


class Batch(NamedTuple):
    """One device's share of the global batch: B questions with G passages each, P = B * G.

    Attributes:
      question: B texts.
      passages: P texts; passages[i * G] is question i's positive, the following G - 1 its hard
        negatives.
      passage_texts_P: int32 key of each passage's text, equal for equal texts; negative for a
        dummy.
      positive_texts_BM: int32 keys of the texts of all positives of each question, filled up with
        -2.
      weight_B: float32, 1 for a question, 0 for one that only fills the batch.
      passage_columns_P: int32 column of each passage in `holds_answer_BP`; None with it.
      holds_answer_BP: bool, which passages of the global batch contain an answer to each question;
        such negatives are left out. None leaves none out.
      teacher_scores_BG: float32, a teacher's scores of each question's own passages, NaN if it gave
        none; None without distillation.
    """

    question: Tokens | Packed
    passages: Tokens | Packed
    passage_texts_P: jax.Array | np.ndarray
    positive_texts_BM: jax.Array | np.ndarray
    weight_B: jax.Array | np.ndarray
    passage_columns_P: jax.Array | np.ndarray | None = None
    holds_answer_BP: jax.Array | np.ndarray | None = None
    teacher_scores_BG: jax.Array | np.ndarray | None = None


class TrainState(NamedTuple):
    """The state that an update changes.

    Attributes:
      step: int32, updates done.
      params: float32 weights of both towers, their adapters if any (model/lora.py), and the
        logarithm of the temperature if it is learned.
      opt_state: AdamW's moments of the trained weights; with adapters, of these alone.
    """

    step: jax.Array | np.ndarray
    params: Params
    opt_state: Any


class StepSettings(NamedTuple):
    """The settings of an update, which are static.

    Attributes:
      encoder: architecture, dropout and precision of the towers.
      optimizer: from training/optimizer.py.
      temperature: scores are divided by it, unless it is learned.
      mask_duplicates: leaves out negatives with the text of one of the question's positives.
      seed: of dropout; the key of step n on device d is fold_in(fold_in(seed, n), d).
      symmetric: half of the loss is that of positives against all questions.
      matryoshka_widths: the loss is the mean over vectors cut to these widths, and whole (Kusupati
        et al., 2022, arXiv 2205.13147).
      chunk_size: texts encoded at once on a device (training/gradcache.py); None encodes all.
      gather: sets each question against the passages of all devices, not of its own device alone.
      distillation: the distance to a teacher's scores that is part of the loss.
      distillation_weight: its share of the loss, from 0 to 1.
      whole: shapes of the params where each device keeps a part of them and of the moments
        (training/shards.py); None keeps all on every device.
    """

    encoder: Encoder | EncoderPair
    optimizer: optax.GradientTransformation
    temperature: float
    mask_duplicates: bool
    seed: int
    symmetric: bool = False
    matryoshka_widths: tuple[int, ...] = ()
    chunk_size: int | None = None
    gather: bool = True
    distillation: Literal["off", "kl", "margin_mse"] = "off"
    distillation_weight: float = 0.0
    whole: Params | None = None

    @classmethod
    def of(
        cls,
        train: TrainConfig,
        encoder: Encoder | EncoderPair,
        optimizer: optax.GradientTransformation,
        *,
        seed: int,
        temperature: float,
    ) -> "StepSettings":
        """Makes the settings from the fields of `train` with the same names."""
        names = {*cls._fields} & {field.name for field in dataclasses.fields(train)}
        own = {name: getattr(train, name) for name in names} | {"temperature": temperature}
        return cls(encoder, optimizer, seed=seed, **own)


def batch_loss(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes this device's part of the loss; the mean over devices is that of the global batch.

    Returns:
      float32 scalar loss, and {"loss", "accuracy"} as sums that pmean turns into means over the
      global batch; with distillation {"nll", "distillation"} too, of which "loss" is made.
    """
    question_emb_BD, passage_emb_PD = _encode(params, batch, settings, dropout_key)
    temperature = temperature_of(params, settings.temperature)
    distils = settings.distillation != "off"
    own = batch.teacher_scores_BG.shape[1] if distils else None
    judged = [
        contrast.judge(one, temperature, own)
        for one in _contrasts(question_emb_BD, passage_emb_PD, batch, settings, axis)
    ]
    share_B = _share(batch.weight_B, axis)
    nll = jnp.sum(loss.mean([one.nll_B for one in judged]) * share_B)
    accuracy = jnp.sum(judged[0].hit_B * share_B)
    if not distils:
        return nll, {"loss": nll, "accuracy": accuracy}

    of_questions = judged[:: 2 if settings.symmetric else 1]
    distance = _distillation([one.own_scores_BG for one in of_questions], batch, settings, axis)
    weight = settings.distillation_weight
    total = (1 - weight) * nll + weight * distance
    return total, {"loss": total, "accuracy": accuracy, "nll": nll, "distillation": distance}


def _share(weight_B: jax.Array, axis: str) -> jax.Array:
    """Returns each question's share of a mean over the global batch, times the devices."""
    return weight_B / lax.pmean(jnp.sum(weight_B), axis)


def _distillation(
    own_scores: list[jax.Array], batch: Batch, settings: StepSettings, axis: str
) -> jax.Array:
    """Computes this device's part of the mean distance between student and teacher.

    The mean is over the questions of all devices for which the teacher has scores.

    Args:
      own_scores: float32 [B, G] of the questions for their own passages, one array per width.
    """
    teacher_BG = batch.teacher_scores_BG
    scored_BG = jnp.isfinite(teacher_BG)
    distance = {"kl": loss.kl_from_teacher, "margin_mse": loss.margin_mse}[settings.distillation]
    distance_B = loss.mean([distance(scores_BG, teacher_BG, scored_BG) for scores_BG in own_scores])
    weight_B = batch.weight_B * loss.teaches(scored_BG)
    # a batch may have no question with such scores
    total = jnp.maximum(lax.pmean(jnp.sum(weight_B), axis), 1e-6)
    return jnp.sum(distance_B * weight_B) / total


def temperature_of(params: Params, fixed: float) -> float | jax.Array:
    """Returns the learned temperature if there is one, else the fixed one."""
    return jnp.exp(params[LOG_TEMPERATURE]) if LOG_TEMPERATURE in params else fixed


def _encode(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Encodes this device's questions and passages."""
    encode = dual_encoder.encode
    if settings.chunk_size:
        encode = functools.partial(gradcache.encode, chunk_size=settings.chunk_size)
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    encoder = settings.encoder
    return (
        encode(encoder, params, "question", batch.question, keys[0]),
        encode(encoder, params, "passage", batch.passages, keys[1]),
    )


def _contrasts(
    question_emb_BD: jax.Array,
    passage_emb_PD: jax.Array,
    batch: Batch,
    settings: StepSettings,
    axis: str,
) -> list[Contrast]:
    """Returns the softmaxes that the loss averages; the first is of questions against passages."""
    devices = contrast.all_devices(axis) if settings.gather else contrast.ONE_DEVICE
    columns_P = batch.passage_columns_P
    passages = contrast.GlobalPassages(
        devices.gather(batch.passage_texts_P),
        None if batch.holds_answer_BP is None else devices.gather(columns_P),
    )
    positive_texts_BM = batch.positive_texts_BM if settings.mask_duplicates else None
    known = contrast.Known(positive_texts_BM, batch.holds_answer_BP)
    directions = [contrast.of_questions]
    if settings.symmetric:
        directions.append(contrast.of_positives)
    whole = [of(question_emb_BD, passage_emb_PD, known, passages, devices) for of in directions]
    return whole + [
        contrast.cut(one, width, normalize=settings.encoder.normalize)
        for width in settings.matryoshka_widths
        for one in whole
    ]


def global_gradient(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[Params, dict[str, jax.Array]]:
    """Computes gradient and metrics of the mean loss over the global batch, equal on all devices.

    One pmean over the whole tree becomes one all-reduce, not one per leaf (tests/test_step.py
    counts them).
    """
    grads_and_sums = _own_gradient(params, batch, settings, dropout_key, axis)
    return lax.pmean(grads_and_sums, axis)


def _own_gradient(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[Params, dict[str, jax.Array]]:
    """Computes this device's gradient of the trained weights, and its metrics."""

    def loss_of(learned: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        return batch_loss({**params, **learned}, batch, settings, dropout_key, axis)

    return jax.grad(loss_of, has_aux=True)(lora.trained(params))


def train_step(
    state: TrainState, batch: Batch, *, settings: StepSettings, axis: str
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update.

    Args:
      state: the same on every device; with `settings.whole`, arrays are this device's part.
      batch: this device's share.
      settings: static.
      axis: name of the mapped axis.

    Returns:
      The new state and {"loss", "accuracy", "grad_norm"} (before clipping), and "temperature" where
      it is learned; the same on every device.
    """
    # by name: JAX's default generator can be set from outside
    generator = kernels.generator(settings.encoder.platform)
    key = jax.random.key(settings.seed, impl=generator)
    key = jax.random.fold_in(key, state.step)
    key = jax.random.fold_in(key, lax.axis_index(axis))
    dropout_key = key if settings.encoder.drops else None
    if settings.whole is None:
        grads, metrics = global_gradient(state.params, batch, settings, dropout_key, axis)
        norm = optax.tree.norm(grads)
    else:
        params = shards.gather(state.params, settings.whole, axis, settings.encoder.dtype)
        grads, metrics = _own_gradient(params, batch, settings, dropout_key, axis)
        grads, metrics = shards.mean(grads, axis), lax.pmean(metrics, axis)
        norm = shards.norm(grads, axis)
    learned = lora.trained(state.params)
    updates, opt_state = settings.optimizer.update(grads, state.opt_state, learned)
    params = {**state.params, **optax.apply_updates(learned, updates)}
    metrics["grad_norm"] = norm
    if LOG_TEMPERATURE in state.params:
        metrics["temperature"] = temperature_of(state.params, settings.temperature)
    return TrainState(state.step + 1, params, opt_state), metrics
