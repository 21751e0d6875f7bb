"""Orders the training questions: shuffled anew each epoch, each batch from one file of several.

The questions of update n depend on the seed and n alone. A batch of one file has only that file's
passages as negatives, as in the original (Karpukhin et al., 2020): passages of another corpus or
style would be told apart without reading the question.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import grain

from dpr_jax.data.store import Question
from dpr_jax.errors import InputError


class Part(NamedTuple):
    """The questions of one training file.

    Attributes:
      name: of the file.
      rows: which of all training questions they are.
      share: of the batches, in proportion to the other parts' shares.
    """

    name: str
    rows: range
    share: float


def parts(
    files: Sequence[tuple[str, range]], upsampling: Sequence[float], batch_size: int
) -> list[Part]:
    """Returns the files to take batches from in turn; none where there is one.

    Args:
      files: name and rows of each, as data/store has them.
      upsampling: how many times the questions of each count; empty for once.
      batch_size: questions in the global batch.

    Raises:
      InputError: a factor too many or too few, or a file that does not fill a batch.
    """
    if upsampling and len(upsampling) != max(len(files), 1):
        raise InputError(
            f"train.upsampling has {len(upsampling)} numbers, but the prepared training questions"
            f" are of {max(len(files), 1)} file(s); give one for each file of data.train"
        )
    for name, rows in files:
        if len(rows) < batch_size:
            raise InputError(
                f"train.batch_size is {batch_size}, but {name} has only {len(rows)} training"
                " questions, and a batch is from one file; make it smaller"
            )
    factors = upsampling or [1.0] * len(files)
    return [Part(name, rows, factor * len(rows)) for (name, rows), factor in zip(files, factors)]


def order(
    questions: Sequence[Question],
    seed: int,
    batch_size: int,
    mixed: Sequence[Part] = (),
) -> grain.MapDataset[Question]:
    """Returns the questions, endlessly, shuffled anew each epoch; update n (1-based) takes rows (n
    - 1) * batch_size and on.

    Args:
      questions: of all files.
      seed: of the order.
      batch_size: questions in the global batch.
      mixed: files that take turns, from `parts`.
    """
    if not mixed:
        return _shuffled(questions, seed)
    in_turn = _InTurn(questions, seed, batch_size, mixed)
    return grain.MapDataset.source(in_turn).seed(seed)


def question_ids(
    questions: Sequence[Question],
    seed: int,
    step: int,
    batch_size: int,
    mixed: Sequence[Part] = (),
) -> str:
    """Returns the question ids of the global batch of update `step` (1-based), and their file."""
    rows = order(questions, seed, batch_size, mixed)
    batch = range((step - 1) * batch_size, step * batch_size)
    ids = ", ".join(rows[i].id for i in batch)
    if not mixed:
        return ids
    number, _ = _turns(mixed)[step - 1]
    return f"{ids} of {mixed[number].name}"


def _shuffled(questions: Sequence[Question], seed: int) -> grain.MapDataset[Question]:
    return grain.MapDataset.source(questions).seed(seed).shuffle().repeat()


def _turns(mixed: Sequence[Part]) -> grain.MapDataset[tuple[int, int]]:
    """Returns the part of each batch, and how many of that part's batches came before; grain
    spreads them evenly by their shares."""
    counts = [
        grain.MapDataset.range(sys.maxsize).map(lambda done, part=part: (part, done))
        for part in range(len(mixed))
    ]
    return grain.MapDataset.mix(counts, [part.share for part in mixed])


class _InTurn(Sequence[Question]):
    """Questions of all parts, in blocks of one batch from one part."""

    def __init__(
        self,
        questions: Sequence[Question],
        seed: int,
        batch_size: int,
        mixed: Sequence[Part],
    ) -> None:
        self._parts = [
            _shuffled(_Rows(questions, part.rows), seed + number)
            for number, part in enumerate(mixed)
        ]
        self._turns, self._batch_size = _turns(mixed), batch_size

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, row: int) -> Question:
        batch, place = divmod(row, self._batch_size)
        part, done = self._turns[batch]
        return self._parts[part][done * self._batch_size + place]


class _Rows(Sequence[Question]):
    """Some of the questions."""

    def __init__(self, questions: Sequence[Question], rows: range) -> None:
        self._questions, self._rows = questions, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Question:
        return self._questions[self._rows[row]]
