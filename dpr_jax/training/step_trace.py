"""Profiles of a few updates."""

import contextlib
from pathlib import Path

import jax

from dpr_jax import parallel

TRACE_AFTER = 2  # updates that compile and warm up before a trace begins


class Trace:
    """Writes a profile of a few updates, for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, *, after: int, steps: int | None) -> None:
        """Traces `steps` updates, beginning two after update `after`; only process 0 writes."""
        self._folder = folder
        self._first = after + TRACE_AFTER + 1
        self._steps = (steps or 0) if parallel.is_main() else 0
        self._stack = contextlib.ExitStack()

    def before(self, step: int) -> None:
        """Begins or ends the trace where it is time to; called before every update."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._stack.callback(jax.profiler.stop_trace)
        if self._steps and step == self._first + self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is under way."""
        self._stack.close()
