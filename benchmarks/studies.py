"""Runs the studies of docs/results.md that train many encoders.

  python benchmarks/studies.py batch --workdir runs/studies
  python benchmarks/studies.py devices --workdir runs/studies
  python benchmarks/studies.py batch --workdir runs/studies --plot docs/figures

`batch` is the ablation of the paper's table 3 in small: questions in the batch, with and without a
hard negative of BM25. `devices` compares one device with 64 questions and eight with 8 each, with
gathered passages and without. A study is a work directory, WORKDIR/STUDY, and each point of it a
retriever: the study's config with a few settings of its own. Every point sees the same questions
once. Printed are the commands, so that each can be run by itself, and the processor time of each. A
point that is done is not done again. Two points are compared by `dpr compare A B`.
"""

import argparse
import json
import resource
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from dpr_jax.workdir import WorkDir, open_workdir

CUTOFFS = (1, 5, 20, 100)
VIEW = "answer"
MINED = "mined"  # the retriever that mines for all points


class Point(NamedTuple):
    """One training run.

    Attributes:
      name: of its retriever.
      batch_size: questions in the global batch.
      hard_negatives: per question.
      devices: simulated ones that share the batch.
      gather: whether each question meets the passages of all devices.
    """

    name: str
    batch_size: int
    hard_negatives: int
    devices: int = 1
    gather: bool = True


class Study(NamedTuple):
    """Points that share a config.

    Attributes:
      config: its file.
      questions: of training, each seen once by every point.
      points: in the order that they are run and shown in.
    """

    config: str
    questions: int
    points: list[Point]


STUDIES = {
    "batch": Study(
        config="configs/study_nq_natural.py",
        questions=1600,
        points=[
            Point(f"batch-{size}-hard-{hard}", size, hard)
            for hard in (0, 1)
            for size in (16, 32, 64, 128)
        ],
    ),
    "devices": Study(
        config="configs/study_squad.py",
        questions=3200,
        points=[
            Point("1-device", 64, 0),
            Point("8-devices-gathered", 64, 0, devices=8),
            Point("8-devices-alone", 64, 0, devices=8, gather=False),
        ],
    ),
}


def run(command: list[str]) -> None:
    print("$", shlex.join(command), flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{cpu_s:.0f} s of processor time", flush=True)


def prepare(study: Study, workdir: WorkDir) -> None:
    """Makes what all points share: the data, hard negatives and run of BM25.

    There is no dev set, so nothing is chosen by one.
    """
    where = ["--workdir", str(workdir.root)]
    run(["dpr", "prepare", study.config, *where, "--data.dev", "None"])
    run(["dpr", "mine", study.config, *where, "--data.dev", "None", "--retriever", MINED])
    for stage in ("index", "retrieve"):
        run(["dpr", stage, study.config, *where, "--data.dev", "None", "--retriever", "bm25"])


def train_and_search(study: Study, point: Point, workdir: WorkDir) -> None:
    """Trains the retriever of a point and answers the test questions with it."""
    steps = study.questions // point.batch_size
    overrides = {
        "train.batch_size": point.batch_size,
        "train.hard_negatives": point.hard_negatives,
        "train.total_steps": steps,
        "train.warmup": steps // 10 / steps,
    }
    settings = [
        word
        for key, value in overrides.items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    settings += [] if point.gather else ["--train.no-gather"]
    where = ["--workdir", str(workdir.root), "--retriever", point.name]
    train = ["dpr", "train", *where, "--like", MINED, *settings]
    if point.devices > 1:
        simulated = ["-n", "1", "--cpu-devices", str(point.devices)]
        logs = ["--log-dir", f"{workdir.root}-logs"]
        train = ["launch/local.sh", *simulated, *logs, "--", *train]
    run(train)
    for stage in ("encode", "index", "retrieve"):
        run(["dpr", stage, *where])


def is_done(workdir: WorkDir, point: Point) -> bool:
    return (workdir.runs("test") / f"{point.name}.trec").exists()


def read(workdir: WorkDir, run_name: str) -> dict[str, dict[str, float]]:
    file = workdir.metrics / "test" / f"{run_name}.json"
    return json.loads(file.read_text(encoding="utf-8"))[VIEW]["metrics"]


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| | " + " | ".join(f"top-{k}" for k in CUTOFFS) + " |",
        "|---" * (1 + len(CUTOFFS)) + "|",
    ]
    for name, metrics in rows.items():
        cells = []
        for k in CUTOFFS:
            found = {part: 100 * metrics[f"top-{k}"][part] for part in metrics["top-1"]}
            cells.append(f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_batch(workdir: WorkDir, done: list[Point], out: Path) -> None:
    """Draws top-1 and top-20 over the batch size, with and without a hard negative."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, k in zip(figure.subplots(1, 2), (1, 20), strict=True):
        for hard, colour, marker in ((0, "#0072b2", "o"), (1, "#d55e00", "s")):
            points = [point for point in done if point.hard_negatives == hard]
            found = [read(workdir, p.name)[f"top-{k}"] for p in points]
            sizes = [p.batch_size for p in points]
            axes.fill_between(
                sizes,
                [100 * one["low"] for one in found],
                [100 * one["high"] for one in found],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(
                sizes,
                [100 * one["value"] for one in found],
                color=colour,
                marker=marker,
                label="one BM25 hard negative" if hard else "in-batch negatives alone",
            )
        axes.set_xscale("log", base=2)
        sizes = sorted({point.batch_size for point in done})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("questions in the batch")
        axes.set_ylabel(f"top-{k} answer accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(out)


def plot_devices(workdir: WorkDir, done: list[Point], out: Path) -> None:
    """Draws the training loss of the three, step by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    styles = {
        "1-device": ("1 device x 64", "#56b4e9", 5, "-"),
        "8-devices-gathered": ("8 devices x 8, gathered", "#0072b2", 1.5, "-"),
        "8-devices-alone": ("8 devices x 8, not gathered", "#d55e00", 1.5, "--"),
    }
    for point in done:
        label, colour, width, dash = styles[point.name]
        checkpoints = workdir.retriever(point.name).current("checkpoints")
        lines = (checkpoints / "metrics.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        rows = [row for row in rows if "loss" in row]
        axes.plot(
            [row["step"] for row in rows],
            [row["loss"] for row in rows],
            color=colour,
            linewidth=width,
            linestyle=dash,
            label=label,
        )
    axes.set_xlabel("update")
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(out)


PLOTS = {"batch": plot_batch, "devices": plot_devices}


def main(name: str, folder: Path, only: list[str] | None, plots: Path | None) -> None:
    study, workdir = STUDIES[name], open_workdir(folder / name)
    prepare(study, workdir)
    for point in study.points:
        wanted = only is None or point.name in only
        if wanted and not is_done(workdir, point):
            train_and_search(study, point, workdir)
    run(["dpr", "evaluate", "--workdir", str(workdir.root)])
    done = [point for point in study.points if is_done(workdir, point)]
    points = {point.name: read(workdir, point.name) for point in done}
    print(table({"BM25": read(workdir, "bm25"), **points}))
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        PLOTS[name](workdir, done, plots / f"{name}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workdir", type=Path, default=Path("runs/studies"), help="of all studies")
    parser.add_argument("--only", nargs="+", metavar="POINT", help="run these points alone")
    parser.add_argument("--plot", type=Path, help="folder for the study's plot")
    call = parser.parse_args()
    main(call.study, call.workdir, call.only, call.plot)
