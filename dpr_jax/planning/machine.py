"""Machines that are not here: their published figures, and their devices to compile for.

Nothing here touches a device. `set_environment` has to run before JAX is imported.
"""

import os
import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from dpr_jax.errors import InputError

if TYPE_CHECKING:
    import jax

GIB = 1 << 30
# a libtpu that finds no TPU around it
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Chip(NamedTuple):
    """Published figures of a chip.

    Attributes:
      name: for people.
      peak_flops: dense bfloat16 operations per second.
      memory_bytes: of the device.
      memory_rate: its bandwidth, bytes per second.
      link_rate: bytes per second that a chip sends to others of its machine, all links together.
      clock_hz: of the matrix units: peak_flops over what they do in a cycle; None for GPUs.
      float32_flops: dense float32 operations per second; None for TPUs, which have none.
      allocated: share of the memory that JAX takes by default.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_rate: float
    link_rate: float
    clock_hz: float | None = None
    float32_flops: float | None = None
    allocated: float = 1.0


class _Gpu(NamedTuple):
    """Other facts of a GPU that XLA's compiler needs."""

    capability: tuple[int, str]  # major version, feature extension
    cores: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    l2_bytes: int
    clock_ghz: float
    host_link_rate: float  # bytes per second and GPU to other hosts


# makers' data sheets
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.228e12, 300e9, 1.05e9),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 0.819e12, 200e9, 1.5e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1.640e12, 448e9, 1.75e9),
    "a100": Chip("NVIDIA A100 SXM 80 GB", 312e12, 80e9, 2.039e12, 300e9, None, 19.5e12, 0.75),
    "h100": Chip("NVIDIA H100 SXM 80 GB", 989e12, 80e9, 3.35e12, 450e9, None, 67e12, 0.75),
}
_GPUS = {
    "a100": _Gpu((8, "NONE"), 108, 64, 164 << 10, 163 << 10, 40 << 20, 1.41, 25e9),
    "h100": _Gpu((9, "ACCELERATED_FEATURES"), 132, 128, 228 << 10, 227 << 10, 50 << 20, 1.98, 50e9),
}
EXAMPLES = "v5e:2x4, v6e:4x4, v5p:2x2x2, gpu:h100:8, gpu:a100:2x8 (2 hosts of 8)"


class Machine(NamedTuple):
    """A machine that is not here.

    Attributes:
      topology: as it was asked for.
      platform: tpu or gpu.
      kind: key of CHIPS.
      shape: of the chips, or (hosts, GPUs of each).
    """

    topology: str
    platform: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The chip's figures; the links are those between hosts, where GPUs are on several."""
        chip = CHIPS[self.kind]
        if self.platform == "gpu" and self.shape[0] > 1:
            return chip._replace(link_rate=_GPUS[self.kind].host_link_rate)
        return chip


def parse(topology: str) -> Machine:
    """Returns the machine of a topology such as v5e:2x4 or gpu:h100:8.

    Raises:
      InputError: no such chip or shape.
    """
    found = re.fullmatch(r"(gpu:)?([a-z0-9]+):(\d+(?:x\d+)*)", topology)
    kind = found[2] if found else ""
    if not found or kind not in CHIPS or bool(found[1]) != (kind in _GPUS):
        raise InputError(
            f"--topology {topology!r} is not known; the chips are {', '.join(CHIPS)}: {EXAMPLES}"
        )
    shape = tuple(map(int, found[3].split("x")))
    platform = "gpu" if found[1] else "tpu"
    if platform == "gpu":
        shape = (1, *shape) if len(shape) == 1 else shape
    axes = {"gpu": 2, "v4": 3, "v5p": 3}.get("gpu" if platform == "gpu" else kind, 2)
    if len(shape) != axes or 0 in shape:
        raise InputError(f"--topology {topology} needs {axes} numbers above 0, such as {EXAMPLES}")
    return Machine(topology, platform, kind, shape)


def set_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps JAX away from all devices of this machine, whatever the environment says; to be called
    before JAX is imported.
    """
    environment.update(_ENVIRONMENT)


def devices(machine: Machine) -> list["jax.Device"]:
    """Returns the machine's devices, to compile for.

    Raises:
      InputError: the compiler is not installed, or knows no such shape.
    """
    from jax.experimental import topologies

    try:
        if machine.platform == "tpu":
            # a v4 chip is one device, as JAX has it by default
            options = {"chip_config_name": "megacore"} if machine.kind == "v4" else {}
            if machine.shape in ((1, 1), (1, 1, 1)):
                options["chips_per_host_bounds"] = (1, 1, 1)
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=machine.topology, **options
            )
        else:
            found = topologies.get_topology_desc(
                "",
                platform="cuda",
                target_config=_target_config(machine.kind),
                topology="x".join(map(str, (1, *machine.shape))),
            )
    except Exception as error:  # noqa: BLE001 - whatever a compiler that is not there raises
        raise _refused(machine, error) from None
    return list(found.devices)


def of_one_host(machine: Machine, every: list["jax.Device"], hosts: int) -> list["jax.Device"]:
    """Returns the devices of one host of a machine, for a program that no other host takes part in.

    XLA compiles for all chips of a TPU's topology or refuses; a host of a larger one has four.
    """
    count = len(every) // hosts
    if machine.platform == "tpu" and hosts > 1 and count == 4:
        shape = "2x2" if len(machine.shape) == 2 else "2x2x1"
        return devices(parse(f"{machine.kind}:{shape}"))
    return every[:count]


def _refused(machine: Machine, error: Exception) -> InputError:
    """Returns what to say where JAX gives no devices."""
    import importlib.util

    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    module, package, install = {
        "tpu": ("libtpu", "libtpu", 'pip install "dpr_jax[plan]"'),
        "gpu": ("jax_cuda13_plugin", "jax[cuda13]", 'pip install "jax[cuda13]"'),
    }[machine.platform]
    if importlib.util.find_spec(module) is None:
        return InputError(f"planning for {machine.topology} needs {package}: {install}")
    return InputError(
        f"--topology {machine.topology} cannot be compiled for ({type(error).__name__}: {reason});"
        f" such as {EXAMPLES}"
    )


def _target_config(kind: str) -> str:
    """Returns XLA's GpuTargetConfigProto of a card, as text."""
    gpu, chip = _GPUS[kind], CHIPS[kind]
    major, extension = gpu.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: 0 feature_extension: {extension} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {gpu.cores} fpus_per_core: {gpu.fpus_per_core}
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_memory_per_core}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  memory_bandwidth: {chip.memory_rate:.0f} l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz} device_memory_size: {chip.memory_bytes:.0f}
  device_address_bits: 64 device_vendor: "NVIDIA Corporation" name: "{chip.name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{chip.name}"
"""
