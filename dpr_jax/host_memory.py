"""How this process gets the memory of the host."""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
ASKED = "DPR_ASKED_FOR_HUGE_PAGES"  # or glibc's setting would be asked for again where it is taken away
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def want_huge_pages(system: Path = _SYSTEM) -> None:
    """Starts this process again with huge pages for large memory, where the system gives them to those who ask.

    On a CPU, XLA takes all temporary memory of a program at once, every time it runs, and glibc returns so large a piece to the system
    when it ends: with pages of 4 kB, a fifth of a training step goes into faults (docs/log.md). glibc reads the setting when a process
    starts. To be called first, by a program that its command line starts anew as it was: the process keeps its id and its standard
    streams, and loses all else. Where the setting is made already, or nothing can be had by it, nothing happens.

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
