"""Engine work in a fresh process: building an index, and asking one that has just been moved.

ScaNN is C++: it aborts where Python raises, does not start on old processors, and logs much to
stderr. In a process of its own a crash becomes one line to the user, and its memory is given back.
Its answers prove that the files are complete, since it has nothing else in memory.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import embeddings, reduction
from dpr_jax.index import sweep as sweeping
from dpr_jax.index.open import Parts, engine, load
from dpr_jax.index.recall import recall
from dpr_jax.index.sweep import Point

INPUT_ERROR_STATUS = 2
TIMES = 3  # a search is timed, to take the best: other work on the machine only adds


def build(kind: str, vectors: Path, folder: Path, config: dict[str, Any]) -> dict:
    """Builds an index of the embeddings in `vectors` into the empty `folder`, in a fresh process.

    Returns:
      The settings that `open.load` needs.

    Raises:
      InputError: the vectors are unsound, or the engine crashed.
    """
    job = {"verb": "build", "kind": kind, "vectors": str(vectors)}
    return _run({**job, "folder": str(folder), "config": config})


def search_fresh(
    folder: Path, parts: Parts, queries_QD: np.ndarray, k: int
) -> tuple[np.ndarray, float]:
    """Loads an index in a fresh process and searches it there, on the CPU.

    Returns:
      rows int64 [Q, k], -1 where there is no hit; and how many queries it answers per second when
      all are asked at once.

    Raises:
      InputError: the engine crashed.
    """
    with tempfile.TemporaryDirectory(prefix="dpr-index-") as name:
        queries, rows = Path(name) / "queries.npy", Path(name) / "rows.npy"
        np.save(queries, queries_QD)
        job = {"verb": "ask", "kind": parts.kind, "folder": str(folder), "k": k}
        job |= {"parts": parts._asdict(), "queries": str(queries), "rows": str(rows)}
        speed = _run(job)["queries_per_s"]
        return np.load(rows), speed


def sweep(
    kind: str,
    vectors: Path,
    folder: Path,
    settings: dict[str, Any],
    *,
    knobs: dict[str, list[int]],
    target: float,
    queries_QD: np.ndarray,
    exact_QK: np.ndarray,
) -> list[Point]:
    """Loads an index in a fresh process and measures search-time settings there; see `sweep.sweep`.

    Args:
      vectors: folder of the embeddings, whole, by which recall is measured.
      knobs: settings and their values to try.
      exact_QK: float32, scores of the exact top K.

    Raises:
      InputError: the engine crashed.
    """
    with tempfile.TemporaryDirectory(prefix="dpr-index-") as name:
        queries, exact = Path(name) / "queries.npy", Path(name) / "exact.npy"
        np.save(queries, queries_QD)
        np.save(exact, exact_QK)
        job = {"verb": "sweep", "kind": kind, "folder": str(folder)}
        job |= {"settings": settings, "vectors": str(vectors), "knobs": knobs}
        job |= {"target": target, "queries": str(queries), "exact": str(exact)}
        return [Point(**point) for point in _run(job)["points"]]


def _run(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "dpr_jax.index.worker", json.dumps(job)]
    package_root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",  # the accelerator belongs to this process
        "PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")]),
    }
    with (
        tempfile.TemporaryFile() as chatter,
        subprocess.Popen(
            command,
            # never written to: it closes when this process dies, see _end_with_parent
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=chatter,
            env=environment,
            text=True,
        ) as process,
    ):
        output = process.stdout.read()
        status = process.wait()
        chatter.seek(0)
        last_words = chatter.read().decode(errors="replace").strip().splitlines()[-1:]
    if status == 0:
        return json.loads(output.splitlines()[-1])
    if status == INPUT_ERROR_STATUS:
        raise InputError(output.splitlines()[-1])
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    raise InputError(
        f"the {job['kind']} engine failed in {job['folder']} ({how}:"
        f" {' '.join(last_words)[-300:]}); try another engine, such as --index.kind exact"
    )


def _main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(sys.argv[1])
    try:
        result = {"build": _build, "ask": _ask, "sweep": _sweep}[job["verb"]](job)
    except InputError as error:
        print(error, flush=True)
        sys.exit(INPUT_ERROR_STATUS)
    print(json.dumps(result), flush=True)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _build(job: dict[str, Any]) -> dict[str, Any]:
    vectors, folder = Path(job["vectors"]), Path(job["folder"])
    shards = embeddings.open_shards(vectors)
    index = engine(job["kind"]).build(shards, IndexConfig(**job["config"]))
    index.save(folder)
    return index.settings | reduction.carry(vectors, folder)


def _ask(job: dict[str, Any]) -> dict[str, Any]:
    index = load(Path(job["folder"]), Parts(**job["parts"]))
    queries_QD = np.load(job["queries"])
    index.search(queries_QD, job["k"])  # the first time reads files and compiles
    taken = []
    for _ in range(TIMES):
        start_s = time.perf_counter()
        _, rows_QK = index.search(queries_QD, job["k"])
        taken.append(time.perf_counter() - start_s)
    np.save(job["rows"], rows_QK)
    return {"queries_per_s": round(len(queries_QD) / min(taken), 1)}


def _sweep(job: dict[str, Any]) -> dict[str, Any]:
    shards = embeddings.open_shards(Path(job["vectors"]))
    index = load(Path(job["folder"]), Parts(job["kind"], job["settings"]))
    queries_QD, exact_QK = np.load(job["queries"]), np.load(job["exact"])
    count, k = exact_QK.shape
    index.search(queries_QD, k)

    def timed() -> tuple[float, np.ndarray]:
        taken = []
        for _ in range(TIMES):
            start_s = time.process_time()
            _, rows_QK = index.search(queries_QD, k)
            taken.append(time.process_time() - start_s)
        return count / min(taken), rows_QK

    def measure(changes: dict[str, int]) -> Point:
        index.settings.update(changes)
        speed, rows_QK = timed()
        recall_Q = recall(shards, queries_QD, exact_QK, rows_QK)
        error = float(recall_Q.std() / np.sqrt(count))
        return Point(changes, float(recall_Q.mean()), error, speed)

    def again(point: Point) -> Point:
        index.settings.update(point.settings)
        speed = max(timed()[0], point.queries_per_cpu_s)
        return dataclasses.replace(point, queries_per_cpu_s=speed)

    points = sweeping.sweep(measure, job["knobs"], job["target"])
    return {
        "points": [
            dataclasses.asdict(point) for point in sweeping.settle(points, again, job["target"])
        ]
    }


if __name__ == "__main__":
    _main()
