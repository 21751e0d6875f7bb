"""Validation on the development questions: NLL, in-batch accuracy, and average rank (Karpukhin et
al., 2020, section 5).

Both are defined on the whole development set in its order, so that they do not change with the
number of devices or processes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpr_jax import parallel
from dpr_jax.config import TrainConfig
from dpr_jax.data.store import Corpus, Question
from dpr_jax.model.dual_encoder import Encoder, EncoderPair, Params, encoder_of, tower
from dpr_jax.model.embed import Embedder
from dpr_jax.model.tokenizer import Tokenizer

RANK_BLOCK = 64  # questions ranked at a time
ENCODE_BLOCK = 8192  # texts tokenized at a time


class Validation(NamedTuple):
    """The measures of one set of weights.

    Attributes:
      nll: mean negative log likelihood of each question's positive among the passages of its block
        of `block` questions.
      accuracy: share of questions whose positive scores highest in its block.
      average_rank: mean 0-based rank of the positive in the pool of all dev questions' passages.
      recall_at_1: share of questions whose positive is the first in that pool.
      recall_at_20: likewise among the first 20.
      pool: number of passages in that pool.
    """

    nll: float
    accuracy: float
    average_rank: float
    recall_at_1: float
    recall_at_20: float
    pool: int


def pool_rows(
    questions: Sequence[Question],
    *,
    hard_negatives: int,
    negatives: int,
) -> np.ndarray:
    """Returns the corpus rows of the average-rank pool, sorted, each once: the first positive, hard
    negatives and other negatives of every question."""
    rows: set[int] = set()
    for question in questions:
        rows.add(question.positives[0])
        rows.update(question.hard_negatives[:hard_negatives])
        rows.update(question.negatives[:negatives])
    return np.array(sorted(rows), np.int64)


class ValidationSettings(NamedTuple):
    """The settings of validation; the fields of TrainConfig have their meaning.

    Attributes:
      batch_size: questions that share their passages as negatives for the NLL, as in training.
      hard_negatives: per question, which such a block holds besides.
      validation_negatives: hard negatives, and as many others, per question in the average-rank
        pool.
    """

    batch_size: int
    hard_negatives: int
    validation_negatives: int

    @classmethod
    def of(cls, train: TrainConfig) -> "ValidationSettings":
        """Takes what `train` says of validation, under the same names."""
        return cls(*(getattr(train, name) for name in cls._fields))


def validate(
    encoder: Encoder | EncoderPair,
    params: Params,
    questions: Sequence[Question],
    corpus: Corpus,
    question_tokenizer: Tokenizer,
    passage_tokenizer: Tokenizer,
    settings: ValidationSettings,
    *,
    temperature: float,
) -> Validation:
    """Measures one set of weights, the same on every process.

    Args:
      encoder: architecture of the towers.
      params: host arrays of both towers.
      questions: the development questions, each with a positive.
      corpus: passages by row.
      question_tokenizer: for questions.
      passage_tokenizer: for passages.
      settings: of the run.
      temperature: as in training.
    """
    rows = pool_rows(
        questions,
        hard_negatives=max(settings.validation_negatives, settings.hard_negatives),
        negatives=settings.validation_negatives,
    )
    position = {int(row): i for i, row in enumerate(rows)}
    question_texts = [one.question for one in questions]
    question_emb = _shared_encode(
        Embedder(encoder_of(encoder, "question"), tower(params, "question"), question_tokenizer),
        len(questions),
        lambda indices: [question_texts[i] for i in indices],
    )
    passage_emb = _shared_encode(
        Embedder(encoder_of(encoder, "passage"), tower(params, "passage"), passage_tokenizer),
        len(rows),
        lambda indices: [
            (one.title, one.text) for one in corpus.rows([int(rows[i]) for i in indices])
        ],
    )
    own = np.array([position[one.positives[0]] for one in questions])
    ranks = _ranks(question_emb, passage_emb, own)
    nll, hits = _blocks(
        questions,
        question_emb,
        passage_emb,
        position,
        temperature=temperature,
        block=settings.batch_size,
        hard_negatives=settings.hard_negatives,
    )
    means = [nll, hits, ranks, ranks == 0, ranks < 20]
    # runs branch on these numbers, so every process takes those of one
    agreed = parallel.of_main(np.array([np.mean(values) for values in means]))
    return Validation(*map(float, agreed), pool=len(rows))


def _ranks(question_emb: np.ndarray, passage_emb: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns how many passages score above each question's own, int64 [Q]; a block at a time."""
    ranks = np.empty(len(own), np.int64)
    for start in range(0, len(own), RANK_BLOCK):
        rows = slice(start, start + RANK_BLOCK)
        scores_BN = question_emb[rows] @ passage_emb.T
        mine_B1 = np.take_along_axis(scores_BN, own[rows, None], axis=1)
        ranks[rows] = np.sum(scores_BN > mine_B1, axis=1)
    return ranks


def _blocks(
    questions: Sequence[Question],
    question_emb: np.ndarray,
    passage_emb: np.ndarray,
    position: dict[int, int],
    *,
    temperature: float,
    block: int,
    hard_negatives: int,
) -> tuple[list[float], list[bool]]:
    """Computes NLL and hit of every question among the passages of its block, other positives of
    its own masked."""
    nll, hits = [], []
    for start in range(0, len(questions), block):
        group = questions[start : start + block]
        rows = dict.fromkeys(one.positives[0] for one in group)
        for one in group:
            rows.update(dict.fromkeys(one.hard_negatives[:hard_negatives]))
        listed = list(rows)
        passages_PD = passage_emb[[position[row] for row in listed]]
        for i, one in enumerate(group):
            scores_P = (passages_PD @ question_emb[start + i]) / temperature
            mine = listed.index(one.positives[0])
            for other in one.positives[1:]:
                if other in rows and other != one.positives[0]:
                    scores_P[listed.index(other)] = -np.inf
            top = np.max(scores_P)
            nll.append(float(top + np.log(np.sum(np.exp(scores_P - top))) - scores_P[mine]))
            hits.append(bool(np.argmax(scores_P) == mine))
    return nll, hits


def _shared_encode(
    embedder: Embedder, count: int, texts: Callable[[Sequence[int]], list[Any]]
) -> np.ndarray:
    """Encodes `count` texts, a share per process: float32 [count, D], the same on every process."""
    processes, index = jax.process_count(), jax.process_index()
    share = -(-count // processes)
    mine = range(index * share, min((index + 1) * share, count))
    emb = np.zeros((share, embedder.width), np.float32)
    for start in range(0, len(mine), ENCODE_BLOCK):
        block = mine[start : start + ENCODE_BLOCK]
        emb[start : start + len(block)] = embedder.encode(texts(block))
    return parallel.all_processes(emb)[:count]
