"""The other columns of passages, such as year or source, by which answers are filtered.

They lie in `fields/` beside the data set `corpus`: of each column its values, each once, and for
each row the number of its value.
"""

import array
import datetime
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError

FOLDER = "fields"
LIST = "fields.json"
MOST_VALUES = 1_000_000
MOST_CHARS = 1000
FILTERS_KEPT = 16
NO_VALUE = -1
COMPARE = {"gte": operator.ge, "gt": operator.gt, "lte": operator.le, "lt": operator.lt}

Value = str | int | float | bool
Condition = Value | Sequence[Value] | Mapping[str, str | int | float]


class PassageWithFields(Passage):
    """A passage that knows the other columns of its row.

    Attributes:
      fields: value by name.
    """

    fields: Mapping[str, Value]


def with_fields(passage: Passage, columns: Mapping[str, Any]) -> Passage:
    """Returns the passage with the texts, numbers and booleans of other columns.

    A date is a text; the members of an object are fields `OBJECT.MEMBER`. Lists, nulls, empty texts
    and numbers that are not finite are left out.
    """
    fields = _flat(columns)
    if not fields:
        return passage
    passage = PassageWithFields(*passage)
    passage.fields = fields
    return passage


def fields_of(passage: Passage) -> Mapping[str, Value]:
    """Returns the fields that `with_fields` gave to a passage."""
    return getattr(passage, "fields", {})


