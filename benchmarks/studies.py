"""The studies of docs/results.md that train many encoders: each point is a study's config with a
few settings of its own.

  python benchmarks/studies.py batch --workdir runs/studies
  python benchmarks/studies.py devices --workdir runs/studies
  python benchmarks/studies.py batch --workdir runs/studies --plot docs/figures

`batch` is the ablation of the paper's table 3 in small: questions in the batch, with and without a
  hard negative of BM25. `devices` sets one
device with 64 questions beside eight with 8 each, with gathered passages and without. Every point
of a study sees the same questions once. It prints the commands it runs, so that each can be run by
itself, and the processor time of each; a point that is done is not done again.
"""

import argparse
import json
import resource
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

CUTOFFS = (1, 5, 20, 100)
VIEW = "answer"


class Point(NamedTuple):
    """One training run.

    Attributes:
      name: its folder.
      batch_size: questions in the global batch.
      hard_negatives: a question.
      devices: simulated ones that share the batch.
      gather: each question meets the passages of all devices.
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


def prepare(config: str, base: Path) -> None:
    """What all points share: the data, BM25's hard negatives, BM25's run. No dev set, so nothing is
    chosen by one.
    """
    bm25 = ["--retrieve.kind", "bm25", "--retrieve.name", "bm25"]
    for stage, settings in (("prepare", []), ("mine", []), ("retrieve", bm25)):
        run(["dpr", stage, config, "--workdir", str(base), "--data.dev", "", *settings])


def train_and_measure(study: Study, point: Point, base: Path, workdir: Path) -> None:
    partial = workdir.with_suffix(".partial")
    if not partial.exists():
        copy = workdir.with_suffix(".copy")  # a half one is no work directory
        shutil.copytree(base, copy, dirs_exist_ok=True)
        copy.rename(partial)
    steps = study.questions // point.batch_size
    overrides = {
        "data.dev": "",
        "train.batch_size": point.batch_size,
        "train.hard_negatives": point.hard_negatives,
        "train.total_steps": steps,
        "train.warmup_steps": steps // 10,
    }
    settings = [
        word
        for key, value in overrides.items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    settings += [] if point.gather else ["--train.no-gather"]
    for stage in ("train", "encode", "index", "retrieve", "evaluate"):
        command = ["dpr", stage, study.config, "--workdir", str(partial), *settings]
        if stage == "train" and point.devices > 1:
            simulated = ["-n", "1", "--cpu-devices", str(point.devices)]
            logs = ["--log-dir", str(partial / "logs")]
            command = ["launch/local.sh", *simulated, *logs, "--", *command]
        run(command)
    partial.rename(workdir)


def read(workdir: Path, run_name: str) -> dict[str, dict[str, float]]:
    file = workdir / "metrics" / f"{run_name}.json"
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


def plot_batch(workdir: Path, done: list[Point], out: Path) -> None:
    """Top-1 and top-20 over the batch size, one line with and one without a hard negative."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, k in zip(figure.subplots(1, 2), (1, 20), strict=True):
        for hard, colour, marker in ((0, "#0072b2", "o"), (1, "#d55e00", "s")):
            points = [point for point in done if point.hard_negatives == hard]
            found = [read(workdir / p.name, "trained")[f"top-{k}"] for p in points]
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


def plot_devices(workdir: Path, done: list[Point], out: Path) -> None:
    """The training loss of the three, step by step."""
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
        lines = (workdir / point.name / "checkpoints" / "metrics.jsonl").read_text(encoding="utf-8")
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


def main(name: str, workdir: Path, only: list[str] | None, plots: Path | None) -> None:
    study = STUDIES[name]
    base = workdir / f"{name}-base"
    prepare(study.config, base)
    for point in study.points:
        wanted = only is None or point.name in only
        if wanted and not (workdir / point.name).exists():
            train_and_measure(study, point, base, workdir / point.name)
    done = [point for point in study.points if (workdir / point.name).exists()]
    if not done:
        return
    points = {point.name: read(workdir / point.name, "trained") for point in done}
    print(table({"BM25": read(workdir / done[0].name, "bm25"), **points}))
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        PLOTS[name](workdir, done, plots / f"{name}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workdir", type=Path, default=Path("runs/studies"))
    parser.add_argument("--only", nargs="+", metavar="POINT", help="run these points alone")
    parser.add_argument("--plot", type=Path, help="folder for the study's plot")
    call = parser.parse_args()
    main(call.study, call.workdir, call.only, call.plot)
