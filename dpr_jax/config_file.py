"""A config out of its file, as plain values for JSON, and by the names of its settings."""

import dataclasses
import hashlib
import importlib.util
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_jax.config import Config
from dpr_jax.config_rules import validate
from dpr_jax.errors import InputError


def load(path: str | Path) -> Config:
    """Runs a Python file of configs/ and returns its `config`.

    Raises:
      InputError: the file is missing, does not run, or does not define `config = Config(...)`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"config file {path} does not exist; give a file such as configs/quickstart.py"
        )
    spec = importlib.util.spec_from_file_location(f"dpr_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(
            f"config file {path} is not a Python file; it must end in .py and define config ="
            " Config(...)"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's code: whatever it raises is their input
        raise InputError(
            f"config file {path} does not run: {type(error).__name__}: {error}"
        ) from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(
            f"config file {path} must define `config = Config(...)`, found {type(config).__name__}"
        )
    validate(config)
    for function in (config.mine.filter, config.mine.teacher):
        if function is not None:
            describe(function)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of settings as nested plain dicts, with lists for tuples, as JSON gives them
    back.
    """
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        if callable(value):
            value = describe(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def describe(function: Callable[..., Any]) -> str:
    """A function of a config file by name and hash of its own lines, which is how a manifest tells
    whether it changed.

    Raises:
      InputError: it has no lines to be known by.
    """
    try:
        lines = inspect.getsource(function)
    except (TypeError, OSError):
        raise InputError(
            f"mine.filter or mine.teacher is {function!r}; it must be a function that the config"
            " file defines with `def`"
        ) from None
    return f"{function.__qualname__} {hashlib.sha256(lines.encode()).hexdigest()}"


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """All settings by dotted name, as in `train.learning_rate`."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        names += (
            keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]
        )
    return names
