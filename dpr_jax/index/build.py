"""Builds the engine's part of an index, and chooses the engine and its settings."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import needs
from dpr_jax.config import IndexConfig
from dpr_jax.console import say, size_in_words
from dpr_jax.errors import InputError
from dpr_jax.index import defaults, worker
from dpr_jax.index.engines import faiss_index, scann_index
from dpr_jax.index.reduction import Reduction
from dpr_jax.index.tune import Tuned, tune

SCANN_FROM_ROWS = 5000

# The settings that matter to each engine: another value of another setting builds nothing anew.
_SETTINGS_OF = {
    "exact": (),
    "faiss": ("faiss", "leaves", "leaves_to_search", "ef_search", "reorder"),
    "scann": (
        "leaves",
        "leaves_to_search",
        "reorder",
        "dimensions_per_block",
        "soar_lambda",
        "reorder_dtype",
    ),
}


def build(
    settings: IndexConfig,
    vectors: Path,
    shards: list[np.ndarray],
    scratch: Path,
    tuning_QD: np.ndarray,
) -> Tuned:
    """Builds an engine's files below `scratch`, in a fresh process.

    Args:
      settings: of the index.
      vectors: folder of embeddings.
      shards: its vectors, in corpus order.
      scratch: an empty folder.
      tuning_QD: float32, queries to choose settings by, where a recall is wanted.

    Raises:
      InputError: the vectors are unsound, the engine crashed, or no setting has the wanted recall.
    """
    count, width = sum(map(len, shards)), settings.dimensions or shards[0].shape[1]
    kind, why = choose_kind(settings.kind, count)
    say(f"index: {kind} ({why})")
    say(f"index: {count:,} vectors of width {width}, {_memory(kind, count, width)}")
    folder, narrow = scratch / "engine", None
    folder.mkdir()
    if settings.dimensions:
        reduction = Reduction.learn(shards, settings.reduction, settings.dimensions)
        say(f"index: {reduction.describe()}")
        narrow = scratch / "reduced"
        reduction.write(shards, narrow)
    if is_tuned(settings, count):
        return tune(kind, vectors, folder, settings, shards, tuning_QD, build_of=narrow)
    found = worker.build(kind, narrow or vectors, folder, dataclasses.asdict(settings))
    return Tuned(kind, folder, found, [])


def is_tuned(settings: IndexConfig, count: int) -> bool:
    """Returns whether the settings for `count` vectors are chosen by measuring."""
    return settings.target_recall is not None and choose_kind(settings.kind, count)[0] != "exact"


def settings_of(settings: IndexConfig, count: int) -> dict[str, Any]:
    """Returns the settings that a build of `count` vectors depends on.

    Raises:
      InputError: the engine asked for is not installed.
    """
    kind, _ = choose_kind(settings.kind, count)
    tuned = is_tuned(settings, count)
    filled = settings if tuned else defaults.fill_in(settings, count)
    chosen = {name: getattr(filled, name) for name in _SETTINGS_OF[kind]}
    chosen |= {"kind": kind, "recall_queries": settings.recall_queries}
    if settings.dimensions:
        chosen |= {"dimensions": settings.dimensions, "reduction": settings.reduction}
    if tuned:
        chosen["target_recall"] = settings.target_recall
    return chosen


def choose_kind(asked: str, count: int) -> tuple[str, str]:
    """Returns the engine to build, and why: (kind, reason).

    Raises:
      InputError: the one asked for is not installed.
    """
    if asked == "scann" and not scann_index.available():
        raise InputError(
            "index.kind is scann, which is not installed; `pip install scann` (Linux on x86, Python"
            " below 3.14) or give --index.kind faiss"
        )
    if asked != "auto":
        return asked, "as index.kind says"
    if count < SCANN_FROM_ROWS:
        return "exact", f"auto: fewer than {SCANN_FROM_ROWS:,} passages"
    if scann_index.available():
        enough = f"auto: {SCANN_FROM_ROWS:,} passages or more"
        return "scann", f"{enough}, scann is installed"
    without = "auto: scann is not installed (`pip install scann` on Linux)"
    if faiss_index.available():
        return "faiss", without
    return "exact", f"{without}, nor is faiss (`pip install faiss-cpu`)"


def _memory(kind: str, count: int, width: int) -> str:
    """Returns the memory of a build at its peak, in words."""
    if kind == "exact":
        return "copied as they are"
    return f"about {size_in_words(needs.build_bytes(kind, count, width))} of memory to build"
