"""Cores as devices, for encoding; what the processor has; memory given back."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax import host

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("cores", "devices"), [(1, "1"), (2, "2"), (64, "8")])
def test_encoding_sees_a_device_a_core(
    cores: int, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    environment: dict[str, str] = {}
    host.use_one_device_per_core(environment)
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
    host.use_one_device_per_core(environment)
    assert environment == said


COUNTING = """
from dpr_jax import cli, dispatch

def count(*_):
    import jax
    print(len(jax.devices()))

dispatch.run = count
cli.main()
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.parametrize(("command", "several"), [("encode", True), ("train", False)])
def test_jax_counts_them_in_the_program(command: str, several: bool) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    result = subprocess.run(
        [sys.executable, "-c", COUNTING, command, "--workdir", "w"],
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


@pytest.mark.parametrize(
    ("environment", "installed", "file", "wanted"),
    [
        ({}, True, None, {"JAX_PLATFORMS": "cpu"}),
        ({}, False, None, {}),
        ({"JAX_PLATFORMS": ""}, True, None, {"JAX_PLATFORMS": ""}),
        ({}, True, "dev/accel0", {}),
        ({}, True, "dev/nvidia0", {}),
        ({}, True, "sys/bus/pci/devices/0000:00:04.0/vendor", {}),
    ],
)
def test_a_tpu_is_looked_for_only_where_one_may_be(
    environment: dict[str, str],
    installed: bool,
    file: str | None,
    wanted: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda _: object() if installed else None)
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("0x1ae0\n")
    host.skip_absent_tpu(environment, tmp_path)
    assert environment == wanted
