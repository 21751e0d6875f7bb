"""Measures what GradCache and remat cost and save.

  python benchmarks/gradcache.py --chunk 64
  python benchmarks/gradcache.py --run --layers 2 --batches 32

The first only compiles, and prints the memory of the step on one device. The second also runs each
step, and prints its time and how far its result is from the plain step's.

Shapes are BERT-base's with one hard negative per question, both sides 160 tokens long, AdamW,
dropout 0.1. The memory is XLA's own plan for the device at hand (`compiled.memory_analysis()`):
"state" is weights and moments, which stay; "step" is all else that the step holds at once.
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax import parallel
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Tokens, dual_params
from dpr_jax.training import optimizer
from dpr_jax.training.step import Batch, StepSettings, TrainState, train_step

GIB = 2**30


class Variant(NamedTuple):
    """A line of the table: the questions of a batch, and how the step saves memory."""

    name: str
    questions: int
    chunk_size: int | None = None
    remat: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--chunk", type=int, default=32)
    names = ["plain", "remat", "GradCache", "both"]
    parser.add_argument("--variants", nargs="+", default=names, choices=names)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--run", action="store_true", help="run each step too")
    arguments = parser.parse_args()

    device = jax.devices()[0]
    print(f"jax {jax.__version__}, one {device.device_kind}, {arguments.dtype}")
    print(f"{arguments.layers} layers, {arguments.tokens} tokens")
    variants = []
    for questions in arguments.batches:
        variants += [
            Variant("plain", questions),
            Variant("remat", questions, remat=True),
            Variant("GradCache", questions, chunk_size=arguments.chunk),
            Variant("both", questions, chunk_size=arguments.chunk, remat=True),
        ]
    variants = [one for one in variants if one.name in arguments.variants]
    # fast machine code is not needed where it is not run; memory is planned before it is made
    unrun = {"xla_backend_optimization_level": 0}
    on_cpu = device.platform == "cpu"
    options = unrun if on_cpu and not arguments.run else None
    plain: dict[int, Any] = {}
    for variant in variants:
        step, state, batch = make(variant, arguments)
        started_s = time.monotonic()
        shapes = jax.eval_shape(state), jax.eval_shape(batch)
        program = step.lower(*shapes).compile(options)
        compiled_s = time.monotonic() - started_s
        plan = program.memory_analysis()
        print(
            f"{variant.name:10} {variant.questions:5} questions: state"
            f" {plan.argument_size_in_bytes / GIB:7.2f} GiB, step"
            f" {plan.temp_size_in_bytes / GIB:8.2f} GiB, compiled in {compiled_s:.0f} s",
            flush=True,
        )
        if arguments.run:
            moved, seconds = timed(program, state(), batch())
            reference = plain.setdefault(variant.questions, moved)
            print(f"  {seconds:.2f} s a step, {apart(moved, reference):.1e} apart")


def make(variant: Variant, arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Returns the jitted step of one device, and functions that make its state and its batch."""
    shape = BertShape(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    )
    # chunks draw other dropout than a whole batch does: results can be compared without it
    encoder = Encoder(
        shape,
        dropout=0.0 if arguments.run else 0.1,
        dtype=jnp.dtype(arguments.dtype),
        remat=variant.remat,
    )
    rate = functools.partial(optimizer.learning_rate, peak=1.0, warmup_steps=0, total_steps=1000)
    # large rate and epsilon: the first update is about the gradient, not its sign, and not lost in
    # the weights' rounding
    adamw = optimizer.make(rate, weight_decay=0.0, eps=1.0, clip_norm=2.0)
    settings = StepSettings(
        encoder,
        adamw,
        temperature=1.0,
        mask_duplicates=True,
        seed=0,
        chunk_size=variant.chunk_size,
    )
    spmd = parallel.spmd("shard_map", jax.devices()[:1])
    step = spmd.map(
        functools.partial(train_step, settings=settings, axis=parallel.AXIS),
        donate=True,
    )

    def tokens(rows: int) -> Tokens:
        ids_BL = np.random.default_rng(0).integers(1000, 30000, (rows, arguments.tokens), np.int32)
        return Tokens(ids_BL, np.full(rows, arguments.tokens, np.int32))

    def state() -> TrainState:
        one = tokens(1)
        towers = [encoder.init(jax.random.key(seed), one, train=False)["params"] for seed in (0, 1)]
        params = dual_params(*towers, shared=False)
        return TrainState(jnp.zeros((), jnp.int32), params, adamw.init(params))

    def batch() -> Batch:
        questions = variant.questions
        texts_P = np.arange(2 * questions, dtype=np.int32)
        return Batch(
            tokens(questions),
            tokens(2 * questions),
            texts_P,
            texts_P[::2, None],
            np.ones(questions, np.float32),
        )

    return step, jax.jit(state) if arguments.run else state, batch


def timed(program: Any, state: TrainState, batch: Batch) -> tuple[Any, float]:
    """Returns how one update moves the weights, on the host, and the best time of three."""
    spmd = parallel.spmd("shard_map", jax.devices()[:1])
    start = jax.device_get(state.params)
    state, batch = spmd.replicate(state), spmd.shard(batch)
    moved, seconds = None, []
    for _ in range(3):
        started_s = time.monotonic()
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.monotonic() - started_s)
        moved = moved or jax.tree.map(np.subtract, spmd.fetch(state.params), start)
    return moved, min(seconds)


def apart(found: Any, wanted: Any) -> float:
    """Returns the largest difference of two updates, relative to the second's largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    difference = max(np.abs(a - b).max() for a, b in pairs)
    return difference / max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))


if __name__ == "__main__":
    main()
