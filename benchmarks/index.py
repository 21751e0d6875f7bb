"""Compares exact search, ScaNN, and FAISS IVF-PQ and HNSW on the vectors of a retriever.

  dpr encode --workdir runs/nq --encode.questions test
  python benchmarks/index.py --workdir runs/nq --work runs/index_bench
  python benchmarks/index.py --workdir runs/nq --work runs/index_bench_1m --rows 1000000

Each engine is built in a process of its own. Its settings at search time are those that `dpr index`
finds for --target. Then all are asked in turns, each time in a fresh process. Indexes and settings
are kept in --work: a killed run goes on, and engines can be built one by one (--engines scann).
Settings can be added to an engine: `scann-soar:leaves=4000`. With --rows the corpus is made larger
(see `mixtures`).

The table has a line per engine: recall@10 and @100 of the questions against exact search; questions
per second by the clock and of processor time, all asked at once, on one core and on all, in the
best round; the median and 99th percentile of single questions, in the median round; build time,
size on disk, and memory.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import IndexConfig
from dpr_jax.index import embeddings, sweep, tune, worker
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import engine
from dpr_jax.index.recall import recall
from dpr_jax.recipes import MAIN
from dpr_jax.workdir import open_workdir

ENGINES = {
    "exact": ("exact", {}),
    "scann": ("scann", {}),
    "scann-3": ("scann", {"dimensions_per_block": 3}),
    "scann-soar": ("scann", {"soar_lambda": 1.5}),
    "scann-bfloat16": ("scann", {"reorder_dtype": "bfloat16"}),
    "scann-int8": ("scann", {"reorder_dtype": "int8"}),
    "ivf_flat": ("faiss", {"faiss": "ivf_flat"}),
    "ivf_pq": ("faiss", {"faiss": "ivf_pq"}),
    "hnsw": ("faiss", {"faiss": "hnsw"}),
}
SINGLE_QUERIES = 100
NEIGHBOURS = 10
NOISE = 0.15  # length of the noise that is added to a unit vector


def described(name: str) -> tuple[str, dict]:
    """Returns kind and settings of an engine, such as `scann-soar:leaves=4000`."""
    engine_name, _, more = name.partition(":")
    kind, options = ENGINES[engine_name]
    added = (word.split("=") for word in more.split(",") if word)
    return kind, options | {key: json.loads(value) for key, value in added}


def mixtures(shards: list[np.ndarray], count: int, seed: int = 0) -> np.ndarray:
    """Makes a corpus of `count` vectors: the real ones, then points between near real ones.

    A made vector is w a + (1 - w) b with w drawn from [0.5, 1) and b one of the ten nearest to a,
    plus Gaussian noise of length 0.15 (in units of a's length), scaled to the length of a. So it
    lies where passages lie, in the neighbourhoods that the real ones have, and is nobody's copy.

    Returns:
      float16 [count, D].
    """
    real_ND = embeddings.as_float32(shards)
    rng = np.random.default_rng(seed)
    _, near_NK = ExactIndex(shards).search(real_ND, NEIGHBOURS + 1)
    made_MD = np.empty((count, real_ND.shape[1]), np.float16)
    made_MD[: len(real_ND)] = real_ND[:count]
    for start in range(len(real_ND), count, 65536):
        rows = min(65536, count - start)
        first_B = rng.integers(0, len(real_ND), rows)
        second_B = near_NK[first_B, rng.integers(1, NEIGHBOURS + 1, rows)]
        weight_B1 = rng.uniform(0.5, 1, (rows, 1)).astype(np.float32)
        a_BD, b_BD = real_ND[first_B], real_ND[second_B]
        length_B1 = np.linalg.norm(a_BD, axis=1, keepdims=True)
        noise_BD = rng.standard_normal(a_BD.shape, np.float32)
        noise_BD *= NOISE * length_B1 / np.sqrt(a_BD.shape[1])
        mixed_BD = weight_B1 * a_BD + (1 - weight_B1) * b_BD + noise_BD
        mixed_BD *= length_B1 / np.linalg.norm(mixed_BD, axis=1, keepdims=True)
        made_MD[start : start + rows] = mixed_BD
    return made_MD


def prepare(source: Path, rows: int, questions: Path, count: int, work: Path) -> Path:
    """Keeps the questions and the exact result, once; returns the folder of the vectors."""
    vectors = source
    if rows:
        vectors = work / "vectors"
        if not (vectors / "manifest.json").exists():
            shards, facts = embeddings.open_embeddings(source)
            vectors.mkdir(parents=True, exist_ok=True)
            file = vectors / "shard-00000-of-00001.npy"
            np.save(file, mixtures(shards, rows))
            origin = artifacts.made_from("mixtures", {"rows": rows}, {})
            artifacts.write_manifest(
                vectors / "manifest.json",
                origin,
                [file],
                count=rows,
                width=facts["width"],
            )
    if not (work / "exact.npz").exists():
        work.mkdir(parents=True, exist_ok=True)
        shards = embeddings.open_shards(vectors)
        asked_QD = embeddings.open_shards(questions)[0][:count].astype(np.float32)
        scores_QK, _ = ExactIndex(shards).search(asked_QD, 100)
        np.savez(work / "exact.npz", queries=asked_QD, scores=scores_QK)
    return vectors


def run_child(verb: str, *args: str) -> dict:
    """Runs a function of this file in a fresh process.

    Returns:
      What it printed, and its largest resident memory in MB.
    """
    command = [sys.executable, __file__, "--child", verb, *args]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{verb} {args[0]} failed")
    return {**json.loads(output.splitlines()[-1]), "peak_mb": usage.ru_maxrss / 1024}


def build(name: str, vectors: str, folder: str) -> dict:
    kind, options = described(name)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    index = engine(kind).build(
        embeddings.open_shards(Path(vectors)), IndexConfig(kind=kind, **options)
    )
    index.save(Path(folder))
    return {
        "settings": index.settings,
        "build_s": time.perf_counter() - start_s,
        "build_cpu_s": time.process_time() - start_cpu_s,
    }


def ask(name: str, vectors: str, folder: str, settings: str, exact: str) -> dict:
    """Measures recall, speed and latency of a setting, on the cores that the process may use."""
    index = engine(described(name)[0]).load(Path(folder), json.loads(settings))
    known = np.load(exact)
    queries_QD, exact_QK = known["queries"], known["scores"]
    _, rows_QK = index.search(queries_QD, 100)
    shards = embeddings.open_shards(Path(vectors))
    taken, cpu = [], []
    for _ in range(3):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        index.search(queries_QD, 100)
        taken.append(time.perf_counter() - start_s)
        cpu.append(time.process_time() - start_cpu_s)
    index.search(queries_QD[:1], 100)
    single = []
    for query_D in queries_QD[:SINGLE_QUERIES]:
        start_s = time.perf_counter()
        index.search(query_D[None], 100)
        single.append(1000 * (time.perf_counter() - start_s))
    return {
        "recall@10": recall(shards, queries_QD, exact_QK[:, :10], rows_QK[:, :10]).mean(),
        "recall@100": recall(shards, queries_QD, exact_QK, rows_QK).mean(),
        "queries_per_s": len(queries_QD) / min(taken),
        "queries_per_cpu_s": len(queries_QD) / min(cpu),
        "p50_ms": np.percentile(single, 50),
        "p99_ms": np.percentile(single, 99),
    }


def chosen(name: str, vectors: Path, work: Path, target: float) -> dict:
    """Builds an engine and finds its settings, as far as that is not done."""
    folder, exact = work / name, work / "exact.npz"
    built, found = work / f"{name}.json", work / f"{name}.at-{target:g}.json"
    if found.exists():
        return artifacts.read_json(found)
    if not built.exists():
        folder.mkdir(exist_ok=True)
        facts = run_child("build", name, str(vectors), str(folder))
        size = sum(file.stat().st_size for file in folder.iterdir())
        artifacts.write_json(built, {**facts, "disk_mb": size / 1e6})
    facts = artifacts.read_json(built)
    kind, options = described(name)
    known = np.load(exact)
    count = facts["settings"].get("count", 0)
    points = worker.sweep(
        kind,
        vectors,
        folder,
        facts["settings"],
        knobs=tune.search_knobs(facts["settings"], IndexConfig(**options), 100, count),
        target=target,
        queries_QD=known["queries"],
        exact_QK=known["scores"],
    )
    facts |= {
        "chosen": sweep.best(points, target).settings,
        "tried": [dataclasses.asdict(point) for point in points],
    }
    artifacts.write_json(found, facts)
    return facts


def measure(name: str, facts: dict, vectors: Path, work: Path) -> dict:
    """Calls `ask` in fresh processes, on all cores and on one."""
    settings = json.dumps(facts["settings"] | facts["chosen"])
    args = (name, str(vectors), str(work / name), settings, str(work / "exact.npz"))
    cores = os.sched_getaffinity(0)
    everything = run_child("ask", *args)
    os.sched_setaffinity(0, {min(cores)})
    alone = run_child("ask", *args)
    os.sched_setaffinity(0, cores)
    return {"all": everything, "one": alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--retriever", default=MAIN)
    parser.add_argument("--split", default="test", help="encoded questions to ask")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=4, help="of asking, in turns")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    args = parser.parse_args()
    retriever = open_workdir(args.workdir, new=False).retriever(args.retriever)
    questions = retriever.current(f"questions/{args.split}")
    source = retriever.current("embeddings")
    vectors = prepare(source, args.rows, questions, args.queries, args.work)
    found = {}
    for name in args.engines:
        found[name] = chosen(name, vectors, args.work, args.target)
        print(f"{name}: built, {found[name]['chosen']}", file=sys.stderr, flush=True)
    asked: dict[str, list[dict]] = {name: [] for name in args.engines}
    for _ in range(args.rounds):
        for name, rounds in asked.items():
            rounds.append(measure(name, found[name], vectors, args.work))
    print(
        "| engine | settings | recall@10 | recall@100 | questions/s, one core | all cores | per CPU"
        " second, one core / all | one question, p50 / p99 ms, one core | all cores | build, s (CPU"
        " s) | peak, MB | disk, MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, rounds in asked.items():
        artifacts.write_json(args.work / f"{name}.measured.json", rounds)
        print(line(name, found[name], rounds))


def line(name: str, facts: dict, rounds: list[dict]) -> str:
    """Returns an engine's line: the best rate of all rounds, and median times of single questions.

    Other work on the machine only lowers a rate.
    """

    def over_rounds(cores: str, key: str) -> float:
        values = [each[cores][key] for each in rounds]
        return max(values) if key.startswith("queries") else np.median(values)

    first = rounds[0]["one"]
    settings = ", ".join(f"{key} {value}" for key, value in facts["chosen"].items())
    one, both = (
        {key: over_rounds(cores, key) for key in first if key != "peak_mb"}
        for cores in ("one", "all")
    )
    return (
        f"| {name} | {settings} | {first['recall@10']:.4f} | {first['recall@100']:.4f} |"
        f" {one['queries_per_s']:,.0f} | {both['queries_per_s']:,.0f} |"
        f" {one['queries_per_cpu_s']:,.0f} / {both['queries_per_cpu_s']:,.0f} | {one['p50_ms']:.2f}"
        f" / {one['p99_ms']:.2f} | {both['p50_ms']:.2f} / {both['p99_ms']:.2f} |"
        f" {facts['build_s']:.0f} ({facts['build_cpu_s']:.0f}) | {facts['peak_mb']:,.0f} |"
        f" {facts['disk_mb']:,.0f} |"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"build": build, "ask": ask}[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
