"""Measures how fast this process encodes, and the share of computed tokens that are real."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from dpr_jax.model.bert import BertShape
from dpr_jax.model.flops import forward_flops, peak_flops

T = TypeVar("T")


class Pace:
    """Counts batches; rates are over the whole run, compiling included."""

    def __init__(self, shape: BertShape, pooling: str) -> None:
        self._shape, self._pooling, self._peak = shape, pooling, peak_flops()
        self._tokens = self._slots = 0
        self._flops = self._waited_s = 0.0
        self._began_s = time.monotonic()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; how long each one was waited for is counted."""
        source, end = iter(items), object()
        while True:
            began_s = time.monotonic()
            item = next(source, end)
            self._waited_s += time.monotonic() - began_s
            if item is end:
                return
            yield item

    def add(self, lengths_B: np.ndarray, slots: int) -> None:
        """One batch that is done: its texts' lengths in tokens, and the tokens computed, padding
        included.
        """
        self._tokens += int(lengths_B.sum())
        self._slots += slots
        self._flops += forward_flops(self._shape, lengths_B, self._pooling)

    def note(self) -> str:
        """Real tokens a second, their share of those computed, and MFU where the peak of the device
        is known.
        """
        passed_s = max(time.monotonic() - self._began_s, 1e-9)
        said = f"{self._tokens / passed_s:,.0f} tokens/s, {self._tokens / self._slots:.1%} real"
        if self._peak:
            said += f", MFU {self._flops / (passed_s * self._peak):.1%}"
        return said

    def summary(self) -> str:
        """The same, and how long the devices waited for texts."""
        passed_s = time.monotonic() - self._began_s
        return f"{self.note()}, {self._waited_s:.1f} of {passed_s:.1f} s waiting for texts"
