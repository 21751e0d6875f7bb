"""Encodes questions in few padded shapes whose programs are compiled already."""

import threading
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from dpr_jax.model.embed import Embedder, Part

ROWS = {"cpu": (1, 2, 4, 8, 16)}  # more rows cost as much per question there
ROWS_ACCELERATOR = (1, 8, 32, 128)
FINE_TOKENS = (8, 16, 24, 32)  # then steps of an eighth of the length and more
MOST_TOKENS = 512


class QuestionEncoder:
    """Encodes questions by compiled programs, while other shapes are compiled in another thread.

    Attributes:
      tokenize: of the encoder.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.tokenize = embedder.tokenize
        self._embedder = embedder
        longest = int(embedder.tokenize(["what " * 2 * MOST_TOKENS]).lengths_N[0])
        lengths = [one for one in FINE_TOKENS if one < longest]
        step = 48
        while step < longest:
            lengths.append(step)
            step += 16 if step < 64 else 32 if step < 128 else 64
        self._lengths = [*lengths, longest]
        devices = jax.local_device_count()  # which share the rows evenly
        rows = ROWS.get(jax.default_backend(), ROWS_ACCELERATOR)
        self._rows = sorted({-(-one // devices) * devices for one in rows})
        self._ready: frozenset[tuple[int, int]] = frozenset()

    def encode(self, questions: Sequence[str]) -> np.ndarray:
        """Returns the vectors of questions, float32 [len(questions), width]."""
        texts = self._embedder.tokenize(questions)
        emb_QD = np.empty((len(questions), self._embedder.width), np.float32)
        for batch in self._embedder.vectors(texts, self._parts(texts.lengths_N)):
            emb_QD[batch.rows_B] = batch.emb_BD
        return emb_QD

    def warm_first(self) -> None:
        """Compiles the program that takes one question of any length."""
        self._compile(self._rows[0], self._lengths[-1])

    def warm(self, stopping: threading.Event) -> None:
        """Compiles all other programs, those for few questions first."""
        for rows in self._rows:
            for length in self._lengths:
                if stopping.is_set():
                    return
                self._compile(rows, length)

    def _compile(self, rows: int, length: int) -> None:
        if (rows, length) not in self._ready:
            texts = self._embedder.tokenize(["what"] * rows)
            list(self._embedder.vectors(texts, [(np.arange(rows), rows, length)]))
            self._ready |= {(rows, length)}  # another set: the encoding thread reads this one

    def _parts(self, lengths_N: np.ndarray) -> Iterator[Part]:
        """Yields batches, the longest questions first."""
        order_N = np.argsort(-lengths_N, kind="stable")
        done = 0
        while done < len(order_N):
            longest, left = int(lengths_N[order_N[done]]), len(order_N) - done
            rows, length = self._shape(longest, left)
            yield order_N[done : done + rows], rows, length
            done += rows

    def _shape(self, longest: int, count: int) -> tuple[int, int]:
        """Returns the compiled shape (rows, tokens) that costs least per question."""
        fits = [(rows, length) for rows, length in self._ready if length >= longest]
        if not fits:  # nothing is compiled yet: this one will be
            return self._rows[0], self._lengths[-1]
        return min(fits, key=lambda one: (one[0] * one[1] / min(one[0], count), -one[0]))
