"""How this process gets its memory on a CPU."""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def want_huge_pages(system: Path = _SYSTEM) -> None:
    """Starts this process again with huge pages for large memory, where the system gives them to those who ask.

    XLA's CPU takes all temporary memory of a program at once, every time it runs, and glibc returns so large a piece to the system
    when it ends: with pages of 4 kB, a fifth of a training step goes into faults (docs/log.md). glibc reads the setting when a process
    starts. To be called first: the process keeps its id and its open files, and loses all else.

    Args:
      system: says what the system does: `[madvise]` in it where one has to ask.
    """
    if HUGE_PAGES.partition("=")[0] in os.environ.get(TUNABLES, ""):
        return
    try:
        asks = "[madvise]" in system.read_text(encoding="utf-8")
    except OSError:  # no Linux, or one without huge pages
        return
    if asks:
        others = os.environ.get(TUNABLES, "")
        os.environ[TUNABLES] = f"{others}:{HUGE_PAGES}" if others else HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
