"""What this process knows of its host, and takes of it: memory in huge pages, cores as devices."""

import ctypes
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
ASKED = (  # or glibc's setting would be asked for again where it is taken away
    "DPR_ASKED_FOR_HUGE_PAGES"
)
CPU_DEVICES = "JAX_NUM_CPU_DEVICES"
MOST_CPU_DEVICES = 8  # each holds a copy of the weights
_PROCESSOR = Path("/proc/cpuinfo")
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def want_huge_pages(system: Path = _SYSTEM) -> None:
    """Starts this process again with huge pages for large memory, where the system gives them to
    those who ask.

    On a CPU, XLA takes all temporary memory of a program at once, every time it runs, and glibc
    returns so large a piece to the system
    when it ends: with pages of 4 kB, a fifth of a training step goes into faults (docs/log.md).
      glibc reads the setting when a process
    starts. To be called first, by a program that its command line starts anew as it was: the
      process keeps its id and its standard
    streams, and loses all else. Where the setting is made already, or nothing can be had by it,
    nothing happens.

    Args:
      system: says what the system does: `[madvise]` in it where one has to ask.
    """
    before = os.environ.get(TUNABLES, "")
    if ASKED in os.environ or HUGE_PAGES.partition("=")[0] in before:
        return
    try:
        if "[madvise]" not in system.read_text(encoding="utf-8"):
            return
        tunables = f"{before}:{HUGE_PAGES}" if before else HUGE_PAGES
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            os.environ | {TUNABLES: tunables, ASKED: "1"},
        )
    except (OSError, ValueError):  # no such file, or no such program: slower, not worse
        return


def want_device_a_core(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has JAX see a CPU as a device for each core, 8 at most, unless somebody has said how many.

    XLA computes the products of attention on one thread of a device. Encoding, whose rows know
    nothing of each other, keeps more cores busy on more devices (docs/log.md). To be called before
    JAX is imported. GPUs and TPUs stay what they are.

    Args:
      environment: of this process.
    """
    flags = environment.get("XLA_FLAGS", "")
    if CPU_DEVICES in environment or "xla_force_host_platform_device_count" in flags:
        return
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    environment[CPU_DEVICES] = str(min(cores, MOST_CPU_DEVICES))


def give_back_memory() -> None:
    """Returns to the system what this process has freed, where the C library is glibc, which keeps
    it.

    glibc keeps a heap for each of XLA's threads, and frees only its top by itself: after a training
    of the quickstart 1.2 GB of 2.1, which processes that build an index would have to do without
    (docs/log.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def processor_features(source: Path = _PROCESSOR) -> frozenset[str]:
    """The instructions that the processor has, in the words of Linux, such as avx2; none where it
    is not Linux that says so.

    Args:
      source: what the system says of its processors.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))
