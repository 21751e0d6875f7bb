"""What keeping freed memory is for: a large block that was freed is there again without page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# faults of taking 64 MB a second time, in a thread as XLA's programs run in
FAULTS = """
import resource, sys, threading
from dpr_jax import host_memory

if sys.argv[1] == "keep":
    assert host_memory.keep_freed()
counts = []

def take_twice():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**26)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=take_twice)
thread.start()
thread.join()
print(counts[1])
"""


def faults(mode: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return int(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    pages = 2**26 // 4096
    assert faults("as it is") > pages / 2
    assert faults("keep") < pages / 100
