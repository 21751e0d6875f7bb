"""Chooses settings by measuring: the fastest index that has a wanted recall.

What takes a build (partitions, quantization) is tried by a walk, one setting after the other, a
step at a time as long as that is faster. What takes none (how much of the index a query looks into)
is measured by `sweep`. Recall is what it is; speeds are noisy, so they are those of processor time,
a search is timed several times and the best counts, and of two indexes the faster one is found by
asking them in turn.
"""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.config import IndexConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.index import sweep, worker
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.recall import RECALL_AT
from dpr_jax.index.sweep import Point

ROUNDS = 2  # two indexes are asked in turn
REORDER_AT_MOST = 16  # times k
EF_SEARCH_AT_MOST = 64  # times k
SOAR_LAMBDA = 1.5  # the usual weight of a second partition
_BUILT = ("leaves", "dimensions_per_block", "soar_lambda")


class Tuned(NamedTuple):
    """The index that was kept.

    Attributes:
      kind: of the engine.
      folder: of its files.
      settings: what the engine's `load` needs.
      tried: every point measured, JSON values, in order.
    """

    kind: str
    folder: Path
    settings: dict[str, Any]
    tried: list[dict[str, Any]]


class _Built(NamedTuple):
    config: IndexConfig
    folder: Path
    settings: dict[str, Any]
    best: Point


def tune(
    kind: str,
    vectors: Path,
    folder: Path,
    config: IndexConfig,
    shards: list[np.ndarray],
    queries_QD: np.ndarray,
    *,
    build_of: Path | None = None,
) -> Tuned:
    """Builds indexes below `folder`, and keeps the fastest that reaches config.target_recall.

    Args:
      kind: of the engine.
      vectors: folder of the embeddings, by which recall is measured.
      folder: exists, empty.
      config: settings that are None are chosen; the others stay.
      shards: the vectors, in corpus order.
      queries_QD: float32, to measure with.
      build_of: folder of the same vectors made narrower, to build of; None builds of `vectors`.

    Raises:
      InputError: no setting reaches the target, with the best that was; an engine crashed.
    """
    target = config.target_recall
    count = sum(len(shard) for shard in shards)
    k = min(RECALL_AT, count)
    exact_QK, _ = ExactIndex(shards).search(queries_QD, k)
    tried: list[dict[str, Any]] = []

    def sweep_of(place: Path, settings: dict[str, Any], knobs: dict[str, list[int]]) -> list[Point]:
        return worker.sweep(
            kind,
            vectors,
            place,
            settings,
            knobs=knobs,
            target=target,
            queries_QD=queries_QD,
            exact_QK=exact_QK,
        )

    def attempt(changed: IndexConfig) -> _Built:
        place = folder / f"{len(tried)}"
        place.mkdir()
        start_s = time.perf_counter()
        settings = worker.build(kind, build_of or vectors, place, dataclasses.asdict(changed))
        build_s = time.perf_counter() - start_s
        points = sweep_of(place, settings, search_knobs(settings, config, k, count))
        built = {name: settings[name] for name in _BUILT if name in settings}
        tried.extend(
            {**built, "build_s": round(build_s, 1), **sweep.to_json(point)} for point in points
        )
        best = sweep.best(points, target)
        say(
            f"index: {_words(built) or kind}, built in {build_s:,.0f} s: {_words(best.settings)},"
            f" {_found(best)}"
        )
        return _Built(changed, place, settings | best.settings, best)

    def wins(challenger: _Built, champion: _Built) -> bool:
        both = (challenger, champion)
        if not all(built.best.reaches(target) for built in both):
            return challenger.best.recall > champion.best.recall
        speeds = [
            [sweep_of(it.folder, it.settings, {})[0].queries_per_cpu_s for it in both]
            for _ in range(ROUNDS)
        ]
        new, old = np.max(speeds, axis=0)
        return new > old

    champion = attempt(config)
    for name, values in _walks(champion.settings):
        if getattr(champion.config, name) is not None:
            continue  # set by hand, or found by the walk the other way
        for value in values:
            challenger = attempt(dataclasses.replace(champion.config, **{name: value}))
            better = wins(challenger, champion)
            loser, champion = (champion, challenger) if better else (challenger, champion)
            shutil.rmtree(loser.folder)
            if not better:
                break
    if not champion.best.reaches(target):
        wider = "raise --index.dimensions" if build_of else "give --index.kind exact"
        raise InputError(
            f"no setting of {kind} reaches recall@{RECALL_AT} {target:g} by a standard error; the"
            f" best, {_words(champion.settings)}, has {_found(champion.best)}: lower"
            f" --index.target-recall, or {wider}"
        )
    return Tuned(kind, champion.folder, champion.settings, tried)


def _walks(settings: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Returns settings that take a build, with values to try as long as each beats the last."""
    walks: list[tuple[str, list[float]]] = []
    if "soar_lambda" in settings:
        walks.append(("soar_lambda", [SOAR_LAMBDA]))
    # a factory string of one's own may say how many
    if "leaves" in settings and "{leaves}" in settings.get("factory", "{leaves}"):
        leaves = settings["leaves"]
        walks.append(("leaves", [2 * leaves, 4 * leaves]))
        walks.append(("leaves", [max(leaves // 2, 1), max(leaves // 4, 1)]))
    if "dimensions_per_block" in settings:
        block = settings["dimensions_per_block"]
        walks.append(("dimensions_per_block", [block + 1, block + 2]))
    return walks


def search_knobs(
    settings: dict[str, Any], config: IndexConfig, k: int, count: int
) -> dict[str, list[int]]:
    """Returns the settings that take no build, with values to try: one if it is set by hand."""
    ladders = {
        "leaves_to_search": lambda: sweep.ladder(1, settings["leaves"], steps=8),
        "ef_search": lambda: sweep.ladder(k, EF_SEARCH_AT_MOST * k, steps=4),
        "reorder": lambda: sweep.ladder(k, min(REORDER_AT_MOST * k, count), steps=2),
    }
    return {
        name: ladder() if getattr(config, name) is None else [getattr(config, name)]
        for name, ladder in ladders.items()
        if name in settings
    }


def _found(point: Point) -> str:
    return (
        f"recall {point.recall:.4f} ± {point.standard_error:.4f}, {point.queries_per_cpu_s:,.0f}"
        " queries per second of one core"
    )


def _words(settings: dict[str, Any]) -> str:
    """Puts settings into a line, such as "leaves 400, reorder 200"."""
    return ", ".join(
        f"{name.replace('_', ' ')} {settings[name]:,}"
        for name in (*_BUILT, "leaves_to_search", "ef_search", "reorder")
        if settings.get(name) is not None
    )
