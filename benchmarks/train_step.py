"""Our training step beside PyTorch's: same model, same real batches, same precision, in turns in one run.

  python benchmarks/train_step.py FOLDER --model minilm --passage-tokens 160
  python benchmarks/train_step.py FOLDER --model bert-base --dtype bfloat16 --batch-size 256 --passage-tokens 256     (a GPU)

FOLDER holds passages.tsv and train.json in DPR's layout, such as nq_natural in docs/log.md; one hard negative a question, mined by BM25. Ours is
the mapped step of `dpr train` on all devices there are, padded to the greatest length and packed (`train.pack_rows`). PyTorch (torch_towers.py,
extra `bench`) pads to the longest of a batch, as its users do, with its own attention kernels and as many threads as XLA has. Every round
takes one batch through each of them; the first round and compiling do not count. CPU seconds are those of all threads: on a busy machine they
say more than the clock does, best with one thread (`taskset -c 0 python ...`).
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import real_data
import torch
import torch_towers

from dpr_jax import parallel
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import TrainConfig
from dpr_jax.data import store
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, dual_params
from dpr_jax.model.flops import forward_flops, peak_flops
from dpr_jax.training import batches, optimizer
from dpr_jax.training.step import Batch, StepSettings, TrainState, train_step

MODELS = {
    "minilm": {"layers": 6, "width": 384, "heads": 12},
    "bert-base": {"layers": 12, "width": 768, "heads": 12},
    "tiny": {"layers": 1, "width": 32, "heads": 4},
}
RATE = 1e-5


class Side(NamedTuple):
    """One way of computing an update.

    Attributes:
      name: of the line in the table.
      prepare: compiles what the update of a batch needs.
      update: one update, finished when it returns.
      memory_bytes: largest memory of the device so far, or what the compiler plans; 0 where that is not known.
    """

    name: str
    prepare: Callable[[Batch], None]
    update: Callable[[Batch], object]
    memory_bytes: Callable[[], int]


class Measured(NamedTuple):
    """One update: time by the clock, CPU time of all threads, and tokens computed."""

    wall_s: float
    cpu_s: float
    slots: int


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--passage-tokens", type=int, default=160)
    parser.add_argument("--pack-rows", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args(command)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    train = TrainConfig(batch_size=arguments.batch_size, dtype=arguments.dtype)

    with tempfile.TemporaryDirectory() as scratch:
        count = min(arguments.batch_size * arguments.rounds, 4096)
        count = max(count, arguments.batch_size)
        workdir, questions = real_data.prepared(arguments.folder, Path(scratch), count)
        tower = real_data.random_tower(
            Path(scratch) / "tower", **MODELS[arguments.model]
        )
        lengths = arguments.question_tokens, arguments.passage_tokens
        sides, streams = [torch_side(tower, train)], [0]
        for pack_rows in arguments.pack_rows:
            name = f"dpr_jax, pack_rows {pack_rows}" if pack_rows else "dpr_jax, padded"
            sides.append(our_side(name, tower, train))
            streams.append(pack_rows)
        streams = [
            stream(workdir, questions, tower, train, lengths, pack_rows)
            for pack_rows in streams
        ]
        measured: list[list[Measured]] = [[] for _ in sides]
        real: list[np.ndarray] = []
        for _ in range(arguments.rounds):
            for side, rows, done in zip(sides, streams, measured, strict=True):
                batch = next(rows)
                done.append(measure(side, batch))
            real.append(
                np.concatenate([batch.question.lengths_B, batch.passages.lengths_B])
            )

        device = jax.devices()[0].device_kind
        print(
            f"\n{arguments.model}, {arguments.dtype}, {arguments.batch_size} questions (at most {lengths[0]} tokens), {2 * arguments.batch_size} passages ({lengths[1]}); "
            f"{jax.device_count()} {device}, {threads} threads; jax {jax.__version__}, torch {torch.__version__}"
        )
        timed = [done[1:] for done in measured]
        show(sides, timed, real[1:], train.batch_size, hf.read_shape(tower))


def measure(side: Side, batch: Batch) -> Measured:
    side.prepare(batch)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    side.update(batch)
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    return Measured(*spent, batch.question.slots + batch.passages.slots)


def our_side(name: str, tower: Path, train: TrainConfig) -> Side:
    """The mapped step; each shape of batch is compiled once."""
    shape = hf.read_shape(tower)
    params = dual_params(*[hf.read_params(tower, shape)] * 2, shared=False)
    adamw = optimizer.make(
        lambda _: RATE, weight_decay=0.0, eps=train.adam_eps, clip_norm=train.clip_norm
    )
    settings = StepSettings(
        Encoder(
            shape,
            pooling="mean",
            normalize=True,
            dropout=train.dropout,
            dtype=jnp.dtype(train.dtype),
        ),
        adamw,
        temperature=0.05,
        mask_duplicates=True,
        seed=real_data.SEED,
    )
    spmd = parallel.spmd("pmap")
    mapped = spmd.map(
        functools.partial(train_step, settings=settings, axis=parallel.AXIS),
        donate=True,
    )
    state = TrainState(np.zeros((), np.int32), params, adamw.init(params))
    held = [spmd.replicate(jax.device_get(state))]
    programs = {}

    def shapes(batch: Batch) -> tuple[tuple[int, ...], ...]:
        return tuple(leaf.shape for leaf in jax.tree.leaves(batch))

    def prepare(batch: Batch) -> None:
        if shapes(batch) not in programs:
            lowered = mapped.lower(held[0], spmd.shard(batch))
            programs[shapes(batch)] = lowered.compile()

    def update(batch: Batch) -> None:
        state, metrics = programs[shapes(batch)](held.pop(), spmd.shard(batch))
        jax.block_until_ready(metrics)
        held.append(state)

    def memory_bytes() -> int:
        plans = [program.memory_analysis() for program in programs.values()]
        return max(
            plan.argument_size_in_bytes + plan.temp_size_in_bytes for plan in plans
        )

    return Side(name, prepare, update, memory_bytes)


def torch_side(tower: Path, train: TrainConfig) -> Side:
    """The same in PyTorch."""
    trainer = torch_towers.Trainer(
        tower,
        torch_towers.Settings(
            pooling="mean",
            normalize=True,
            temperature=0.05,
            clip_norm=train.clip_norm,
            weight_decay=0.0,
            adam_eps=train.adam_eps,
            dtype=getattr(torch, train.dtype),
        ),
        dropout=train.dropout,
    )

    def memory_bytes() -> int:
        gpu = trainer.device.type == "cuda"
        return torch.cuda.max_memory_allocated() if gpu else 0

    return Side(
        "PyTorch",
        lambda batch: None,
        lambda batch: trainer.update(batch, RATE),
        memory_bytes,
    )


def stream(
    workdir: WorkDir,
    questions: store.Questions,
    tower: Path,
    train: TrainConfig,
    lengths: tuple[int, int],
    pack_rows: int,
) -> batches.Iterator[Batch]:
    """The batches of `dpr train`."""
    question_tokenizer, passage_tokenizer = (tokenizer.load(tower, n) for n in lengths)
    return batches.stream(
        questions,
        store.open_corpus(workdir),
        question_tokenizer,
        passage_tokenizer,
        batch_size=train.batch_size,
        hard_negatives=train.hard_negatives,
        shuffle_positives=False,
        mask_duplicates=True,
        mask_answers="off",
        teacher=False,
        seed=real_data.SEED,
        first_step=0,
        pack_rows=pack_rows,
        devices=jax.local_device_count(),
    )


def show(
    sides: list[Side],
    measured: list[list[Measured]],
    real: list[np.ndarray],
    batch_size: int,
    shape: hf.BertShape,
) -> None:
    """One line a side: medians over the rounds, and ratios to PyTorch taken within each round."""
    peak = peak_flops()
    print(
        "                        s/step  CPU s  examples/s  tokens/s   real    MFU   GiB   x PyTorch (clock, CPU)"
    )
    for side, done in zip(sides, measured, strict=True):
        wall_s = np.array([one.wall_s for one in done])
        cpu_s = np.array([one.cpu_s for one in done])
        base_s = np.array([one.wall_s for one in measured[0]])
        base_cpu_s = np.array([one.cpu_s for one in measured[0]])
        tokens = np.array([lengths.sum() for lengths in real])
        flops = np.array([3 * forward_flops(shape, lengths) for lengths in real])
        share = tokens.sum() / sum(one.slots for one in done)
        if side is sides[0]:  # it is given padded batches, and cuts them
            share = np.nan
        mfu = np.median(flops / wall_s) / peak if peak else np.nan
        print(
            f"{side.name:22}{np.median(wall_s):8.2f}{np.median(cpu_s):7.2f}{batch_size / np.median(wall_s):12.1f}"
            f"{np.median(tokens / wall_s):10.0f}{share:7.1%}{mfu:7.1%}{side.memory_bytes() / 2**30:6.2f}"
            f"{np.median(base_s / wall_s):8.2f}{np.median(base_cpu_s / cpu_s):7.2f}"
        )


if __name__ == "__main__":
    main()
