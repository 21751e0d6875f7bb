"""Compares the loss of every update with a plain PyTorch loop's: same weights, same batches, no
dropout.

  python benchmarks/loss_curve.py FOLDER --out docs/figures/loss_curve

FOLDER holds passages.tsv and train.json in DPR's layout; docs/log.md has the figures for SQuAD
v1.1. A tower as large as BERT-mini (4 layers, 256 wide) starts from random weights, which both
sides load from one Hugging Face folder. Ours is the mapped step of `dpr train` on all devices there
are; theirs is in torch_towers.py (extra `bench`). Hard negatives are mined by BM25. Writes OUT.csv
and OUT.svg, and prints the largest gap. `--steps 3 --layers 1 --width 32` tries it out.
"""

import argparse
import csv
import functools
import tempfile
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import real_data
import torch
import torch_towers
import transformers
from matplotlib.figure import Figure

from dpr_jax import console, parallel
from dpr_jax.config import TrainConfig
from dpr_jax.data import store
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, dual_params
from dpr_jax.training import batches, optimizer
from dpr_jax.training.step import StepSettings, TrainState, train_step
from dpr_jax.workdir import RetrieverDir

PROMISED_GAP = 1e-3
WARMUP = 0.1  # share of the updates
QUESTION_TOKENS, PASSAGE_TOKENS = 24, 48
OURS, THEIRS, GAP = "#0072b2", "#e69f00", "#d55e00"


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("loss_curve"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args(command)
    settings = TrainConfig(
        batch_size=arguments.batch_size,
        total_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        warmup=WARMUP,
        weight_decay=0.01,
        dropout=0.0,
        temperature=0.05,
    )
    with tempfile.TemporaryDirectory() as scratch:
        retriever = real_data.prepared(
            arguments.folder, Path(scratch), arguments.batch_size * arguments.steps
        )
        tower = real_data.random_tower(
            Path(scratch) / "tower",
            layers=arguments.layers,
            width=arguments.width,
            heads=4,
        )
        rows = compare(retriever, tower, settings)
    write(rows, arguments.out)
    largest = max(abs(ours - theirs) for ours, theirs in rows)
    print(
        f"{len(rows)} updates on {jax.device_count()} {jax.devices()[0].device_kind}; jax"
        f" {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"loss {rows[0][0]:.4f} at the first update, {rows[-1][0]:.4f} at the last")
    print(f"largest gap {largest:.1e}, promised {PROMISED_GAP:.0e}")
    if largest > PROMISED_GAP:
        raise SystemExit("the curves do not agree")


def compare(
    retriever: RetrieverDir, tower: Path, settings: TrainConfig
) -> list[tuple[float, float]]:
    """Trains both sides; returns (our loss, theirs) of every update."""
    shape = hf.read_shape(tower)
    params = dual_params(*[hf.read_params(tower, shape)] * 2, shared=False)
    rate = functools.partial(
        optimizer.learning_rate,
        peak=settings.learning_rate,
        warmup_steps=warmup_steps(settings),
        total_steps=settings.total_steps,
    )
    adamw = optimizer.make(rate, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)
    step = functools.partial(
        train_step,
        settings=StepSettings(
            Encoder(shape, pooling="mean", normalize=True),
            adamw,
            temperature=settings.temperature,
            mask_duplicates=True,
            seed=real_data.SEED,
        ),
        axis=parallel.AXIS,
    )
    spmd = parallel.spmd("pmap")
    update = spmd.map(step, donate=True)
    state = TrainState(np.zeros((), np.int32), params, adamw.init(params))
    state = spmd.replicate(jax.device_get(state))

    trainer = torch_towers.Trainer(
        tower,
        torch_towers.Settings(
            pooling="mean",
            normalize=True,
            temperature=settings.temperature,
            clip_norm=settings.clip_norm,
            weight_decay=settings.weight_decay,
        ),
        dropout=0.0,
    )
    stream = batches.stream(
        real_data.mined_questions(retriever),
        store.open_corpus(retriever.workdir),
        tokenizer.load(tower, QUESTION_TOKENS),
        tokenizer.load(tower, PASSAGE_TOKENS),
        batches.BatchSettings(
            batch_size=settings.batch_size,
            hard_negatives=settings.hard_negatives,
            seed=real_data.SEED,
        ),
    )
    rows = []
    with console.progress("compare", settings.total_steps, "updates") as advance:
        for number in range(settings.total_steps):
            batch = next(stream)
            state, metrics = update(state, spmd.shard(batch))
            theirs = trainer.update(batch, torch_rate(number, settings))  # while ours still runs
            ours = float(spmd.fetch(metrics)["loss"])
            rows.append((ours, theirs))
            advance(1, f"loss {ours:.4f}, gap {abs(ours - theirs):.1e}")
    return rows


def warmup_steps(settings: TrainConfig) -> int:
    return round(settings.warmup * settings.total_steps)


def torch_rate(number: int, settings: TrainConfig) -> float:
    """Returns the learning rate of update `number` (0-based): up to the peak, then down to zero.

    It is written anew here, so that it can disagree with ours.
    """
    rising = (number + 1) / max(warmup_steps(settings), 1)
    left = settings.total_steps - number
    falling = left / max(settings.total_steps - warmup_steps(settings), 1)
    return settings.learning_rate * min(rising, falling, 1.0)


def write(rows: list[tuple[float, float]], out: Path) -> None:
    """Writes OUT.csv, and OUT.svg with both curves and their gap below."""
    out.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = np.array(rows).T
    gap, numbers = np.abs(ours - theirs), range(1, len(rows) + 1)
    with out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["update", "dpr_jax", "pytorch"])
        for number, (one, other) in zip(numbers, rows, strict=True):
            table.writerow([number, f"{one:.7f}", f"{other:.7f}"])
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "loss_curve",
        "font.family": ["sans-serif"],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        above.plot(numbers, theirs, color=THEIRS, lw=3, alpha=0.6, label="PyTorch")
        above.plot(numbers, ours, color=OURS, lw=1, label="dpr_jax")
        above.set_ylabel("loss")
        above.set_ylim(bottom=0)
        above.legend(frameon=False)
        below.axhline(PROMISED_GAP, color="#666666", lw=1, ls=(0, (4, 3)))
        below.annotate(
            f"promised: at most {PROMISED_GAP:g}",
            (len(rows), PROMISED_GAP),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color="#444444",
        )
        # a gap of exactly 0 has no place on a log scale: half of the last digit in float32
        below.plot(numbers, np.maximum(gap, 3e-8), color=GAP, lw=1)
        below.set(yscale="log", ylim=(2e-8, 1e-2))
        below.set(xlabel="update", ylabel="gap")
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
