"""Times encoding with dpr_jax and with other engines: same model, same passages, in turns.

  python benchmarks/encode.py nq_natural/passages.tsv --passages 2000
  python benchmarks/encode.py nq_natural/passages.tsv --passages 2000
  --engines sentence-transformers onnxruntime openvino representax

Needs the extra `bench`, and whatever of onnxruntime, onnx, openvino and representax is compared
with (engines.py). Each engine first tries its batch sizes and precisions on some of the
passages. The best setting of each then encodes all of them, in turns with the others', and the best
turn counts. Settings under half as fast as the best on a few passages are not tried further, such
as bfloat16 on a processor without instructions for it; the first line names the processor and its
instructions. Ours gets a CPU device per core, as in `dpr encode`.

Wall time and CPU time of the whole process are printed: on a busy machine compare the second.
Printed too is each engine's least cosine with our float32 vectors. Give it more than 1,024
passages: fewer are padded to coarser lengths.
"""

import argparse
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from engines import ENGINES, Engine

from dpr_jax import host
from dpr_jax.config import ModelConfig
from dpr_jax.data.readers.formats import read_passages
from dpr_jax.model.embed import load_embedder
from dpr_jax.model.tokenizer import Text

MODEL = "packaged:all-MiniLM-L6-v2"
# least cosine with float32; in bfloat16 throughout, as PyTorch computes it, 0.996 was seen
SAME = 0.99
FEW = 16  # passages on which settings may drop out


class Taken(NamedTuple):
    """Time of one turn."""

    wall_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("passages_file", type=Path)
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=160, help="longest passage")
    parser.add_argument(
        "--tried-on", type=int, default=256, help="passages per trial; 0 takes the first settings"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["sentence-transformers"])
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    arguments = parser.parse_args()
    host.use_one_device_per_core()
    if devices := os.environ.get(host.CPU_DEVICES):  # JAX is imported already
        jax.config.update("jax_num_cpu_devices", int(devices))

    everything = [passage for _, passage in read_passages(arguments.passages_file)]
    step = max(1, len(everything) // arguments.passages)
    texts = [(one.title, one.text) for one in everything[::step]][: arguments.passages]
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", *arguments.engines)]
    print(f"{', '.join(versions)}, {len(texts):,} passages, ", end="")
    print(f"cut at {arguments.tokens} tokens; {_processor()}")

    ours = [
        _ours(arguments.tokens, dtype, batch_tokens)
        for dtype in arguments.dtypes
        for batch_tokens in (1024, 2048, 4096)
    ]
    theirs = [
        [
            engine
            for dtype in arguments.dtypes
            for engine in ENGINES[name](MODEL, arguments.tokens, dtype)
        ]
        for name in arguments.engines
    ]
    engines = [settings for settings in (ours, *theirs) if settings]
    if arguments.tried_on:
        some = texts[:: max(1, len(texts) // arguments.tried_on)]
        best = [_best(settings, some) for settings in engines]
    else:
        best = [settings[0] for settings in engines]

    model = ModelConfig(max_passage_tokens=arguments.tokens)
    tokenize = load_embedder(MODEL, "passage", model=model).tokenize
    tokens = int(tokenize(texts).lengths_N.sum())
    turns: dict[str, list[Taken]] = {engine.name: [] for engine in best}
    vectors = [engine.encode(texts) for engine in best]  # compiles every shape
    for _ in range(arguments.rounds):
        for engine in best:
            turns[engine.name].append(_taken(engine, texts))
    exact = _ours(arguments.tokens, "float32", 1024).encode(texts)
    least = []
    for engine, found in zip(best, vectors, strict=True):
        wall_s, cpu_s = map(min, zip(*turns[engine.name], strict=True))
        least.append(Taken(wall_s, cpu_s))
        cosine = (found * exact).sum(axis=1).min()
        print(
            f"{engine.name}: {len(texts) / wall_s:.1f} passages/s, {tokens / wall_s:,.0f} real"
            f" tokens/s; {tokens / cpu_s:,.0f} per second of CPU time; least cosine with float32"
            f" {cosine:.5f}",
            flush=True,
        )
        if cosine < SAME:
            sys.exit(f"least cosine {cosine:.5f}: these are not the same vectors")
    for engine, taken in zip(best[1:], least[1:], strict=True):
        print(
            f"ours is {taken.wall_s / least[0].wall_s:.2f} times as fast as {engine.name},"
            f" {taken.cpu_s / least[0].cpu_s:.2f} times by CPU time"
        )


def _ours(tokens: int, dtype: str, batch_tokens: int) -> Engine:
    model = ModelConfig(max_passage_tokens=tokens)
    embedder = load_embedder(MODEL, "passage", model=model, batch_tokens=batch_tokens, dtype=dtype)
    devices = f"{jax.local_device_count()} devices"
    return Engine(f"dpr_jax {dtype}, {devices} of {batch_tokens} tokens", embedder.encode)


def _best(engines: list[Engine], texts: list[Text]) -> Engine:
    """Returns the engine that takes the least CPU time, of two turns after one that compiles."""
    few = [_least_cpu_s(engine, texts[:FEW]) for engine in engines]
    taken = []
    for engine, few_s in zip(engines, few, strict=True):
        if few_s > 2 * min(few):
            rate = f"{FEW / few_s:.1f} passages per CPU second on {FEW}"
            print(f"  not tried further, {engine.name}: {rate}", flush=True)
            taken.append(np.inf)
            continue
        taken.append(_least_cpu_s(engine, texts))
        rate = f"{len(texts) / taken[-1]:.1f} passages per CPU second"
        print(f"  tried {engine.name}: {rate}", flush=True)
    return engines[int(np.argmin(taken))]


def _processor() -> str:
    """Returns the processor's name and the instructions that matter here, where Linux says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "processor unknown"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    found = [name for name in known if name in host.processor_features()]
    return (
        f"{facts.get('model name', 'processor unknown')} with"
        f" {', '.join(found) or 'none of ' + ', '.join(known)}"
    )


def _least_cpu_s(engine: Engine, texts: list[Text]) -> float:
    engine.encode(texts)
    return min(_taken(engine, texts).cpu_s for _ in range(2))


def _taken(engine: Engine, texts: list[Text]) -> Taken:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    engine.encode(texts)
    return Taken(time.perf_counter() - wall_s, time.process_time() - cpu_s)


if __name__ == "__main__":
    main()
