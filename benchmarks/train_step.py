"""Times our training step and others': same model, same real batches, same precision, in turns.

  python benchmarks/train_step.py FOLDER --model minilm --passage-tokens 160
  python benchmarks/train_step.py FOLDER --model bert-base --dtype bfloat16 --batch-size 256
  --passage-tokens 256     (a GPU)
  python benchmarks/train_step.py FOLDER --pooling mean --representax

FOLDER holds passages.tsv and train.json in DPR's layout, such as nq_natural in docs/log.md. Each
question has one hard negative, mined by BM25. Ours is the mapped step of `dpr train` on all devices
there are, padded to the greatest length (`--pack-rows 0`) and packed (`train.pack_rows`). PyTorch
(torch_towers.py, extra `bench`) pads to the longest text of a batch, as its users do, with its own
attention kernels and as many threads as XLA has. With [CLS] pooling it computes the whole last
layer, and ours only what [CLS] needs. Representax (representax_towers.py, the package of that name)
is given the padded batches, as it compiles a program per shape; it has mean pooling alone.

Each side has a process of its own, so that neither meets the other's threads and memory. They take
turns of some updates in a row, on the same batches, made as training makes them. An update in which
either side compiles does not count. Neither does the first of a turn: other programs may have taken
the memory that a process freed while it waited. CPU seconds are those of all threads; on a busy
machine they say more than the clock, best with one thread (`taskset -c 0 python ...`).
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import real_data

from dpr_jax import parallel
from dpr_jax.config import TrainConfig
from dpr_jax.data import store
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, dual_params
from dpr_jax.model.flops import forward_flops, peak_flops
from dpr_jax.training import batches, optimizer
from dpr_jax.training.step import Batch, StepSettings, TrainState, train_step
from dpr_jax.workdir import RetrieverDir

MODELS = {
    "minilm": {"layers": 6, "width": 384, "heads": 12},
    "bert-base": {"layers": 12, "width": 768, "heads": 12},
    "tiny": {"layers": 1, "width": 32, "heads": 4},
}
RATE = 1e-5
PYTORCH, REPRESENTAX = "PyTorch", "Representax, padded"


class Side(NamedTuple):
    """One way of computing an update.

    Attributes:
      prepare: compiles the update for a batch's shape; returns whether that shape was new.
      update: makes one update, finished when it returns.
      memory_bytes: returns the largest memory of the device so far, or what the compiler plans; 0
        where that is not known.
    """

    prepare: Callable[[Batch], bool]
    update: Callable[[Batch], object]
    memory_bytes: Callable[[], int]


class Task(NamedTuple):
    """What a side computes.

    Attributes:
      retriever: with its data and mined questions.
      tower: folder of the model.
      train: settings of the update.
      pooling: "cls", compared by dot product as in the paper, or "mean" of unit length at a
        temperature of 0.05.
      lengths: most tokens of a question and of a passage.
      threads: of the processor.
    """

    retriever: RetrieverDir
    tower: Path
    train: TrainConfig
    pooling: str
    lengths: tuple[int, int]
    threads: int


class Measured(NamedTuple):
    """One update.

    Attributes:
      wall_s: time by the clock.
      cpu_s: CPU time of all threads.
      compiled: whether its shape was new.
      slots: tokens computed, padding included.
      lengths: real tokens of each text.
      memory_bytes: in use.
    """

    wall_s: float
    cpu_s: float
    compiled: bool
    slots: int
    lengths: np.ndarray
    memory_bytes: int


class Versions(NamedTuple):
    """What a side runs on."""

    device: str
    package: str


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--passage-tokens", type=int, default=160)
    parser.add_argument("--pack-rows", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pooling", choices=["cls", "mean"], default="cls")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--representax", action="store_true", help="beside it too")
    parser.add_argument("--turns", type=int, default=4, help="of each side")
    parser.add_argument("--updates", type=int, default=5, help="in a turn")
    arguments = parser.parse_args(command)
    if arguments.updates < 2:
        parser.error("--updates: the first of a turn does not count; give 2 or more")
    if arguments.representax and arguments.pooling != "mean":
        parser.error("--representax: needs --pooling mean, the only one it has for BERT")
    jax.config.update("jax_platforms", "cpu")  # here; the sides find their devices
    threads = len(os.sched_getaffinity(0))
    train = TrainConfig(batch_size=arguments.batch_size, dtype=arguments.dtype)
    lengths = arguments.question_tokens, arguments.passage_tokens

    with tempfile.TemporaryDirectory() as scratch:
        count = arguments.batch_size * arguments.turns * arguments.updates
        count = min(count, 4096)
        count = max(count, arguments.batch_size)
        retriever = real_data.prepared(arguments.folder, Path(scratch), count)
        tower = real_data.random_tower(Path(scratch) / "tower", **MODELS[arguments.model])
        task = Task(retriever, tower, train, arguments.pooling, lengths, threads)
        names = [PYTORCH] + [
            f"dpr_jax, pack_rows {pack_rows}" if pack_rows else "dpr_jax, padded"
            for pack_rows in arguments.pack_rows
        ]
        rows = [0, *arguments.pack_rows]
        if arguments.representax:
            names, rows = [*names, REPRESENTAX], [*rows, 0]
        sides = [start(task, name, pack_rows) for name, pack_rows in zip(names, rows, strict=True)]
        versions = [side.recv() for side in sides]
        measured: list[list[Measured]] = [[] for _ in sides]
        for _ in range(arguments.turns):
            for side, done in zip(sides, measured, strict=True):
                for _ in range(arguments.updates):
                    side.send("go")
                    done.append(side.recv())
        for side in sides:
            side.send("end")
        print(
            f"\n{arguments.model}, {arguments.pooling}, {arguments.dtype}, {train.batch_size}"
            f" questions (at most {lengths[0]} tokens), {2 * train.batch_size} passages"
            f" ({lengths[1]}); {versions[1].device}, {threads} threads;"
            f" {', '.join(sorted({one.package for one in versions}))}"
        )
        show(names, measured, task, turn=arguments.updates)


def start(task: Task, name: str, pack_rows: int) -> Connection:
    """Starts a process that computes one update whenever it is told to."""
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    work = spawn.Process(
        target=serve,
        args=(there, task),
        kwargs={"name": name, "pack_rows": pack_rows},
        daemon=True,
    )
    work.start()
    return here


def serve(parent: Connection, task: Task, *, name: str, pack_rows: int) -> None:
    """Runs a side: sends its versions, then measures one update for every "go" it receives."""
    if name == PYTORCH:
        jax.config.update("jax_platforms", "cpu")  # it only reads the batches
        side, versions = torch_side(task)
    elif name == REPRESENTAX:
        side, versions = representax_side(task)
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU is shared
        side, versions = our_side(task)
    rows = stream(task, pack_rows)
    parent.send(versions)
    while parent.recv() == "go":
        parent.send(measure(side, next(rows)))


def measure(side: Side, batch: Batch) -> Measured:
    compiled = side.prepare(batch)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    side.update(batch)
    return Measured(
        time.monotonic() - wall_s,
        time.process_time() - cpu_s,
        compiled,
        batch.question.slots + batch.passages.slots,
        np.concatenate([batch.question.lengths_B, batch.passages.lengths_B]),
        side.memory_bytes(),
    )


def our_side(task: Task) -> tuple[Side, Versions]:
    """Returns our side: the mapped step, compiled once for each shape of batch."""
    train = task.train
    shape = hf.read_shape(task.tower)
    params = dual_params(*[hf.read_params(task.tower, shape)] * 2, shared=False)
    adamw = optimizer.make(lambda _: RATE, weight_decay=0.0, clip_norm=train.clip_norm)
    settings = StepSettings(
        Encoder(
            shape,
            pooling=task.pooling,
            normalize=task.pooling == "mean",
            dropout=train.dropout,
            dtype=jnp.dtype(train.dtype),
        ),
        adamw,
        temperature=temperature(task),
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

    def prepare(batch: Batch) -> bool:
        if shapes(batch) in programs:
            return False
        lowered = mapped.lower(held[0], spmd.shard(batch))
        programs[shapes(batch)] = lowered.compile()
        return True

    def update(batch: Batch) -> None:
        state, metrics = programs[shapes(batch)](held.pop(), spmd.shard(batch))
        jax.block_until_ready(metrics)
        held.append(state)

    def memory_bytes() -> int:
        plans = [program.memory_analysis() for program in programs.values()]
        return max(plan.argument_size_in_bytes + plan.temp_size_in_bytes for plan in plans)

    device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return Side(prepare, update, memory_bytes), Versions(device, f"jax {jax.__version__}")


def torch_side(task: Task) -> tuple[Side, Versions]:
    """Returns PyTorch's side."""
    import torch
    import torch_towers

    torch.set_num_threads(task.threads)
    train = task.train
    trainer = torch_towers.Trainer(
        task.tower,
        torch_towers.Settings(
            pooling=task.pooling,
            normalize=task.pooling == "mean",
            temperature=temperature(task),
            clip_norm=train.clip_norm,
            weight_decay=0.0,
            dtype=getattr(torch, train.dtype),
        ),
        dropout=train.dropout,
    )

    def memory_bytes() -> int:
        gpu = trainer.device.type == "cuda"
        return torch.cuda.max_memory_allocated() if gpu else 0

    side = Side(lambda batch: False, lambda batch: trainer.update(batch, RATE), memory_bytes)
    return side, Versions(str(trainer.device), f"torch {torch.__version__}")