def _flat(columns: Mapping[str, Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in columns.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        elif isinstance(value, datetime.date):
            found[name] = value.isoformat()
        elif isinstance(value, float) and not math.isfinite(value):
            continue
        elif isinstance(value, str | int | float) and value != "":
            found[name] = value
    return found


# --- writing


class Collected:
    """The fields of passages, taken as the passages go by."""

    def __init__(self) -> None:
        self._rows = 0
        self._codes: dict[str, array.array[int]] = {}
        self._values: dict[str, dict[tuple[type, Value], int]] = {}
        self._left_out: dict[str, str] = {}

    def add(self, passage: Passage) -> None:
        """Takes the fields of the next row."""
        for name, value in fields_of(passage).items():
            if name in self._left_out:
                continue
            values = self._values.setdefault(name, {})
            code = values.setdefault((type(value), value), len(values))
            if len(values) > MOST_VALUES:
                self._leave_out(name, f"it has more than {MOST_VALUES:,} different values")
                continue
            if isinstance(value, str) and len(value) > MOST_CHARS:
                self._leave_out(name, f"a value of it has more than {MOST_CHARS:,} characters")
                continue
            codes = self._codes.setdefault(name, array.array("i"))
            codes.extend(itertools.repeat(NO_VALUE, self._rows - len(codes)))
            codes.append(code)
        self._rows += 1

    def _leave_out(self, name: str, why: str) -> None:
        self._left_out[name] = why
        self._values.pop(name, None)
        self._codes.pop(name, None)

    def saved(self) -> dict[str, np.ndarray]:
        """Returns all that was taken as arrays, for `extend` in another process."""
        names = list(self._codes)
        facts = {
            "rows": self._rows,
            "left_out": self._left_out,
            "values": {name: [value for _, value in self._values[name]] for name in names},
        }
        codes = {f"codes_{at}": np.array(self._codes[name]) for at, name in enumerate(names)}
        return {"fields": np.array(json.dumps(facts))} | codes

    def extend(self, saved: Mapping[str, np.ndarray]) -> None:
        """Takes the rows that another one saved, after its own."""
        facts = json.loads(str(saved["fields"]))
        for name, why in facts["left_out"].items():
            self._leave_out(name, why)
        for at, (name, theirs) in enumerate(facts["values"].items()):
            if name in self._left_out:
                continue
            values = self._values.setdefault(name, {})
            numbers = [values.setdefault((type(one), one), len(values)) for one in theirs]
            if len(values) > MOST_VALUES:
                self._leave_out(name, f"it has more than {MOST_VALUES:,} different values")
                continue
            codes = self._codes.setdefault(name, array.array("i"))
            codes.extend(itertools.repeat(NO_VALUE, self._rows - len(codes)))
            own = np.array([*numbers, NO_VALUE], np.int32)  # NO_VALUE, -1, is the last
            codes.frombytes(own[saved[f"codes_{at}"]].tobytes())
        self._rows += facts["rows"]

    def write(self, folder: Path, without: Iterable[int] = ()) -> list[Path]:
        """Writes `fields/` into a folder, if there are any; returns its files.

        Args:
          folder: that holds the data set `corpus`.
          without: rows that are not in it.
        """
        for name, why in self._left_out.items():
            say(f"WARNING: column {name!r} of the passages is not kept to filter by: {why}")
        if not self._codes:
            return []
        out, drop = folder / FOLDER, np.fromiter(without, np.int64)
        out.mkdir()
        for number, (name, codes) in enumerate(self._codes.items()):
            codes.extend(itertools.repeat(NO_VALUE, self._rows - len(codes)))
            np.save(out / f"{number}.npy", np.delete(np.frombuffer(codes, np.int32), drop))
            values = [value for _, value in self._values[name]]
            (out / f"{number}.json").write_text(json.dumps(values), encoding="utf-8")
        artifacts.write_json(out / LIST, list(self._codes))
        return sorted(out.iterdir())


# --- reading


class Fields:
    """The fields of a corpus, which may consist of several data sets."""

    def __init__(self, corpora: Sequence[Path], lengths: Sequence[int]) -> None:
        """Takes the folders of the data sets `corpus`, whose rows follow each other."""
        self._folders = [folder.parent / FOLDER for folder in corpora]
        self._lengths = list(lengths)
        self._names: list[list[str]] = [
            artifacts.read_json(one / LIST) if (one / LIST).exists() else []
            for one in self._folders
        ]
        self.mask_N = functools.lru_cache(maxsize=FILTERS_KEPT)(self._mask_N)
        self._column = functools.cache(self._read_column)

    @property
    def names(self) -> list[str]:
        """The names of all fields, in their order."""
        return list(dict.fromkeys(name for names in self._names for name in names))

    def of(self, row: int) -> dict[str, Value]:
        """Returns the fields of a row of the corpus."""
        part = 0
        while row >= self._lengths[part]:
            row, part = row - self._lengths[part], part + 1
        found = {}
        for name in self._names[part]:
            values, codes_N = self._column(part, name)
            if codes_N[row] != NO_VALUE:
                found[name] = values[codes_N[row]]
        return found

    def _mask_N(self, wanted: str) -> np.ndarray:
        """Returns whether each row has what a filter wants, bool [rows of the corpus].

        Args:
          wanted: JSON of {field: condition}, all of which must hold. A condition is a value, a list
            of which one must fit, or bounds by `gte`, `gt`, `lte` and `lt`. A number fits a text
            that reads as that number, as in CSV; texts are compared letter by letter.

        Raises:
          InputError: a file is damaged.
        """
        conditions: dict[str, Condition] = json.loads(wanted)
        fits = {name: _test(condition) for name, condition in conditions.items()}
        masks = []
        for part, length in enumerate(self._lengths):
            mask_N = np.ones(length, bool)
            for name, test in fits.items():
                if name not in self._names[part]:
                    mask_N[:] = False
                    continue
                values, codes_N = self._column(part, name)
                fits_V = np.array([*map(test, values), False])  # NO_VALUE, -1, is the last
                mask_N &= fits_V[codes_N]
            masks.append(mask_N)
        return np.concatenate(masks)

    def _read_column(self, part: int, name: str) -> tuple[list[Value], np.ndarray]:
        number = self._names[part].index(name)
        path = self._folders[part] / f"{number}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            codes_N = np.load(path.with_suffix(".npy"), mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} or its .npy is missing or damaged: {error}") from None
        return values, codes_N


def _test(condition: Condition) -> Callable[[Value], bool]:
    """Returns the function that tells whether a value fits."""
    if isinstance(condition, Mapping):
        bounds = [(COMPARE[name], bound) for name, bound in condition.items()]
        return lambda value: all(_within(value, *one) for one in bounds)
    listed = [condition] if isinstance(condition, str | int | float) else condition
    numbers = {one for one in listed if not isinstance(one, str | bool)}
    others = {one for one in listed if isinstance(one, str)}
    booleans = {one for one in listed if isinstance(one, bool)}

    def fits(value: Value) -> bool:
        if isinstance(value, bool):
            return value in booleans
        if isinstance(value, str):
            return value in others or (bool(numbers) and _number(value) in numbers)
        return value in numbers

    return fits


def _within(value: Value, compare: Callable[[Any, Any], bool], bound: str | float) -> bool:
    if isinstance(bound, str):
        return isinstance(value, str) and compare(value, bound)
    return not isinstance(value, bool) and compare(_number(value), bound)


def _number(value: str | float) -> float:
    """Returns a value as a number; NaN, which fits nothing, for a text that is none."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return math.nan
