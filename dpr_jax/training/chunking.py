"""Chooses how many texts a device encodes at once: all of a batch, or the largest chunk that fits.

What an update needs is known before it runs: XLA says so of the compiled program.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.console import say
from dpr_jax.errors import InputError

FILE = "chunk.json"  # beside the checkpoints: dropout is drawn per chunk, so resuming keeps it
RESERVE = 0.1  # share of the free memory that is left to others
GIGABYTE = 1e9


class Compiled(NamedTuple):
    """An update with its chunk size.

    Attributes:
      chunk_size: texts encoded at once on a device; None: all.
      update: (state, batch) -> (state, metrics), for batches of the shape it was compiled for.
      needed_bytes: on a device, state and batch included.
    """

    chunk_size: int | None
    update: Callable[[Any, Any], Any]
    needed_bytes: int


def largest_that_fits(
    compile_update: Callable[[int | None], Any],
    *,
    texts: int,
    free_bytes: int | None = None,
    stored: Path | None = None,
) -> Compiled:
    """Compiles an update with chunks that fit into memory, on every process alike.

    Args:
      compile_update: chunk size -> the compiled update (jax.stages.Compiled).
      texts: passages of a batch on one device.
      free_bytes: memory that a device may use; None asks the device or the host.
      stored: file that keeps the choice; one that is there is followed.

    Returns:
      The compiled update.

    Raises:
      InputError: not even one text at a time fits.
    """
    if stored is not None and stored.exists():
        chunk_size = artifacts.read_json(stored)["chunk_size"]
        return _compiled(compile_update, chunk_size)
    free_bytes = free_memory() if free_bytes is None else free_bytes
    # the least over all processes: they run one program
    free_bytes = int(parallel.all_processes(np.array([free_bytes / GIGABYTE])).min() * GIGABYTE)
    found: list[Compiled] = []
    for chunk_size in _to_try(texts, found, free_bytes):
        found.append(_compiled(compile_update, chunk_size))
        if found[-1].needed_bytes <= free_bytes:
            break
    best = found[-1]
    if best.needed_bytes > free_bytes:
        raise InputError(
            f"an update needs {best.needed_bytes / GIGABYTE:.1f} GB on a device even with chunks of"
            f" {best.chunk_size}, and {free_bytes / GIGABYTE:.1f} GB are free; give a smaller"
            " --train.batch-size or --model.max-passage-tokens, or a smaller model.init"
        )
    say(
        f"train: {best.chunk_size or 'all'} texts at once on a device (train.chunk_size): an update"
        f" needs {best.needed_bytes / GIGABYTE:.1f} GB of the {free_bytes / GIGABYTE:.1f} GB free"
    )
    if stored is not None and parallel.is_main():
        artifacts.write_json(stored, {"chunk_size": best.chunk_size})
    return best


def free_memory() -> int:
    """Returns the bytes that each of this process's devices may use, less a reserve.

    An accelerator says what it has. CPU devices share what the host has available, within the
    limit of a container.
    """
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int((1 - RESERVE) * stats["bytes_limit"])
    # what the process holds already, such as the state, is part of what an update needs
    available = min([*_available_bytes(), 2**62])
    return int((1 - RESERVE) * available / len(devices))


def _available_bytes(root: Path = Path("/")) -> Iterator[int]:
    """Yields what the host says is available, and what a container's limit leaves."""
    meminfo = root / "proc" / "meminfo"
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    cgroup = root / "sys" / "fs" / "cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        files = [cgroup / limit, cgroup / used]
        if all(file.exists() for file in files):
            texts = [file.read_text(encoding="utf-8").strip() for file in files]
            if all(text.isdigit() for text in texts):
                yield int(texts[0]) - int(texts[1])


def _compiled(compile_update: Callable[[int | None], Any], chunk_size: int | None) -> Compiled:
    update = compile_update(chunk_size)
    memory = update.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(chunk_size, update, needed)


def _to_try(texts: int, found: list[Compiled], free_bytes: int) -> Iterator[int | None]:
    """Yields chunk sizes, the largest first; after two compiles it skips those that cannot fit.

    What an update needs grows with the chunk in a line, so two programs foretell the others.
    """
    yield None
    divisors = [size for size in range(texts - 1, 0, -1) if texts % size == 0]
    last = texts
    for size in divisors:
        smallest = size == divisors[-1]
        if size > last // 2 and not smallest:
            continue
        if len(found) >= 2 and not smallest:
            (big, at_big), (small, at_small) = (
                (one.chunk_size or texts, one.needed_bytes) for one in (found[0], found[-1])
            )
            per_text = (at_big - at_small) / (big - small)
            if at_small - per_text * (small - size) > free_bytes:
                continue
        last = size
        yield size
