"""How fast a run is, and where its time goes."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dpr_jax import parallel
from dpr_jax.model.bert import BertShape
from dpr_jax.model.flops import forward_flops, peak_flops
from dpr_jax.training.step import Batch

TRACE_AFTER = 2  # updates that compile and warm up before a trace begins


class Work(NamedTuple):
    """What one batch of this process asks for.

    Attributes:
      questions: number of them.
      tokens: real tokens, of questions and passages.
      slots: tokens computed, padding included.
      flops: multiplications and additions of the towers for the real tokens, forward and backward.
      wait_s: how long the devices' host waited for it.
    """

    questions: int
    tokens: int
    slots: int
    flops: float
    wait_s: float


def next_batch(stream: Iterator[Batch], shape: BertShape, pooling: str) -> tuple[Batch, Work]:
    """The next batch, and what it costs."""
    began_s = time.monotonic()
    batch = next(stream)
    wait_s = time.monotonic() - began_s
    lengths = np.concatenate([batch.question.lengths_B, batch.passages.lengths_B])
    work = Work(
        questions=len(batch.question.lengths_B),
        tokens=int(lengths.sum()),
        slots=batch.question.slots + batch.passages.slots,
        flops=3 * forward_flops(shape, lengths, pooling),  # backward is twice forward
        wait_s=wait_s,
    )
    return batch, work


class Meter:
    """Speed over the updates since it was last read; every process is taken to do as much as this
    one.
    """

    def __init__(self) -> None:
        """The clock starts with `restart`."""
        self._peak = peak_flops()
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()
        self._started = False  # an update, since the last reading
        self.restart()

    def restart(self) -> None:
        """Forgets what came before: compilation, a validation, a checkpoint."""
        self._done: list[Work] = []
        self._began_s = time.monotonic()

    def started(self, batch: Batch, seconds: float) -> None:
        """An update of `batch` was started within so many seconds; where its shape is new, they
        went into compiling and do not count.
        """
        self._started = True
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shape not in self._compiled:
            self._compiled.add(shape)
            self._began_s += seconds

    def add(self, work: Work) -> None:
        """One update whose metrics have been read, so that it is done."""
        self._done.append(work)

    def read(self) -> dict[str, float]:
        """Rates of all processes together, and the parts of a step; starts anew.

        Empty when nothing was done, or nothing was started since the last reading: two updates that
          are read one after the other may
        have been done at once, as on a CPU, where starting an update waits for the one before.
        """
        done, passed_s = self._done, time.monotonic() - self._began_s
        started, self._started = self._started, False
        self.restart()
        if not (done and started):
            return {}
        total = Work(*map(sum, zip(*done, strict=True)))
        wait_s = total.wait_s / len(done)
        values = {
            "examples_per_s": total.questions * jax.process_count() / passed_s,
            "tokens_per_s": total.tokens * jax.process_count() / passed_s,
            "padding_share": 1 - total.tokens / total.slots,
            "data_wait_s": wait_s,
            "compute_s": max(passed_s / len(done) - wait_s, 0.0),
        }
        if self._peak:
            values["mfu"] = total.flops / (passed_s * self._peak)
        return values


class Trace:
    """A profile of a few updates, for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, *, after: int, steps: int | None) -> None:
        """Traces `steps` updates, beginning two after update `after`; only process 0 writes."""
        self._folder = folder
        self._first = after + TRACE_AFTER + 1
        self._steps = (steps or 0) if parallel.is_main() else 0
        self._stack = contextlib.ExitStack()

    def before(self, step: int) -> None:
        """To be called before every update."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._stack.callback(jax.profiler.stop_trace)
        if self._steps and step == self._first + self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is under way."""
        self._stack.close()
