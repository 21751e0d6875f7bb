"""`dpr info`: what this installation is and can do."""

import importlib
import platform

import jax

from dpr_jax import artifacts, joining

BACKENDS = {"scann": "scann", "faiss": "faiss-cpu"}


def describe() -> str:
    """Returns versions, devices and working index engines, one fact per line."""
    joining.initialize()
    versions = artifacts.versions()
    lines = [f"python      {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name:<12}{version}" for name, version in versions.items()]
    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    shown = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    lines.append(
        f"devices     {shown} ({jax.default_backend()}), {jax.process_count()} process(es)"
    )
    lines.append("index       exact: works (on the devices above)")
    for module, package in BACKENDS.items():
        lines.append(f"index       {module}: {_state(module, package)}")
    return "\n".join(lines)


def _state(module: str, package: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"not here ({error}); pip install {package}"
    return "works"
