"""Asking for huge pages: once, only where one has to ask, and without losing the command or other
settings. Cores as devices: for encoding. What the processor has."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax import host

ROOT = Path(__file__).resolve().parents[1]
ASKING = """
import os, sys
from pathlib import Path
from dpr_jax import host

print("started", flush=True)
host.want_huge_pages(Path(sys.argv[1]))
print(os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[2:])
"""


def asked(system: Path, tunables: str, **changes: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", ASKING, str(system), "an argument", "--flag"],
        check=True,
        cwd=ROOT,
        env={**os.environ, **changes, "GLIBC_TUNABLES": tunables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
    ],
)
def test_where_one_has_to_ask_the_process_starts_once_more(
    before: str, after: str, tmp_path: Path
) -> None:
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    lines = asked(system, before)
    assert lines == ["started", "started", f"{after} an argument --flag"]


@pytest.mark.parametrize("says", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_elsewhere_it_goes_on_as_it_is(says: str | None, tmp_path: Path) -> None:
    system = tmp_path / "enabled"
    if says is not None:
        system.write_text(says)
    assert asked(system, "") == ["started", " an argument --flag"]


def test_what_the_user_chose_stays(tmp_path: Path) -> None:
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    chosen = "glibc.malloc.hugetlb=0"
    assert asked(system, chosen) == ["started", f"{chosen} an argument --flag"]


def test_it_asks_only_once(tmp_path: Path) -> None:
    """Where something takes glibc's setting away, the process would start again for ever."""
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    before = {host.ASKED: "1"}
    assert asked(system, "", **before) == ["started", " an argument --flag"]


@pytest.mark.parametrize(("cores", "devices"), [(1, "1"), (2, "2"), (64, "8")])
def test_encoding_sees_a_device_a_core(
    cores: int, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    environment: dict[str, str] = {}
    host.want_device_a_core(environment)
    assert environment == {"JAX_NUM_CPU_DEVICES": devices}


@pytest.mark.parametrize(
    "said",
    [
        {"JAX_NUM_CPU_DEVICES": "3"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
    ],
)
def test_a_number_of_devices_that_somebody_chose_stays(said: dict[str, str]) -> None:
    environment = dict(said)
    host.want_device_a_core(environment)
    assert environment == said


COUNTING = """
from dpr_jax import cli

def count():
    import jax
    print(len(jax.devices()))

cli.main = count
cli.entry()
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.parametrize(("command", "several"), [("encode", True), ("train", False)])
def test_jax_counts_them_in_the_program(command: str, several: bool) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", host.ASKED: "1"}
    environment.pop("XLA_FLAGS", None)
    result = subprocess.run(
        [sys.executable, "-c", COUNTING, command],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (int(result.stdout) > 1) is several


def test_the_processor_says_what_it_has(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("processor : 0\nflags\t\t: fpu fma avx2\nbugs\t\t: avx512f\n")
    features = host.processor_features(source)
    assert {"fma", "avx2"} <= features and "avx512f" not in features
    assert not host.processor_features(tmp_path / "none")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc's memory")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Memory that lies below some that is still in use, which glibc would keep."""
    pieces = [ctypes.create_string_buffer(b"x", 50_000) for _ in range(2000)]
    last = pieces.pop()
    full = _resident_mb()
    pieces.clear()
    host.give_back_memory()
    assert full - _resident_mb() > 70
    del last


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