def representax_side(task: Task) -> tuple[Side, Versions]:
    """Returns Representax's side, which compiles once for each shape of batch."""
    from importlib import metadata

    import representax_towers

    trainer = representax_towers.Trainer(
        task.tower,
        temperature=temperature(task),
        clip_norm=task.train.clip_norm,
        learning_rate=RATE,
        dtype=task.train.dtype,
        seed=real_data.SEED,
    )
    compiled = set()

    def prepare(batch: Batch) -> bool:
        shapes = batch.question.ids_BL.shape, batch.passages.ids_BL.shape
        if shapes in compiled:
            return False
        compiled.add(shapes)
        return True  # the update itself compiles, and does not count

    side = Side(prepare, trainer.update, lambda: 0)
    package = f"representax {metadata.version('representax')}"
    return side, Versions(jax.devices()[0].device_kind, package)


def temperature(task: Task) -> float:
    return {"cls": 1.0, "mean": 0.05}[task.pooling]


def stream(task: Task, pack_rows: int) -> batches.Iterator[Batch]:
    """Yields the batches of `dpr train`."""
    question_tokenizer, passage_tokenizer = (tokenizer.load(task.tower, n) for n in task.lengths)
    return batches.stream(
        real_data.mined_questions(task.retriever),
        store.open_corpus(task.retriever.workdir),
        question_tokenizer,
        passage_tokenizer,
        batches.BatchSettings(
            batch_size=task.train.batch_size,
            hard_negatives=task.train.hard_negatives,
            seed=real_data.SEED,
            pack_rows=pack_rows or None,
        ),
        devices=jax.local_device_count(),
    )


