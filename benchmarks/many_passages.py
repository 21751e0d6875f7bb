"""Grows small sets to a million passages and a hundred thousand questions.

  python benchmarks/many_passages.py --passages 1000000 --out DIR \
    data/nq_natural data/squad data/medquad
  dpr prepare --workdir RUN --data.passages DIR/passages.tsv --data.train DIR/train.json
  dpr mine --workdir RUN

It serves to measure preparing, BM25 and mining at size. Each set holds passages.tsv and train.json
in DPR's layout. The passages come first as they are, then again and again under new ids, with half
of their words replaced by words drawn from all passages. So lengths and word frequencies stay, and
no copy repeats its original. DIR/train.json holds the training questions of all sets; their gold
passages are the originals. The same seed gives the same bytes.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from dpr_jax.data.raw import Passage
from dpr_jax.data.readers import detect, formats

SEED = 13
REPLACED = 0.5


def main(folders: list[Path], passages: int, out: Path) -> None:
    out.mkdir(parents=True)
    originals = [
        passage._replace(id=f"{folder.name}-{passage.id}")
        for folder in folders
        for _, passage in formats.read_passages(folder / "passages.tsv")
    ]
    write_passages(out / "passages.tsv", originals, passages)
    questions = write_questions(out / "train.json", folders)
    print(f"{out}: {passages:,} passages, {questions:,} questions")


def write_passages(path: Path, originals: list[Passage], count: int) -> None:
    words = np.array([word for one in originals for word in one.text.split()], object)
    lengths = [len(one.text.split()) for one in originals]
    starts = np.cumsum([0, *lengths])
    chance = np.random.default_rng(SEED)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "text", "title"])
        for number in range(count):
            copy, row = divmod(number, len(originals))
            one = originals[row]
            if copy == 0:
                table.writerow([one.id, one.text, one.title])
                continue
            own = words[starts[row] : starts[row + 1]]
            drawn = words[chance.integers(len(words), size=len(own))]
            text = " ".join(np.where(chance.random(len(own)) < REPLACED, drawn, own))
            table.writerow([f"{one.id}-{copy}", text, one.title])


def write_questions(path: Path, folders: list[Path]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for folder in folders:
            for row in detect.questions(folder / "train.json").read(None):
                gold = [{"passage_id": f"{folder.name}-{id_}"} for id_ in row.positives]
                line = {
                    "question": row.question,
                    "answers": row.answers,
                    "positive_ctxs": gold,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    main(given.sets, given.passages, given.out)
