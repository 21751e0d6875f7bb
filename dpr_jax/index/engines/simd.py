"""ScaNN's kernels for AVX2, which the published wheels hold and never run.

ScaNN chooses among kernels for SSE4, AVX2 and AVX-512 by flags that it sets when it is loaded. The
wheels of Linux (1.4.2 was looked into) were compiled without the macro that lets it ask the
processor, so they take every feature for absent and run the kernels for SSE4 everywhere. With those
for AVX2 a core answers 1.5 times as many questions (docs/log.md). The flags are plain variables
that the library exports.
"""

import ctypes

AVX2 = "_ZN14research_scann14flags_internal15should_use_avx2E"
NEEDED = frozenset(("avx2", "fma"))  # by ScaNN's kernels of that name


def use_avx2(library: str, features: frozenset[str]) -> bool:
    """Makes ScaNN run its kernels for AVX2 if the processor can.

    To be called before a searcher is made, which may lay out its codes by the flag. The flag of
    AVX-512 stays as it is, as its kernels were measured to be no faster.

    Args:
      library: file of ScaNN's extension module, loaded already.
      features: of the processor, as `host.processor_features` gives them.

    Returns:
      Whether they run now. False if the processor has no AVX2 or the library has no such flag;
      then nothing was changed.
    """
    try:
        flag = ctypes.c_bool.in_dll(ctypes.CDLL(library), AVX2)
    except ValueError:  # another ScaNN
        return False
    if features >= NEEDED:
        flag.value = True
    return flag.value
