"""Measures how fast towers compute, in training and in encoding; compilation is left out."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from dpr_jax.model.flops import forward_flops, peak_flops
from dpr_jax.model.stack import EncoderShape

T = TypeVar("T")

_compiling: list[tuple[float, float]] = []  # begin and end of what JAX traced and compiled


def clock() -> float:
    """Returns seconds that pass only while nothing is compiled; only differences mean anything."""
    return time.monotonic() - sum(end - begin for begin, end in _compiling)


def in_words(seconds: float) -> str:
    """Returns a duration with a unit of its size, such as "2.1 s" or "35 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _compiled(event: str, seconds: float, **_: object) -> None:
    """Notes a step of a compilation; a longer one replaces the shorter ones inside it."""
    if not event.startswith("/jax/core/compile/"):
        return
    end = time.monotonic()
    begin = end - seconds
    while _compiling and _compiling[-1][0] >= begin:
        _compiling.pop()
    if _compiling and _compiling[-1][1] >= begin:  # no gap, or rounding: one stretch
        begin = _compiling.pop()[0]
    _compiling.append((begin, end))


jax.monitoring.register_event_duration_secs_listener(_compiled)


class Pace:
    """Counts the batches that this process computed; gives their rates since the last restart."""

    def __init__(
        self, shape: EncoderShape, pooling: str, *, passes: int = 1, processes: int = 1
    ) -> None:
        """Starts the clock.

        Args:
          shape: architecture of the towers.
          pooling: of the towers.
          passes: what a text costs in forward passes; 3 in training, as backward is twice forward.
          processes: number of those that do as much as this one; rates count them all.
        """
        self._shape, self._pooling = shape, pooling
        self._passes, self._processes = passes, processes
        self._peak = peak_flops()
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted, and starts the clock anew."""
        self._batches = self._examples = self._tokens = self._slots = 0
        self._flops = self._waited_s = 0.0
        self._asked = False  # for another item
        self._began_s = clock()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and counts how long each one was waited for."""
        source, end = iter(items), object()
        while True:
            began_s = clock()
            self._asked = True
            item = next(source, end)
            self._waited_s += clock() - began_s
            if item is end:
                return
            yield item

    def add(self, lengths_B: np.ndarray, slots: int, *, examples: int = 0) -> None:
        """Counts one batch that is done.

        Args:
          lengths_B: of its texts, in tokens.
          slots: tokens computed, padding included.
          examples: questions that it trains.
        """
        self._batches += 1
        self._examples += examples
        self._tokens += int(lengths_B.sum())
        self._slots += slots
        flops = forward_flops(self._shape, lengths_B, self._pooling)
        self._flops += self._passes * flops

    def rates(self) -> dict[str, float]:
        """Returns the rates by their names in metrics.jsonl; times are seconds per batch.

        `mfu` is there where the peak of the devices is known. Empty where nothing was done, or no
        item was asked for since the restart: then the batch may have been done before it.
        """
        if not (self._batches and self._asked):
            return {}
        passed_s = max(clock() - self._began_s, 1e-9)
        values = {
            "examples_per_s": self._processes * self._examples / passed_s,
            "tokens_per_s": self._processes * self._tokens / passed_s,
            "padding_share": 1 - self._tokens / self._slots,
            "data_wait_s": self._waited_s / self._batches,
            "compute_s": max(passed_s - self._waited_s, 0.0) / self._batches,
        }
        if self._peak:
            values["mfu"] = self._flops / (passed_s * self._peak)
        return values

    def note(self) -> str:
        """Returns tokens per second, the share of real ones, and MFU where the peak is known."""
        rates = self.rates()
        said = f"{rates['tokens_per_s']:,.0f} tokens/s, {1 - rates['padding_share']:.1%} real"
        return said + (f", MFU {rates['mfu']:.1%}" if "mfu" in rates else "")

    def summary(self) -> str:
        """Returns the same, and how long the devices waited for texts."""
        passed_s = clock() - self._began_s
        return f"{self.note()}, {self._waited_s:.1f} of {passed_s:.1f} s waiting for texts"
