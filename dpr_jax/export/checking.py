"""The questions of the certificate with their exact answers, and asking an engine them."""

import json
import shutil
import time
from pathlib import Path

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import results_console
from dpr_jax.data.store import ROWS_PER_READ
from dpr_jax.errors import InputError
from dpr_jax.export.contract import Connection
from dpr_jax.export.source import ExportSource
from dpr_jax.index import sample
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.recall import RECALL_AT, ROUNDING
from dpr_jax.index.removed import search_without
from dpr_jax.index.sample import Sample

FOLDER = "check"
TIES = 2  # times k hits are looked at for those that score as much as the k-th
STEPS = 6  # at most so often a setting is doubled


def write(source: ExportSource, folder: Path) -> None:
    """Writes the questions that the index was certified with, and ids of their exact top 100.

    check/questions.npy is float32 [Q, D]. check/answers.json holds for each question the ids that
    are right: those of the best 100, and those that score as much as the last of them.
    """
    target = folder / FOLDER
    if (target / "answers.json").exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    queries_QD = questions(source).certificate_QD
    gone_R, k = source.corpus.removed_R, min(RECALL_AT, source.count)
    exact = ExactIndex(source.shards)
    wide = min(TIES * k, source.count)
    scores_QK, rows_QK = search_without(exact.search, gone_R, queries_QD, wide, count=exact.count)
    lowest_Q1 = scores_QK[:, k - 1 : k] - ROUNDING * np.abs(scores_QK).max(axis=1, keepdims=True)
    right_QK = (scores_QK >= lowest_Q1) & (rows_QK >= 0)
    ids = _ids(source, np.unique(rows_QK[right_QK]))
    right = [
        [ids[row] for row in rows_K[right_K].tolist()]
        for rows_K, right_K in zip(rows_QK, right_QK, strict=True)
    ]
    np.save(target / "questions.npy", queries_QD)
    artifacts.write_json(target / "answers.json", {"k": k, "right": right})


def _ids(source: ExportSource, rows_R: np.ndarray) -> dict[int, str]:
    """Returns the ids at some rows, ascending: read in order, which is faster."""
    found: dict[int, str] = {}
    for start in range(0, len(rows_R), ROWS_PER_READ):
        part_R = rows_R[start : start + ROWS_PER_READ]
        passages = source.corpus.rows(part_R)
        found |= {row: one.id for row, one in zip(part_R.tolist(), passages, strict=True)}
    return found


def questions(source: ExportSource) -> Sample:
    """Returns the questions that the index was certified with, and those it was tuned on."""
    settings, folder = source.config.index, None
    if settings.queries:
        folder = source.retriever.find(f"questions/{settings.queries}")
    return sample.draw(
        source.shards,
        folder,
        model=source.index["model"],
        certificate=settings.recall_queries,
        tuning="tried" in source.index,
        gone_R=source.corpus.removed_R,
    )


def load(folder: Path) -> tuple[np.ndarray, int, list[set[str]]]:
    """Returns what `write` wrote: questions float32 [Q, D], k, and the right ids per question."""
    answers = json.loads((folder / FOLDER / "answers.json").read_text(encoding="utf-8"))
    right = [set(ids) for ids in answers["right"]]
    return np.load(folder / FOLDER / "questions.npy"), answers["k"], right


def recall(found: list[list[str]], right: list[set[str]], k: int) -> float:
    """Returns the mean share of the exact top k among the first k found; an id counts once."""
    shares = [len({*ids[:k]} & wanted) / k for ids, wanted in zip(found, right, strict=True)]
    return float(np.mean(np.minimum(shares, 1.0)))


def run(folder: Path, connection: Connection, target: float, *, again: str) -> None:
    """Prints recall and latency, and doubles the engine's settings until the recall is reached.

    Questions are asked one at a time, so the latency is that of one client.

    Args:
      folder: of the export.
      connection: the engine.
      target: the recall that is wanted.
      again: the command line, for the message.

    Raises:
      InputError: no setting reaches the target.
    """
    queries_QD, k, right = load(folder)
    console = results_console()
    asked = dict(connection.knobs)
    for step in range(STEPS):
        connection.search(queries_QD[:1], k)  # the first one opens caches
        found, taken_ms = [], []
        for at in range(len(queries_QD)):
            start_s = time.perf_counter()
            [hits] = connection.search(queries_QD[at : at + 1], k)
            taken_ms.append(1000 * (time.perf_counter() - start_s))
            found.append([hit.id for hit in hits])
        share = recall(found, right, k)
        how = (words(connection.knobs), connection.plan())
        median, tail = np.percentile(taken_ms, [50, 99])
        console.print(
            f"recall@{k} {share:.4f} on {len(right)} questions, one at a time: p50 {median:.1f} ms,"
            f" p99 {tail:.1f} ms; {', '.join(filter(None, how))}",
            markup=False,
            soft_wrap=True,
        )
        if share >= target:
            verdict = "as exported" if step == 0 else f"set {words(connection.knobs)}"
            console.print(f"recall@{k} of {target:g} is reached: {verdict}", soft_wrap=True)
            return
        if all(connection.knobs[name] >= connection.limits[name] for name in asked):
            break
        for name, value in connection.knobs.items():
            connection.knobs[name] = max(value, min(2 * value, connection.limits[name]))
    raise InputError(
        f"recall@{k} is {share:.4f}, below {target:g}, with {words(connection.knobs)}: build the"
        f" engine's index with more, as docs/export.md says, or ask for less: {again} --target"
        f" {max(share - 0.005, 0.01):.2f}"
    )


def words(knobs: dict[str, int]) -> str:
    """Puts settings into words."""
    listed = ", ".join(f"{name} {value:,}" for name, value in knobs.items())
    return listed or "it has no settings to raise"
