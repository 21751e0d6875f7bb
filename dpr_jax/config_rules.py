"""What a setting may be, where its type does not say: one table of least values, and the rules
between settings.
"""

import functools
from collections.abc import Callable
from typing import Any

from dpr_jax.config import Config
from dpr_jax.errors import InputError

_AT_LEAST = {
    "train.batch_size": 1,
    "train.hard_negatives": 0,
    "train.chunk_size": 0,
    "train.pack_rows": 0,
    "train.total_steps": 1,
    "train.warmup_steps": 0,
    "train.clip_norm": 0,
    "train.weight_decay": 0,
    "train.freeze_layers": 0,
    "train.log_every_steps": 1,
    "train.validate_every_steps": 0,
    "train.checkpoint_every_steps": 1,
    "train.validation_hard_negatives": 0,
    "train.validation_negatives": 0,
    "data.split_words": 0,
    "data.split_tokens": 0,
    "data.split_stride_tokens": 0,
    "train.validation_passages": 0,
    "train.patience": 0,
    "train.profile_steps": 0,
    "data.max_train_questions": 0,
    "model.max_question_tokens": 4,
    "model.max_passage_tokens": 8,
    "rounds": 1,
    "mine.depth": 1,
    "mine.skip": 0,
    "encode.rows_per_shard": 1,
    "encode.batch_tokens": 0,
    "index.dimensions": 0,
    "index.leaves": 0,
    "index.leaves_to_search": 0,
    "index.reorder": 0,
    "index.ef_search": 0,
    "index.soar_lambda": 0,
    "index.dimensions_per_block": 0,
    "index.recall_queries": 1,
    "retrieve.top_k": 1,
    "retrieve.batch_size": 1,
    "retrieve.fusion_weight": 0,
    "retrieve.fusion_depth": 1,
    "evaluate.bootstrap_samples": 1,
    "evaluate.examples": 0,
}


def validate(config: Config) -> None:
    """Checks what types cannot say.

    Raises:
      InputError: with the key, its value and the rule.
    """
    for key, least in _AT_LEAST.items():
        _require(config, key, lambda value, least=least: value >= least, f"{least:,} or more")
    for key in (
        "train.learning_rate",
        "train.temperature",
        "train.teacher_temperature",
        "train.temperature_rate",
        "train.adam_eps",
    ):
        _require(config, key, lambda value: value > 0, "greater than 0")
    _require(config, "train.pack_rows", lambda value: value <= 4, "at most 4")
    _require(config, "train.layer_decay", lambda value: 0 < value <= 1, "in (0, 1]")
    _require(config, "index.target_recall", lambda value: 0 <= value <= 1, "in [0, 1]")
    _require(config, "train.dropout", lambda value: 0 <= value < 1, "in [0, 1)")
    _require(
        config,
        "train.matryoshka_widths",
        lambda widths: all(width >= 1 for width in widths),
        "numbers of at least 1",
    )
    _require(
        config,
        "mine.window",
        lambda value: value >= config.mine.skip + config.mine.depth,
        "mine.skip + mine.depth or more",
    )
    for key in ("mine.sources", "mine.later_sources"):
        _require(
            config,
            key,
            lambda value: len(set(value)) == len(value) > 0,
            "one or more sources, each once",
        )
    if not config.mine.enabled:
        rule = "1 when mine.enabled is false: a further round trains on what it mined"
        _require(config, "rounds", lambda value: value == 1, rule)
    for key in ("mine.absolute_margin", "mine.relative_margin"):
        _require(config, key, lambda value: value is None or value >= 0, "0 or more, or None")
    for key in ("mine.near_duplicate", "index.exact_recall"):
        _require(config, key, lambda value: 0 < value <= 1, "in (0, 1]")
    _require(
        config,
        "evaluate.cutoffs",
        lambda value: value and min(value) >= 1,
        "one or more numbers, each at least 1",
    )
    if config.data.split_words:
        rule = "0 when data.split_words is set: documents are split by words or by tokens"
        _require(config, "data.split_tokens", lambda value: value == 0, rule)
    rule = "at most data.split_tokens: a larger one would leave out text between windows"
    _require(
        config,
        "data.split_stride_tokens",
        lambda value: value <= config.data.split_tokens,
        rule,
    )
    _require(config, "name", lambda value: value.strip() != "", "a word, not empty")
    if config.train.patience:
        rule = "1 or more where train.patience is set, which counts validations"
        _require(config, "train.validate_every_steps", lambda value: value >= 1, rule)
        rule = "a file of questions where train.patience is set"
        _require(config, "data.dev", lambda value: value != "", rule)
    files = config.data.train_files
    _require(config, "data.train", lambda _: all(files), "files, none of them empty")
    _require(
        config,
        "train.upsampling",
        lambda factors: (
            all(factor > 0 for factor in factors)
            and len(factors) in (0, len(files) or len(factors))
        ),
        f"a number greater than 0 for each of the {len(files)} files of data.train, or empty",
    )
    if len(files) > 1:
        rule = (
            "empty where data.train names several files, whose question ids it could not tell apart"
        )
        _require(config, "data.train_qrels", lambda value: value == "", rule)
    weight = "train.distillation_weight"
    _require(config, weight, lambda value: 0 < value <= 1, "in (0, 1]")
    if config.train.distillation != "off":
        rule = "1 or more when train.distillation is set, which compares a question's own passages"
        _require(config, "train.hard_negatives", lambda value: value >= 1, rule)
    if config.train.batch_size == 1:
        rule = (
            "1 or more when train.batch_size is 1: a question without any negative has loss 0 and"
            " teaches nothing"
        )
        _require(config, "train.hard_negatives", lambda value: value >= 1, rule)


def _require(config: Config, key: str, holds: Callable[[Any], bool], rule: str) -> None:
    value = functools.reduce(getattr, key.split("."), config)
    if not holds(value):
        raise InputError(f"{key} is {value!r}; it must be {rule}")
