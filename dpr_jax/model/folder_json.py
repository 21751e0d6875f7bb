"""Reads the JSON files of a model folder, each with the kind of content that it must have."""

import json
from pathlib import Path
from typing import Any

from dpr_jax.errors import InputError


def load_json(file: Path, kind: type = dict) -> Any:
    """Returns what a JSON file of a model folder holds; an empty `kind` where there is none.

    Raises:
      InputError: the file is damaged, or holds something else than a `kind`.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the model folder again") from None
    if not isinstance(found, kind):
        raise InputError(
            f"{file} holds a {type(found).__name__}, where a {kind.__name__} is expected; copy the"
            " model folder again"
        )
    return found


def whole(file: Path, name: str, said: dict[str, Any], default: int | None) -> Any:
    """Returns a setting that is a whole number greater than 0; `default` where it is not said.

    Raises:
      InputError: the setting is something else; the message names it and its file.
    """
    value = said.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or value <= 0 or value % 1:
        raise InputError(f"{file} has {name} {value!r}; it must be a whole number greater than 0")
    return int(value)
