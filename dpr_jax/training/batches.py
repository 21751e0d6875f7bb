"""Training rows in a seeded order, joined with the corpus and tokenized (grain).

The global batch of step n depends on the seed and n alone, not on the number of processes: process
k of K reads rows k, k + K, ... of one global order. The position in the data is the step number.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np

from dpr_jax import console
from dpr_jax.config import TrainConfig
from dpr_jax.data.store import Corpus, Question
from dpr_jax.errors import InputError
from dpr_jax.model.tokenizer import Tokenizer, pad
from dpr_jax.training import packing
from dpr_jax.training.false_negatives import holds_answer, text_key
from dpr_jax.training.order import Part, order
from dpr_jax.training.step import Batch

NO_PASSAGE = -1  # a dummy where a question has too few hard negatives
NO_POSITIVE = -2  # fills up the positives; equal to no passage's text key
# rows of the stream; grain divides its length as a float, which rounds sys.maxsize up beyond itself
ENDLESS = 1 << 52
READ_AHEAD = 4  # batches tokenized ahead of the device


class Draw(NamedTuple):
    """One training row: a question and the corpus rows drawn for it, the positive first; a
    teacher's scores by row.
    """

    question: str
    answers: tuple[str, ...]
    rows: tuple[int, ...]
    positives: tuple[int, ...]
    teacher_scores: dict[int, float]


class BatchSettings(NamedTuple):
    """Settings of drawing and laying out batches; the fields of TrainConfig have its meaning.

    Attributes:
      batch_size: questions in the global batch.
      seed: of the order and of the draws.
      hard_negatives: per question.
      shuffle_positives: draw the positive; else the first.
      mask_duplicates: the batches hold the texts of every question's positives.
      mask_answers: how the passages are found that hold an answer; they are then in the batches.
      distillation: unless off, the batches hold a teacher's scores of every question's passages.
      pack_rows: length of a packed row in lengths of the longest text (training/packing.py); None
        pads every text.
      chunk_size: read where texts are packed.
      mixed: files that take turns, each with batches of its own questions (training/order.py).
    """

    batch_size: int
    seed: int
    hard_negatives: int = 1
    shuffle_positives: bool = False
    mask_duplicates: bool = True
    mask_answers: Literal["off", "string", "regex"] = "off"
    distillation: Literal["off", "kl", "margin_mse"] = "off"
    pack_rows: int | None = None
    chunk_size: int | None = None
    mixed: Sequence[Part] = ()

    @classmethod
    def of(cls, train: TrainConfig, *, seed: int, mixed: Sequence[Part]) -> "BatchSettings":
        """Makes the settings from the fields of `train` with the same names."""
        names = {*cls._fields} - {"seed", "mixed"}
        return cls(seed=seed, mixed=mixed, **{name: getattr(train, name) for name in names})


def draw(
    question: Question,
    rng: np.random.Generator,
    *,
    hard_negatives: int,
    shuffle_positives: bool,
) -> Draw:
    """Chooses one positive and `hard_negatives` hard negatives, as DPR does.

    Hard negatives are drawn anew at each visit; where they do not suffice, other negatives; then
    dummies.
    """
    positive = question.positives[0]
    if shuffle_positives:
        positive = question.positives[rng.integers(len(question.positives))]
    pool = [
        *rng.permutation(question.hard_negatives),
        *rng.permutation(question.negatives),
    ]
    chosen = [int(row) for row in pool[:hard_negatives]]
    chosen += [NO_PASSAGE] * (hard_negatives - len(chosen))
    return Draw(
        question.question,
        question.answers,
        (positive, *chosen),
        question.positives,
        dict(question.teacher_scores),
    )


def collate(
    draws: Sequence[Draw],
    corpus: Corpus,
    question_tokenizer: Tokenizer,
    passage_tokenizer: Tokenizer,
    most_positives: int,
    teacher: bool = False,
) -> Batch:
    """Joins rows with the corpus and tokenizes them to fixed lengths; keeps the first
    `most_positives` positives of each question.

    With `teacher` the batch has the teacher's scores.
    """
    rows = [row for one in draws for row in one.rows]
    positives = [one.positives[:most_positives] for one in draws]
    known = sorted({*rows, *itertools.chain(*positives)} - {NO_PASSAGE})
    passages = dict(zip(known, corpus.rows(known), strict=True))
    texts = [
        ("", "") if row == NO_PASSAGE else (passages[row].title, passages[row].text) for row in rows
    ]
    keys = {row: text_key(passage.text) for row, passage in passages.items()}
    keys |= {NO_PASSAGE: NO_PASSAGE}
    filled = [
        [keys[row] for row in one] + [NO_POSITIVE] * (most_positives - len(one))
        for one in positives
    ]
    return Batch(
        question=pad(
            question_tokenizer.ids([one.question for one in draws]),
            question_tokenizer.max_tokens,
        ),
        passages=pad(passage_tokenizer.ids(texts), passage_tokenizer.max_tokens),
        passage_texts_P=np.array([keys[row] for row in rows], np.int32),
        positive_texts_BM=np.array(filled, np.int32),
        weight_B=np.ones(len(draws), np.float32),
        teacher_scores_BG=teacher_scores(draws) if teacher else None,
    )


def teacher_scores(draws: Sequence[Draw]) -> np.ndarray:
    """Returns a teacher's scores of the passages of each row: float32 [B, G], NaN where there is
    none."""
    scores = [[one.teacher_scores.get(row, np.nan) for row in one.rows] for one in draws]
    return np.array(scores, np.float32)


def with_answers(
    batch: Batch,
    draws: Sequence[Draw],
    mine: slice,
    corpus: Corpus,
    match: Literal["string", "regex"],
) -> Batch:
    """Adds to this process's batch which passages of the global one hold an answer to its
    questions.

    Args:
      batch: collated from `draws[mine]`.
      draws: of the global batch, the same on every process.
      mine: which of them are this process's.
      corpus: passages by row.
      match: how an answer is looked for.
    """
    rows = [row for one in draws for row in one.rows]
    known = sorted({*rows} - {NO_PASSAGE})
    at = {row: i for i, row in enumerate(known)}
    texts = [passage.text for passage in corpus.rows(known)]
    holds_BN = holds_answer([one.answers for one in draws[mine]], texts, match=match)
    columns_BG = np.arange(len(rows), dtype=np.int32).reshape(len(draws), -1)
    return batch._replace(
        passage_columns_P=columns_BG[mine].ravel(),
        # what a dummy's column says is never read
        holds_answer_BP=holds_BN[:, [at.get(row, 0) for row in rows]],
    )


def check_teacher(questions: Sequence[Question]) -> None:
    """Logs how many questions have usable teacher scores.

    Raises:
      InputError: none has scores of both a positive and a negative.
    """
    taught = 0
    for one in questions:
        scored = {row for row, _ in one.teacher_scores}
        negatives = {*one.hard_negatives, *one.negatives}
        taught += bool(scored & {*one.positives} and scored & negatives)
    if not taught:
        raise InputError(
            "train.distillation is set, but no training question has a teacher's score of a"
            " positive and of a negative; give a file with pos_scores and neg_scores (docs/data.md)"
            " and mine.enabled = False, or a function mine.teacher that scores what is mined"
        )
    console.say(f"train: a teacher scored passages of {taught:,} of {len(questions):,} questions")


def check(questions: Sequence[Question], settings: BatchSettings) -> None:
    """Checks that batches can be made of these training questions.

    Raises:
      InputError: fewer questions than one batch holds, a batch of one question without any
        negative, no answers to mask, or no teacher's scores to learn from.
    """
    if len(questions) < settings.batch_size:
        raise InputError(
            f"train.batch_size is {settings.batch_size}, but there are only"
            f" {len(questions)} training questions; make it smaller"
        )
    if settings.batch_size == 1:
        for one in questions:
            if not (one.hard_negatives or one.negatives):
                raise InputError(
                    f"question {one.id!r} has no negative passage and, with a train.batch_size of"
                    " 1, no other question's: its loss is 0 and teaches nothing; make the batch"
                    " larger"
                )
    if settings.mask_answers != "off" and not any(one.answers for one in questions):
        raise InputError(
            "train.mask_answers is set, but no training question has an answer; turn it off"
        )
    if settings.distillation != "off":
        check_teacher(questions)


def stream(
    questions: Sequence[Question],
    corpus: Corpus,
    question_tokenizer: Tokenizer,
    passage_tokenizer: Tokenizer,
    settings: BatchSettings,
    *,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    devices: int = 1,
) -> Iterator[Batch]:
    """Yields batches of this process without end, from step `first_step` on.

    Args:
      questions: training rows, each with a positive, that `check` accepts.
      corpus: passages by row.
      question_tokenizer: cuts at its max_tokens, to which every batch is padded.
      passage_tokenizer: likewise.
      settings: of the run.
      first_step: number of batches already used.
      process_index: which process this is.
      process_count: of how many; divides the batch size.
      devices: of each process, which share its rows; read where texts are packed.
    """
    most_positives = 0
    if settings.mask_duplicates:
        most_positives = max(len(one.positives) for one in questions)
    rows = order(questions, settings.seed, settings.batch_size, settings.mixed).random_map(
        lambda question, rng: draw(
            question,
            rng,
            hard_negatives=settings.hard_negatives,
            shuffle_positives=settings.shuffle_positives,
        )
    )[:ENDLESS]
    mine = slice(process_index, None, process_count)

    def local(draws: Sequence[Draw]) -> Batch:
        return collate(
            draws,
            corpus,
            question_tokenizer,
            passage_tokenizer,
            most_positives,
            settings.distillation != "off",
        )

    def of_whole(draws: Sequence[Draw]) -> Batch:
        """Returns this process's part of the global batch, where it depends on the other parts."""
        batch = local(draws[mine])
        if settings.mask_answers != "off":
            batch = with_answers(batch, draws, mine, corpus, settings.mask_answers)
        if settings.pack_rows:
            parts = [
                batch if k == process_index else local(draws[k::process_count])
                for k in range(process_count)
            ]
            layout = packing.Layout(settings.pack_rows, devices, settings.chunk_size)
            shape = packing.shape_for(parts, layout)
            batch = packing.pack(batch, shape, layout)
        return batch

    if settings.mask_answers != "off" or settings.pack_rows:
        steps = rows.batch(settings.batch_size, batch_fn=of_whole)
    else:
        steps = rows[mine].batch(settings.batch_size // process_count, batch_fn=local)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    return iter(steps[first_step:].to_iter_dataset(options))
