"""The checks that types cannot make: bounds of single settings, and rules between settings."""

import dataclasses
import math
import typing
from typing import Any

from dpr_jax.bounds import Bounds
from dpr_jax.config import Config
from dpr_jax.errors import InputError


def validate(config: Config) -> None:
    """Checks bounds, which stand beside the fields, and the rules between settings.

    Raises:
      InputError: with the key, its value and the rule.
    """
    _check_bounds(config, "")
    mine, train, data = config.mine, config.train, config.data
    if mine.window < mine.skip + mine.depth:
        _refuse("mine.window", mine.window, "mine.skip + mine.depth or more")
    if not mine.sources or len({*mine.sources}) < len(mine.sources):
        _refuse("mine.sources", mine.sources, "one or more retrievers, each once")
    if mine.enabled is False and config.rounds > 1:
        rule = "1 when mine.enabled is false: a further round trains on what it mined"
        _refuse("rounds", config.rounds, rule)
    if not config.evaluate.cutoffs:
        _refuse("evaluate.cutoffs", config.evaluate.cutoffs, "one or more numbers")
    if data.split_words and data.split_tokens:
        rule = "None when data.split_words is set: documents are split by words or by tokens"
        _refuse("data.split_tokens", data.split_tokens, rule)
    if (data.split_stride_tokens or 0) > (data.split_tokens or 0):
        rule = "at most data.split_tokens: a larger one would leave out text between windows"
        _refuse("data.split_stride_tokens", data.split_stride_tokens, rule)
    if train.patience:
        if not train.validate_every_steps:
            rule = "1 or more where train.patience is set, which counts validations"
            _refuse("train.validate_every_steps", train.validate_every_steps, rule)
        if not data.dev:
            _refuse("data.dev", data.dev, "a file of questions where train.patience is set")
    files = data.train_files
    for key, named in (("data.train", files), ("data.test", data.test_files)):
        if not all(named):
            _refuse(key, named, "files, none of them empty")
    if train.upsampling and files and len(train.upsampling) != len(files):
        rule = f"a number for each of the {len(files)} files of data.train, or empty"
        _refuse("train.upsampling", train.upsampling, rule)
    if len(files) > 1 and data.train_qrels:
        rule = (
            "None where data.train names several files, whose question ids it could not tell apart"
        )
        _refuse("data.train_qrels", data.train_qrels, rule)
    if len(data.test_files) > 1 and data.test_qrels:
        rule = "None where data.test names several sets, whose question ids it could not tell apart"
        _refuse("data.test_qrels", data.test_qrels, rule)
    if train.total_steps is not None and train.epochs is not None:
        rule = f"None beside train.total_steps = {train.total_steps}; set one of the two"
        _refuse("train.epochs", train.epochs, rule)
    if train.hard_negatives == 0:
        rule = "1 or more when train.{}"
        if train.distillation != "off":
            rule = rule.format("distillation is set, which compares a question's own passages")
            _refuse("train.hard_negatives", 0, rule)
        if train.batch_size == 1:
            rule = rule.format("batch_size is 1: a question without negatives teaches nothing")
            _refuse("train.hard_negatives", 0, rule)


def _check_bounds(part: Any, prefix: str) -> None:
    for name, hint in typing.get_type_hints(type(part), include_extras=True).items():
        value = getattr(part, name)
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{prefix}{name}.")
        for bounds in bounds_in(hint):
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not _holds(bounds, number):
                    _refuse(prefix + name, value, _in_words(bounds))


def bounds_in(hint: Any) -> list[Bounds]:
    """Returns the bounds in a type hint, also inside `| None` and tuples."""
    found = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Bounds)]
    inner = typing.get_args(hint) if not found else ()
    return found + [bounds for one in inner for bounds in bounds_in(one)]


def _holds(bounds: Bounds, value: float) -> bool:
    least, most, above, below, _ = bounds
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _in_words(bounds: Bounds) -> str:
    least, most, above, below, unit = bounds
    parts = [
        f"{least:,} or more" if least is not None else "",
        f"greater than {above:,}" if above is not None else "",
        f"at most {most:,}" if most is not None else "",
        f"less than {below:,}" if below is not None else "",
    ]
    return " and ".join(part for part in parts if part) + (f", {unit}" if unit else "")


def _refuse(key: str, value: Any, rule: str) -> None:
    raise InputError(f"{key} is {value!r}; it must be {rule}")
