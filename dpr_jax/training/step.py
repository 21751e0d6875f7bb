"""One update, written for one device: collectives over one named axis make it exact for all.

With W devices, each scores its own questions against the passages of all (all_gather with
gradient), takes the mean over its own questions, and the gradients are averaged over devices. That
is the gradient of the mean over the global batch, to rounding:
`tests/test_step.py` holds it against one device. Options of the loss are decided while tracing: one
  that is off leaves no instruction.
"""

import dataclasses
import functools
from collections.abc import Iterable
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
      passage_columns_P: int32 column of each passage in the next; None with it.
      holds_answer_BP: bool, which passages of the global batch contain an answer to each question;
        None leaves them in.
      teacher_scores_BG: float32, a teacher's scores of each question's own passages, NaN where it
        gave none; None without distillation.
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
      params: float32 weights of both towers, their adapters where they have some
        (model/lora.py), and the logarithm of the temperature where it is learned.
      opt_state: AdamW's moments of what is trained: without the towers where there are adapters.
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
      mask_duplicates: passages with the text of one of a question's positives are no negatives of
        it.
      seed: of dropout; the key of step n on device d is fold_in(fold_in(seed, n), d).
      symmetric: half of the loss is that of positives which look for their question among all
        questions.
      matryoshka_widths: the loss is the mean over vectors cut to these widths, and whole (Kusupati
        et al., 2022, arXiv 2205.13147).
      chunk_size: texts encoded at once on a device (training/gradcache.py); None encodes all.
      gather: every question meets the passages of all devices; else those of its own device alone.
      distillation: what is learned of a teacher's scores besides.
      distillation_weight: its share of the loss; that of the contrast is the rest.
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
        """Takes what `train` says of an update, under the same names."""
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
    """Returns this device's share of the global mean loss, scaled so that the mean over devices is
    the whole.

    Returns:
      float32 scalar loss, and {"loss", "accuracy"} as sums that pmean turns into means over the
      global batch.
    """
    question_emb_BD, passage_emb_PD = _encode(params, batch, settings, dropout_key)
    temperature = temperature_of(params, settings.temperature)
    contrasts = _contrasts(question_emb_BD, passage_emb_PD, batch, settings, axis)
    own = None if settings.distillation == "off" else batch.teacher_scores_BG.shape[1]
    judged = [contrast.judge(one, temperature, own) for one in contrasts]
    nll_B = loss.mean([one.nll_B for one in judged])
    hit_B = judged[0].hit_B
    if settings.distillation == "off":
        share_B = batch.weight_B / lax.pmean(jnp.sum(batch.weight_B), axis)
        total = jnp.sum(nll_B * share_B)
        return total, {"loss": total, "accuracy": jnp.sum(hit_B * share_B)}

    # what is taught is a mean over the questions that have something to teach, on whichever devices
    # they are
    of_questions = slice(None, None, 2 if settings.symmetric else 1)
    taught_B, distance_B = _distillation(
        [one.own_scores_BG for one in judged[of_questions]], batch, settings
    )
    weights_2B = jnp.stack([batch.weight_B, batch.weight_B * taught_B])
    sums_2 = lax.pmean(jnp.sum(weights_2B, axis=1), axis)
    share_B, taught_share_B = weights_2B / jnp.maximum(sums_2, 1e-6)[:, None]
    nll, distance = jnp.sum(nll_B * share_B), jnp.sum(distance_B * taught_share_B)
    weight = settings.distillation_weight
    total = (1 - weight) * nll + weight * distance
    accuracy = jnp.sum(hit_B * share_B)
    return total, {
        "loss": total,
        "accuracy": accuracy,
        "nll": nll,
        "distillation": distance,
    }


def _distillation(
    own_scores: list[jax.Array], batch: Batch, settings: StepSettings
) -> tuple[jax.Array, jax.Array]:
    """Returns which questions a teacher's scores say something of, bool [B], and how far the
    student is from them, float32 [B].

    Args:
      own_scores: float32 [B, G] of the questions for their own passages, one a width.
    """
    teacher_BG = batch.teacher_scores_BG
    scored_BG = jnp.isfinite(teacher_BG)
    distance = {"kl": loss.kl_from_teacher, "margin_mse": loss.margin_mse}
    distances = [
        distance[settings.distillation](scores_BG, teacher_BG, scored_BG)
        for scores_BG in own_scores
    ]
    return loss.teaches(scored_BG), loss.mean(distances)