def show(
    names: list[str],
    measured: list[list[Measured]],
    task: Task,
    *,
    turn: int,
) -> None:
    """Prints a line per side: medians over the updates that count, and ratios to PyTorch.

    The ratios are taken batch by batch.
    """
    peak, shape = peak_flops(), hf.read_shape(task.tower)
    batch_size = task.train.batch_size
    counted = [
        at
        for at in range(len(measured[0]))
        if at % turn and not any(side[at].compiled for side in measured)
    ]
    if not counted:
        raise SystemExit("every update compiled a new shape; give more --turns")
    print(
        f"{len(counted)} updates counted\n                        s/step  CPU s  examples/s "
        " tokens/s   real    MFU   GiB   x PyTorch (clock, CPU)"
    )
    base_s = np.array([measured[0][at].wall_s for at in counted])
    base_cpu_s = np.array([measured[0][at].cpu_s for at in counted])
    for name, side in zip(names, measured, strict=True):
        done = [side[at] for at in counted]
        wall_s = np.array([one.wall_s for one in done])
        cpu_s = np.array([one.cpu_s for one in done])
        tokens = np.array([one.lengths.sum() for one in done])
        flops = np.array([3 * forward_flops(shape, one.lengths, task.pooling) for one in done])
        share = tokens.sum() / sum(one.slots for one in done)
        if name == PYTORCH:  # it is given padded batches, and cuts them
            share = np.nan
        mfu = np.median(flops / wall_s) / peak if peak else np.nan
        memory_bytes = max(one.memory_bytes for one in side)
        print(
            f"{name:22}{np.median(wall_s):8.2f}{np.median(cpu_s):7.2f}"
            f"{batch_size / np.median(wall_s):12.1f}"
            f"{np.median(tokens / wall_s):10.0f}{share:7.1%}{mfu:7.1%}{memory_bytes / 2**30:6.2f}"
            f"{np.median(base_s / wall_s):8.2f}{np.median(base_cpu_s / cpu_s):7.2f}"
        )


if __name__ == "__main__":
    main()
