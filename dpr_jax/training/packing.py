"""Several texts in one row of tokens, each seeing itself alone: the same vectors with less padding.

Batches stay what they are: a text changes its place in memory, not its batch. A device's texts are
  put into as few rows as best-fit
decreasing finds (Johnson, 1974), and the number of rows is rounded up to one of a few, so that few
shapes are compiled.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpr_jax.model.dual_encoder import TEXTS_PER_ROW, Packed, Rows, Tokens
from dpr_jax.training.step import Batch

PASSAGE_STEPS = 16  # passages have one of so many numbers of rows
QUESTION_STEPS = 4  # fewer, as questions are a small part of the tokens


class Layout(NamedTuple):
    """Settings of packing.

    Attributes:
      multiple: length of a row in lengths of the longest text.
      devices: of each process, which share its texts evenly.
      chunk_size: the number of a device's rows is a multiple of its greatest common divisor with
        the texts; 0 for none.
    """

    multiple: int
    devices: int
    chunk_size: int | None = None


class RowCounts(NamedTuple):
    """Rows of one device."""

    question: int
    passage: int


def fill(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Puts texts into rows, the longest first, each into the fullest row that has room.

    Args:
      lengths: of the texts, in tokens, none above `row_tokens`.
      row_tokens: of a row.

    Returns:
      For each row the numbers of its texts, at most TEXTS_PER_ROW.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row) of rows with room, sorted
    for text in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[text], -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row].append(text)
        else:
            left, row = row_tokens, len(rows)
            rows.append([text])
        left -= lengths[text]
        if left and len(rows[row]) < TEXTS_PER_ROW:
            bisect.insort(free, (left, row))
    return rows


def shape_for(parts: Sequence[Batch], layout: Layout) -> RowCounts:
    """Returns the most rows that any device needs, rounded up; the same on every process.

    Args:
      parts: the padded batches of all processes.
      layout: of the run.
    """

    def rows(texts: list[Tokens], steps: int) -> int:
        row_tokens = texts[0].ids_BL.shape[1] * layout.multiple
        shares = [lengths for one in texts for lengths in _shares(one, layout)]
        need = max(len(fill(lengths, row_tokens)) for lengths in shares)
        step = -(-len(shares[0]) // (layout.multiple * steps))
        if layout.chunk_size:  # as training/gradcache.py cuts this number of texts
            step = _round_up(step, math.gcd(layout.chunk_size, len(shares[0])))
        return _round_up(need, step)

    return RowCounts(
        rows([part.question for part in parts], QUESTION_STEPS),
        rows([part.passages for part in parts], PASSAGE_STEPS),
    )


def pack(batch: Batch, shape: RowCounts, layout: Layout) -> Batch:
    """Packs the texts of this process's batch into rows, each device's into its own.

    Args:
      batch: with padded texts.
      shape: rows of each device, from `shape_for`.
      layout: of the run.
    """
    return batch._replace(
        question=_pack(batch.question, shape.question, layout),
        passages=_pack(batch.passages, shape.passage, layout),
    )


def _pack(tokens: Tokens, rows: int, layout: Layout) -> Packed:
    row_tokens = tokens.ids_BL.shape[1] * layout.multiple
    ids_RL = np.zeros((layout.devices * rows, row_tokens), np.int32)
    text_RL = np.full_like(ids_RL, -1)
    position_RL = np.zeros_like(ids_RL)
    slot_B = np.empty(len(tokens.lengths_B), np.int32)
    first = 0
    for device, lengths in enumerate(_shares(tokens, layout)):
        for row, texts in enumerate(fill(lengths, row_tokens)):
            begin = 0
            for number, text in enumerate(texts):
                span = device * rows + row, slice(begin, begin + lengths[text])
                ids_RL[span] = tokens.ids_BL[first + text, : lengths[text]]
                text_RL[span] = number
                position_RL[span] = np.arange(lengths[text])
                slot_B[first + text] = row * TEXTS_PER_ROW + number
                begin += lengths[text]
        first += len(lengths)
    return Packed(Rows(ids_RL, text_RL, position_RL), slot_B, tokens.lengths_B)


def _shares(tokens: Tokens, layout: Layout) -> list[list[int]]:
    """Returns the lengths of each device's texts, as parallel.Spmd.shard splits the rows."""
    return tokens.lengths_B.reshape(layout.devices, -1).tolist()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