def temperature_of(params: Params, fixed: float) -> float | jax.Array:
    """Returns the learned temperature where there is one, else the fixed one."""
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
    """Returns all that the loss is the mean of; first this device's questions against the passages
    of all devices."""
    gather = functools.partial(lax.all_gather, axis_name=axis, tiled=True)
    exchange = functools.partial(
        lax.all_to_all, axis_name=axis, split_axis=1, concat_axis=0, tiled=True
    )
    if not settings.gather:  # as if each device were the only one
        gather = exchange = lambda own: own
    # with gradient: what other devices' questions say of this device's passages comes back here
    all_passage_emb_PD = gather(passage_emb_PD)
    all_texts_P = gather(batch.passage_texts_P)
    questions = question_emb_BD.shape[0]
    stride = passage_emb_PD.shape[0] // questions  # G: every G-th is a positive
    device = lax.axis_index(axis) if settings.gather else 0
    own_B = device * questions + jnp.arange(questions)
    label_B = own_B * stride
    known = {}  # what says which passages are no negatives of a question
    if settings.mask_duplicates:
        known["texts"] = batch.positive_texts_BM
    if batch.holds_answer_BP is not None:
        known["answers"] = batch.holds_answer_BP
        columns_P = gather(batch.passage_columns_P)

    def excluded(given: Iterable[jax.Array], of_P: slice = slice(None)) -> jax.Array | None:
        each = dict(zip(known, given, strict=True))
        excluded_BP = None
        if "texts" in each:
            excluded_BP = loss.same_text(each["texts"], all_texts_P[of_P])
        if "answers" in each:
            holds_BP = each["answers"][:, columns_P[of_P]]
            excluded_BP = holds_BP if excluded_BP is None else excluded_BP | holds_BP
        return excluded_BP

    def usable(label_B: jax.Array, *given: jax.Array) -> jax.Array:
        return loss.usable(all_texts_P >= 0, label_B, excluded(given))

    questions_first = Contrast(
        question_emb_BD, all_passage_emb_PD, label_B, tuple(known.values()), usable
    )
    contrasts = [questions_first]

    if settings.symmetric:
        given_B = ()
        if known:
            # what all questions say of this device's positives
            positives = slice(None, None, stride)
            given_B = (exchange(excluded(known.values(), positives)).T,)

        def usable_questions(label_B: jax.Array, *given: jax.Array) -> jax.Array:
            return loss.usable(all_texts_P[::stride] >= 0, label_B, *given)

        all_question_emb_QD = gather(question_emb_BD)
        positive_emb_BD = passage_emb_PD[::stride]
        contrasts.append(
            Contrast(positive_emb_BD, all_question_emb_QD, own_B, given_B, usable_questions)
        )

    def cut(emb_BD: jax.Array, width: int) -> jax.Array:
        narrow = emb_BD[:, :width]
        unit = settings.encoder.normalize
        return dual_encoder.unit_length(narrow) if unit else narrow

    return contrasts + [
        one._replace(
            emb_BD=cut(one.emb_BD, width),
            candidate_emb_PD=cut(one.candidate_emb_PD, width),
        )
        for width in settings.matryoshka_widths
        for one in contrasts
    ]


def global_gradient(
    params: Params,
    batch: Batch,
    settings: StepSettings,
    dropout_key: jax.Array | None,
    axis: str,
) -> tuple[Params, dict[str, jax.Array]]:
    """Returns gradient and metrics of the mean loss over the global batch, the same on every
    device.

    One pmean over the whole tree: XLA makes one all-reduce of it, not one a leaf
      (tests/test_step.py counts them).
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
    """Returns this device's gradient of what is trained, and its metrics."""

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
    # whichever is JAX's default
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
