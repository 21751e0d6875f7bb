"""A config out of its file, as plain values for JSON and back, and by the names of its settings."""

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_jax.config import Config
from dpr_jax.config_rules import validate
from dpr_jax.errors import InputError


class StoredFunction:
    """A function of a config file, known by name and hash alone: its file was not given.

    Attributes:
      description: what `describe` said of the function.
    """

    def __init__(self, description: str) -> None:
        self.description = description

    def __call__(self, *_: Any) -> Any:
        raise InputError(
            f"{self.description.split()[0]} is a function of the config file; give CONFIG.py"
        )


def load(path: str | Path) -> Config:
    """Runs a Python file of configs/ and returns its `config`.

    The file may import its neighbours.

    Raises:
      InputError: the file is missing, does not run, or does not define `config = Config(...)`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"config file {path} does not exist; give a file such as configs/quickstart.py"
        )
    name = f"dpr_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(
            f"config file {path} is not a Python file; it must end in .py and define"
            " config = Config(...)"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:  # the file is the user's code: whatever it raises is their input
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({last.filename}:{last.lineno})" if last.filename != __file__ else ""
        raise InputError(
            f"config file {path} does not run: {type(error).__name__}: {error}{where}"
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
    """Returns settings as nested plain dicts, with lists for tuples, as JSON gives them back."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif callable(value):
            value = describe(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(default: Any, plain: dict[str, Any], where: str) -> Any:
    """Returns `default` with the settings that `to_dict` wrote; those it lacks stay as they are.

    Args:
      default: a dataclass of settings.
      plain: nested plain values.
      where: the file that they come from, for errors.

    Raises:
      InputError: a setting is not known.
    """
    changed = {}
    known = {field.name for field in dataclasses.fields(default)}
    for name, value in plain.items():
        if name not in known:
            raise InputError(
                f"{where} holds the setting {name!r}, which this version does not know; give"
                " CONFIG.py, or another --workdir"
            )
        before = getattr(default, name)
        if dataclasses.is_dataclass(before):
            value = from_dict(before, value, where)
        elif isinstance(value, list):
            value = tuple(value)
        elif name in ("filter", "teacher") and value is not None:
            value = StoredFunction(value)
        changed[name] = value
    return dataclasses.replace(default, **changed)


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested plain values by dotted name, as in `train.learning_rate`."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def describe(function: Callable[..., Any]) -> str:
    """Returns a function of a config file by name and hash, for manifests.

    The hash covers the source of its module without the `config = ...` statement, and the modules
    beside it that it imports: a changed constant or helper counts.

    Raises:
      InputError: it has no source to be known by.
    """
    if isinstance(function, StoredFunction):
        return function.description
    try:
        file = Path(inspect.getsourcefile(function) or "")
        inspect.getsource(function)
        parts = [ast.unparse(_without_config(file))]
    except (TypeError, OSError):
        raise InputError(
            f"mine.filter or mine.teacher is {function!r}; it must be a function that the config"
            " file defines with `def`"
        ) from None
    parts += [one.read_text(encoding="utf-8") for one in _neighbours(file)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{function.__qualname__} {digest}"


def _neighbours(file: Path) -> list[Path]:
    """Returns the modules below a file's folder that it imports, and those that they import."""
    found: list[Path] = []
    waiting = [_without_config(file)]
    while waiting:
        for node in ast.walk(waiting.pop()):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            for name in names:
                path = file.parent.joinpath(*name.split("."))
                for one in (path.with_suffix(".py"), path / "__init__.py"):
                    if name and one.is_file() and one != file and one not in found:
                        found.append(one)
                        waiting.append(ast.parse(one.read_text(encoding="utf-8")))
    return sorted(found)


def _without_config(file: Path) -> ast.Module:
    """Returns a module's code without what it assigns to `config`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))

    def is_config(node: ast.stmt) -> bool:
        targets = node.targets if isinstance(node, ast.Assign) else []
        return any(isinstance(target, ast.Name) and target.id == "config" for target in targets)

    tree.body = [node for node in tree.body if not is_config(node)]
    return tree


def keys(kind: type = Config, prefix: str = "") -> dict[str, Any]:
    """Returns the type hint of every setting by dotted name, as in `train.learning_rate`."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= keys(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found
