"""ScaNN's kernels for AVX2, which the published wheels hold and never run.

ScaNN chooses among kernels for SSE4, AVX2 and AVX-512 by flags that it sets when it is loaded. The
wheels of Linux (1.4.2 was looked into) were compiled without the macro that lets it ask the
processor, so every feature is absent to them and the kernels for SSE4 run everywhere. Those of AVX2
answer half as many questions again (docs/log.md). The flags are plain variables that the library
exports.
"""

import ctypes

AVX2 = "_ZN14research_scann14flags_internal15should_use_avx2E"
NEEDED = frozenset(("avx2", "fma"))  # by ScaNN's kernels of that name


def use_avx2(library: str, features: frozenset[str]) -> bool:
    """Has ScaNN run its kernels for AVX2 where the processor can; before a searcher is made, since
    it may lay out its codes by the flag.

    AVX-512 is left alone: measured, its kernels were no faster than these.

    Args:
      library: file of ScaNN's extension module, loaded already.
      features: of the processor, as `host.processor_features` gives them.

    Returns:
      Whether they run now. False where the processor has no AVX2, or the library keeps no such
        flag: then it is as it was.
    """
    try:
        flag = ctypes.c_bool.in_dll(ctypes.CDLL(library), AVX2)
    except ValueError:  # another ScaNN
        return False
    if features >= NEEDED:
        flag.value = True
    return flag.value
