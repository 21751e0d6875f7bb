"""The host of this process: cores as devices, freed memory, features of its processor."""

import ctypes
import importlib.util
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

CPU_DEVICES = "JAX_NUM_CPU_DEVICES"
GOOGLE = "0x1ae0"  # on the PCI bus
MOST_CPU_DEVICES = 8  # each holds a copy of the weights
_PROCESSOR = Path("/proc/cpuinfo")


def use_one_device_per_core(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes JAX see a CPU as one device per core, 8 at most, unless somebody has said how many.

    XLA computes the products of attention on one thread of a device. Encoding, whose rows know
    nothing of each other, keeps more cores busy on more devices (docs/log.md). To be called before
    JAX is imported. GPUs and TPUs stay what they are.

    Args:
      environment: of this process.
    """
    flags = environment.get("XLA_FLAGS", "")
    if CPU_DEVICES in environment or "xla_force_host_platform_device_count" in flags:
        return
    environment[CPU_DEVICES] = str(min(cores(), MOST_CPU_DEVICES))


def cores(processes: int = 1) -> int:
    """Returns the cores for this process, at least 1.

    Args:
      processes: how many of the run are on this host. They share its cores, unless each is bound to
        its own.
    """
    count = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count  # macOS
    return max(1, own // processes if own == count else own)


def skip_absent_tpu(
    environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")
) -> None:
    """Keeps JAX from looking for a TPU where there is none, though libtpu is installed.

    libtpu, which `dpr plan` compiles with, first asks the network for the TPU around it, and says
    in an error log that there is none. To be called before JAX is imported.

    Args:
      environment: of this process; where it names platforms, it is left as it is.
      root: of the file system.
    """
    if "JAX_PLATFORMS" in environment or importlib.util.find_spec("libtpu") is None:
        return
    vendors = (root / "sys" / "bus" / "pci" / "devices").glob("*/vendor")
    accelerators = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")
    found = any(vendor.read_text("utf-8").strip() == GOOGLE for vendor in vendors)
    if not found and not any(any((root / "dev").glob(name)) for name in accelerators):
        environment["JAX_PLATFORMS"] = "cpu"


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
    """Returns the processor's instructions in Linux's words, such as avx2; none on other systems.

    Args:
      source: what the system says of its processors.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))


def available_bytes(root: Path = Path("/")) -> Iterator[int]:
    """Yields the memory that the host says is available, and what a container's limit leaves."""
    meminfo = root / "proc" / "meminfo"
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    cgroup = root / "sys" / "fs" / "cgroup"
    for folder, limit, used, cache in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (
            cgroup / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        if all((folder / name).exists() for name in (limit, used, "memory.stat")):
            bounds = [(folder / name).read_text("utf-8").strip() for name in (limit, used)]
            words = (folder / "memory.stat").read_text("utf-8").split()
            stat = dict(zip(words[::2], words[1::2], strict=True))
            if all(text.isdigit() for text in bounds):  # not "max"
                # file pages that nobody used lately are dropped before memory runs out
                yield int(bounds[0]) - int(bounds[1]) + int(stat.get(cache, 0))
