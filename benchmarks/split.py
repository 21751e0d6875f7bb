"""Measures `dpr split` on Apache Beam's local runner, and `dpr prepare` on the same documents.

  python benchmarks/split.py data/nq_natural/passages.tsv --out DIR --documents 1000 100000

Documents have 1,000 words each, taken from the passages of the file one after the other and over
again, and lie in eight JSONL files. They are cut into passages of 100 words. Each way runs as a
process of its own. Printed are its wall time, the processor time with its workers, and the most
memory that all of them held together, read four times a second (Pss, which counts shared pages
once).
"""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dpr_jax.data.readers import formats

WORDS = 1000
FILES = 8
DPR = [sys.executable, "-c", "from dpr_jax.cli import main; main()"]
TWO_WORKERS = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def main(passages: Path, out: Path, counts: list[int]) -> None:
    print("documents | way | passages | s | passages/s | CPU s | largest MB")
    for count in counts:
        folder = out / f"documents-{count}"
        write_documents(passages, folder, count)
        cut = ["--data.passages", str(folder), "--data.split-words", str(WORDS // 10)]
        ways = {
            "dpr prepare": ["prepare", "--workdir", "{}", *cut],
            "dpr split": ["split", "--out", "{}", *cut],
            "dpr split, two workers": [
                "split",
                "--out",
                "{}",
                *cut,
                "--",
                *TWO_WORKERS,
            ],
        }
        for name, args in ways.items():
            target = out / "target"
            shutil.rmtree(target, ignore_errors=True)
            made = count * 10
            took_s, cpu_s, largest_mb = measured(
                [arg.replace("{}", str(target)) for arg in args], out / "log"
            )
            print(
                f"{count:,} | {name} | {made:,} | {took_s:.0f} | {made / took_s:,.0f} | {cpu_s:.0f}"
                f" | {largest_mb:,.0f}",
                flush=True,
            )


def write_documents(passages: Path, folder: Path, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = words_of(passages)
    for part in range(FILES):
        numbers = range(count * part // FILES, count * (part + 1) // FILES)
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for number in numbers:
                text = " ".join(itertools.islice(words, WORDS))
                row = {"id": str(number), "title": f"Document {number}", "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def words_of(passages: Path) -> Iterator[str]:
    while True:
        for _, passage in formats.read_passages(passages):
            yield from passage.text.split()


def measured(args: list[str], log: Path) -> tuple[float, float, float]:
    """Runs a `dpr` command; returns its seconds, seconds of processor time, and most megabytes."""
    start_s, largest_mb = time.monotonic(), 0.0
    before = os.times()
    with log.open("wb") as file:
        process = subprocess.Popen([*DPR, *args], stdout=file, stderr=file)
        while process.poll() is None:
            time.sleep(0.25)
            largest_mb = max(largest_mb, sum(map(pss_mb, tree(process.pid))))
    took_s, after = time.monotonic() - start_s, os.times()
    if process.returncode:
        sys.exit(f"dpr {args[0]} ended with {process.returncode}:\n{log.read_text()}")
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of children, and of theirs
    return took_s, cpu_s, largest_mb


def tree(pid: int) -> Iterator[int]:
    """Yields a process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from tree(int(child))


def pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 100_000])
    given = parser.parse_args()
    main(given.passages, given.out, given.documents)
