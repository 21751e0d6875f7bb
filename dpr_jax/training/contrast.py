"""The softmaxes that the loss averages: anchors, each with its match among many candidates.

DPR has one: questions against passages. Options add others: positives against questions
(`symmetric`), and each of them with shortened vectors (`matryoshka_widths`).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dpr_jax.model import dual_encoder
from dpr_jax.training import loss


class Contrast(NamedTuple):
    """B anchors and the P candidates of their softmax.

    Attributes:
      anchor_emb_BD: vectors of the anchors.
      candidate_emb_PD: vectors of the candidates.
      label_B: int32 position of each anchor's match among the candidates.
      rows: further arrays with an entry per anchor, which `usable` reads.
      usable: (label_B, rows) of some of the anchors -> bool [B, P], their usable candidates.
    """

    anchor_emb_BD: jax.Array
    candidate_emb_PD: jax.Array
    label_B: jax.Array
    rows: Any
    usable: Callable[[jax.Array, Any], jax.Array]


class Devices(NamedTuple):
    """The devices whose batches meet.

    Attributes:
      index: number of this device.
      gather: joins the arrays of all devices along their first axis, with gradient.
      exchange: [B, W * B] of this device -> [W * B, B]: sends each device its block of columns.
    """

    index: int | jax.Array
    gather: Callable[[jax.Array], jax.Array]
    exchange: Callable[[jax.Array], jax.Array]


def all_devices(axis: str) -> Devices:
    """Returns all devices of the mapped axis."""
    return Devices(
        lax.axis_index(axis),
        functools.partial(lax.all_gather, axis_name=axis, tiled=True),
        functools.partial(lax.all_to_all, axis_name=axis, split_axis=1, concat_axis=0, tiled=True),
    )


ONE_DEVICE = Devices(0, lambda own: own, lambda own: own)


class Known(NamedTuple):
    """Per question, evidence that a passage is not its negative; None where it is not used.

    Attributes:
      positive_texts_BM: int32 keys of the texts of all positives of each question.
      holds_answer_BN: bool, which passages contain an answer to each question.
    """

    positive_texts_BM: jax.Array | None
    holds_answer_BN: jax.Array | None


class GlobalPassages(NamedTuple):
    """The passages of all devices.

    Attributes:
      text_P: int32 key of each one's text, equal for equal texts; negative for a dummy.
      answer_column_P: int32 column of each one in `Known.holds_answer_BN`; None with it.
    """

    text_P: jax.Array
    answer_column_P: jax.Array | None

    def every(self, stride: int) -> "GlobalPassages":
        """Returns every `stride`-th passage."""
        return GlobalPassages(*(None if one is None else one[::stride] for one in self))


def excluded(known: Known, passages: GlobalPassages) -> jax.Array | None:
    """Returns the passages that are not negatives of each question: bool [B, P], or None."""
    masks = []
    if known.positive_texts_BM is not None:
        masks.append(loss.same_text(known.positive_texts_BM, passages.text_P))
    if known.holds_answer_BN is not None:
        masks.append(known.holds_answer_BN[:, passages.answer_column_P])
    return functools.reduce(operator.or_, masks) if masks else None


def of_questions(
    question_emb_BD: jax.Array,
    passage_emb_PD: jax.Array,
    known: Known,
    passages: GlobalPassages,
    devices: Devices,
) -> Contrast:
    """Sets this device's questions against the passages of all devices.

    Args:
      question_emb_BD: vectors of this device's questions.
      passage_emb_PD: vectors of this device's passages; every (P / B)-th is a positive.
      known: of this device's questions.
      passages: of all devices.
      devices: whose passages are gathered. The gradient that their questions send to this device's
        passages comes back through the gather.
    """
    questions = len(question_emb_BD)
    stride = len(passage_emb_PD) // questions
    label_B = (devices.index * questions + jnp.arange(questions)) * stride

    def usable(label_B: jax.Array, known: Known) -> jax.Array:
        return loss.usable(passages.text_P >= 0, label_B, excluded(known, passages))

    return Contrast(question_emb_BD, devices.gather(passage_emb_PD), label_B, known, usable)


def of_positives(
    question_emb_BD: jax.Array,
    passage_emb_PD: jax.Array,
    known: Known,
    passages: GlobalPassages,
    devices: Devices,
) -> Contrast:
    """Sets this device's positives against the questions of all devices; see `of_questions`."""
    questions = len(question_emb_BD)
    stride = len(passage_emb_PD) // questions
    positives = passages.every(stride)  # of all devices, one per question
    label_B = devices.index * questions + jnp.arange(questions)
    excluded_BQ = excluded(known, positives)  # of this device's questions, for all positives
    if excluded_BQ is not None:
        excluded_BQ = devices.exchange(excluded_BQ).T  # of this device's positives

    def usable(label_B: jax.Array, excluded_BQ: jax.Array | None) -> jax.Array:
        return loss.usable(positives.text_P >= 0, label_B, excluded_BQ)

    all_question_emb_QD = devices.gather(question_emb_BD)
    return Contrast(passage_emb_PD[::stride], all_question_emb_QD, label_B, excluded_BQ, usable)


def cut(one: Contrast, width: int, *, normalize: bool) -> Contrast:
    """Shortens the vectors to their first `width` values, of unit length again if `normalize`."""

    def short(emb_BD: jax.Array) -> jax.Array:
        emb_BD = emb_BD[:, :width]
        return dual_encoder.unit_length(emb_BD) if normalize else emb_BD

    return one._replace(
        anchor_emb_BD=short(one.anchor_emb_BD), candidate_emb_PD=short(one.candidate_emb_PD)
    )


class AnchorLosses(NamedTuple):
    """The loss of each anchor, and what is reported of it; see training/loss.py.

    Attributes:
      nll_B: float32 negative log likelihood of its match.
      hit_B: bool, true where the match scores highest.
      own_scores_BG: float32 scores of its match and of the candidates after it; None if unasked.
    """

    nll_B: jax.Array
    hit_B: jax.Array
    own_scores_BG: jax.Array | None


def judge(one: Contrast, temperature: float | jax.Array, own: int | None = None) -> AnchorLosses:
    """Scores the anchors against the candidates, in blocks of anchors if there are many scores.

    Args:
      one: the contrast.
      temperature: divides the scores.
      own: number of scores to return per anchor, from its match on; None for none.
    """

    def of_block(anchor_emb_BD: jax.Array, label_B: jax.Array, rows: Any) -> AnchorLosses:
        scores_BP = loss.scores(anchor_emb_BD, one.candidate_emb_PD, temperature)
        usable_BP = one.usable(label_B, rows)
        nll_B = loss.nll(scores_BP, label_B, usable_BP)
        hit_B = loss.first_is_label(scores_BP, label_B, usable_BP)
        own_BG = None
        if own is not None:
            own_BG = label_B[:, None] + jnp.arange(own)
            own_BG = jnp.take_along_axis(scores_BP, own_BG, axis=1)
        return AnchorLosses(nll_B, hit_B, own_BG)

    anchors = one.anchor_emb_BD, one.label_B, one.rows
    count = len(one.anchor_emb_BD)
    block = loss.block_rows(count, len(one.candidate_emb_PD))
    if block == count:
        return of_block(*anchors)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), anchors)
    # The backward pass computes the scores again, so that those of one block alone are kept.
    judge_block = jax.checkpoint(lambda block: of_block(*block), prevent_cse=False)
    judged = lax.map(judge_block, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), judged)
