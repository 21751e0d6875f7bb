"""How this process holds its memory on a CPU."""

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def keep_freed() -> bool:
    """Makes malloc keep the memory that is freed, for the next allocation of its size.

    XLA's CPU takes all temporary memory of a program at once, every time it runs, and glibc returns so large a piece to the system
    when it ends: every training step then faults in hundreds of megabytes page by page, a fifth to a third of its time (docs/log.md).
    To be called before there are threads, which would have got memory of their own.

    Returns:
      Whether it did: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # from the heap, never from a mapping of its own; one heap for all threads, as others are small; nothing given back
    settings = {M_MMAP_MAX: 0, M_ARENA_MAX: 1, M_TRIM_THRESHOLD: -1}
    done = [libc.mallopt(name, value) for name, value in settings.items()]
    return all(done)
