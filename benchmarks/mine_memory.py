"""Measures memory and speed of `dpr mine` for several numbers of questions.

  python benchmarks/many_passages.py --passages 1000000 --out DIR \
    data/nq_natural data/squad data/medquad
  dpr prepare --workdir RUN --data.passages DIR/passages.tsv --data.train DIR/train.json
  python benchmarks/mine_memory.py RUN --questions 1000 10000 100000
  python benchmarks/mine_memory.py RUN --questions 1000 10000 --dense

The memory must not grow with the questions. Each number gets a work directory of its own beside
RUN, with RUN's corpus and BM25 index (built first where it is missing) and so many of its training
questions, evenly drawn. `dpr mine` runs as a process that is looked at once per second. Printed is
what it held when a tenth, a half and all of its questions were done: memory of its own (RssAnon)
and mapped files (RssFile), which the system takes back when it needs them. --dense mines with an
exact index of random vectors and the packaged encoder, instead of BM25.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax import artifacts, recipes
from dpr_jax.config import Bm25Config, Config, IndexConfig
from dpr_jax.data import store
from dpr_jax.index import bm25, update
from dpr_jax.model.embed import load_embedder
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

MODEL = Config().model.init
RANDOM = "random"  # the retriever of random vectors
SHARD_ROWS = 65536
PROGRESS = re.compile(rb"mine train: ([\d,]+)/")
SHARES = (0.1, 0.5, 1.0)


class Seen(NamedTuple):
    """A process at one moment.

    Attributes:
      at_s: seconds since its start.
      cpu_s: seconds of processor time.
      done: questions.
      own_mb: memory of its own.
      mapped_mb: of mapped files.
    """

    at_s: float
    cpu_s: float
    done: int
    own_mb: float
    mapped_mb: float


def main(root: Path, counts: list[int], dense: bool) -> None:
    whole = open_workdir(root, new=False)
    prepare_sources(whole, dense)
    print("questions | done | s | CPU s | own MB | mapped MB | largest own MB")
    for count in counts:
        workdir = with_questions(whole, count)
        seen = list(watched(workdir, dense))
        wanted = [share * seen[-1].done for share in SHARES]
        found = [next(one for one in seen if one.done >= done) for done in wanted]
        for at in dict.fromkeys(found):
            print(
                f"{count:,} | {at.done:,} | {at.at_s:.0f} | {at.cpu_s:.0f} | {at.own_mb:.0f} |"
                f" {at.mapped_mb:.0f} |"
                f" {max(one.own_mb for one in seen if one.at_s <= at.at_s):.0f}",
                flush=True,
            )
        first, last = next(one for one in seen if one.done), seen[-1]
        if (done := last.done - first.done) > 0:
            print(
                f"{count:,}: {done / (last.at_s - first.at_s):.0f} questions/s,"
                f" {done / (last.cpu_s - first.cpu_s):.0f} per CPU second, after the first"
                f" {first.done:,}"
            )


def prepare_sources(whole: WorkDir, dense: bool) -> None:
    """Makes what ranks the passages, once."""
    corpus = store.open_corpus(whole)
    fingerprint = artifacts.fingerprint(whole.data / "manifest.json", "corpus/")
    if dense:
        retriever, config = whole.retriever(RANDOM), Config(index=IndexConfig(kind="exact"))
        recipes.store(retriever, config, source=MODEL)
        write_vectors(retriever, len(corpus), fingerprint)
        update.run(config, retriever)
        return
    start_s = time.monotonic()
    bm25.build_if_missing(
        whole,
        (passage.title_and_text for passage in corpus),
        count=len(corpus),
        corpus=fingerprint,
        k1=Bm25Config().k1,
        b=Bm25Config().b,
    )
    print(f"BM25 of {len(corpus):,} passages: {time.monotonic() - start_s:.0f} s")


def write_vectors(retriever: RetrieverDir, count: int, corpus: str) -> None:
    """Writes random vectors where `dpr encode` would leave those of the passages."""
    embedder = load_embedder(MODEL, "passage", model=Config().model)
    origin = artifacts.made_from("random vectors", {"rows": count}, {"corpus": corpus})
    out = retriever.place("embeddings", origin)
    if artifacts.is_fresh(out / "manifest.json", origin):
        return
    with artifacts.atomic_dir(out) as folder:
        files = []
        for start in range(0, count, SHARD_ROWS):
            files.append(folder / f"shard-{start // SHARD_ROWS:05d}.npy")
            shape = (min(SHARD_ROWS, count - start), embedder.width)
            vectors_BD = np.random.default_rng(start).normal(size=shape)
            np.save(files[-1], vectors_BD.astype(np.float16))
        artifacts.write_manifest(
            folder / "manifest.json",
            origin,
            files,
            count=count,
            width=embedder.width,
            model=embedder.passage_fingerprint,
        )
    retriever.point("embeddings", out)


def with_questions(whole: WorkDir, count: int) -> WorkDir:
    """Makes a work directory with some of the training questions of `whole` and all else of it."""
    root = whole.root.with_name(f"{whole.root.name}-{count}")
    shutil.rmtree(root, ignore_errors=True)
    workdir = open_workdir(root)
    questions = store.open_questions(whole, "train")
    rows = np.unique(np.linspace(0, len(questions) - 1, count).astype(int))
    some = (questions[row] for row in rows.tolist())
    origin = artifacts.made_from("prepare", {"questions": count}, {}, form=store.FORM)
    data = workdir.place("data", origin)
    shutil.copytree(whole.data / "corpus", data / "corpus", copy_function=os.link)
    files = store.write_questions(data, {"train": some})
    artifacts.write_manifest(
        data / "manifest.json",
        origin,
        files + [*(data / "corpus").iterdir()],
        questions={"train": len(rows)},
    )
    workdir.point("data", data)
    for folder in (*whole.root.glob("bm25-*"), whole.retriever(RANDOM).home):
        if folder.exists():
            copy = root / folder.relative_to(whole.root)
            shutil.copytree(folder, copy, copy_function=os.link, symlinks=True)
    return workdir


def watched(workdir: WorkDir, dense: bool) -> Iterator[Seen]:
    """Runs `dpr mine` and yields what it holds, once per second."""
    command = [sys.executable, "-c", "from dpr_jax.cli import main; main()", "mine"]
    command += ["--workdir", str(workdir.root)]
    if dense:
        command += ["--mine.sources", RANDOM]
    log = workdir.root / "mine.log"
    start_s = time.monotonic()
    used = (0.0, 0.0, 0.0)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
        ended = False
        while not ended:
            time.sleep(1)
            ended = process.poll() is not None  # what it did last counts with what it held before
            used = used_by(process.pid) or used
            done = PROGRESS.findall(log.read_bytes())
            number = int(done[-1].replace(b",", b"")) if done else 0
            yield Seen(time.monotonic() - start_s, used[0], number, *used[1:])
    if process.returncode:
        sys.exit(f"dpr mine ended with {process.returncode}:\n{log.read_text()}")


def used_by(pid: int) -> tuple[float, float, float] | None:
    """Returns a process's seconds of processor time, and megabytes of its own and of mapped files.

    None where it has ended.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    found = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", text))
    if len(found) < 2:
        return None
    ticks = int(after_name[11]) + int(after_name[12])  # in user and in system mode
    cpu_s = ticks / os.sysconf("SC_CLK_TCK")
    return cpu_s, int(found["RssAnon"]) / 1000, int(found["RssFile"]) / 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--questions", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--dense", action="store_true")
    given = parser.parse_args()
    main(given.workdir, given.questions, given.dense)
