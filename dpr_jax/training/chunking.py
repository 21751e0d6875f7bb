"""Chooses how many texts a device encodes at once: all of a batch, or the largest chunk that fits.

What an update needs is known before it runs: XLA says so of the compiled program.
"""

import math
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpr_jax import artifacts, host, parallel
from dpr_jax.console import say, size_in_words
from dpr_jax.errors import InputError
from dpr_jax.training.step import Batch

FILE = "chunk.json"  # beside the checkpoints: dropout is drawn per chunk, so resuming keeps it
RESERVE = 0.1  # share of the free memory that is left to others
GIGABYTE = 1e9


class Candidate(NamedTuple):
    """An update with its chunk size.

    Attributes:
      chunk_size: texts encoded at once on a device; None: all.
      update: (state, batch) -> (state, metrics); called with the first batch's shapes it compiles
        nothing again.
      program: the same, compiled for the first batch.
      batches: from the first one on, laid out for this chunk size.
      rows: passages, or packed rows of them, of the first batch on a device.
    """

    chunk_size: int | None
    update: Callable[[Any, Any], Any]
    program: jax.stages.Compiled
    batches: Iterator[Batch]
    rows: int

    @property
    def needed_bytes(self) -> int:
        """Returns the memory needed on a device, state and batch included."""
        memory = self.program.memory_analysis()
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes


def choose(
    compiled: Callable[[int | None], Candidate],
    *,
    asked: int | None,
    questions: int,
    passages: int,
    stored: Path,
    free_bytes: int | None = None,
) -> Candidate:
    """Compiles the update with chunks that fit into memory, on every process alike.

    Args:
      compiled: chunk size -> the candidate.
      asked: train.chunk_size; None takes the largest that fits.
      questions: of the global batch.
      passages: likewise.
      stored: file that keeps the choice; one that is there is followed.
      free_bytes: memory that a device may use; None asks the device or the host.

    Returns:
      The candidate to train with.

    Raises:
      InputError: not even one text at a time fits.
    """
    free_bytes = free_memory() if free_bytes is None else free_bytes
    # the least over all processes: they run one program
    free_bytes = int(parallel.all_processes(np.array([free_bytes / GIGABYTE])).min() * GIGABYTE)
    if asked is not None:
        best = compiled(asked)
    elif stored.exists():
        best = compiled(artifacts.read_json(stored)["chunk_size"])
    else:
        best = _largest_that_fits(compiled, passages // jax.device_count(), free_bytes)
        if parallel.is_main():
            artifacts.write_json(stored, {"chunk_size": best.chunk_size})
    say(
        f"train: batch of {questions} questions and {passages} passages, on each device"
        f" {best.chunk_size or 'all'} texts at once (train.chunk_size): an update needs"
        f" {size_in_words(best.needed_bytes)} per device, {size_in_words(free_bytes)} are free"
    )
    return best


def _largest_that_fits(
    compiled: Callable[[int | None], Candidate], texts: int, free_bytes: int
) -> Candidate:
    """Tries chunk sizes that divide the texts of a device: all at once, then smaller ones."""
    best = _unless_too_large(compiled, None)
    rows = best.rows if best else texts
    tried = [(rows, best.needed_bytes if best else math.inf)]
    for size in range(rows - 1, 0, -1):
        if tried[-1][1] <= free_bytes:
            break
        if texts % size == 0 and (size == 1 or _may_fit(size, tried, free_bytes)):
            best = None  # its program and batches go before the next are made
            best = _unless_too_large(compiled, size)
            tried.append((size, best.needed_bytes if best else math.inf))
    if best is None or tried[-1][1] > free_bytes:
        needed = size_in_words(tried[-1][1]) if best else "more than there is"
        raise InputError(
            f"an update needs {needed} on a device even with one text at a"
            f" time, and {size_in_words(free_bytes)} are free; give a smaller --train.batch-size or"
            " --model.max-passage-tokens, or a smaller model.init"
        )
    return best


def _unless_too_large(
    compiled: Callable[[int | None], Candidate], size: int | None
) -> Candidate | None:
    """Returns the candidate, or None where the compiler itself says that memory is too small.

    XLA for TPUs refuses a program that does not fit; for CPUs and GPUs it says what it needs.
    """
    try:
        return compiled(size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _may_fit(size: int, tried: list[tuple[int, float]], free_bytes: int) -> bool:
    """Returns whether chunks of this size are worth compiling, judging by those that were too
    large.

    What an update needs grows with the chunk in a line, so two programs foretell the others.

    Args:
      size: at hand.
      tried: chunk sizes so far, each smaller than the one before, with the bytes they need.
      free_bytes: memory that a device may use.
    """
    if size > tried[-1][0] // 2:
        return False
    if len(tried) == 1 or math.isinf(tried[-2][1]):
        return True
    (big, at_big), (small, at_small) = tried[-2:]
    per_text = (at_big - at_small) / (big - small)
    return at_small - per_text * (small - size) <= free_bytes


def free_memory() -> int:
    """Returns the bytes that each of this process's devices may use, less a reserve.

    An accelerator says what it has. CPU devices of all processes on a host share what it has
    available, within the limit of a container.
    """
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int((1 - RESERVE) * stats["bytes_limit"])
    # what the process holds already, such as the state, is part of what an update needs
    available = min([*host.available_bytes(), 2**62])
    return int((1 - RESERVE) * available / (len(devices) * _processes_here()))


def _processes_here() -> int:
    """Returns how many processes of this run are on this host."""
    name = np.array([zlib.crc32(socket.gethostname().encode())], np.uint32)
    return int(np.sum(parallel.all_processes(name) == name))
