"""Cuts a data set to a smaller one, for studies that encode its corpus many times.

  python benchmarks/cut_corpus.py data/nq_natural --passages 6000 --train-questions 1600 \
    --test-questions 1500 --out runs/nq_natural_6k

Reads and writes DPR's layout (passages.tsv, train.json, dev.json, test.qa.csv, test.qrels); the
test questions may be in queries.tsv, without answers. Kept are the gold passages and others drawn
at random. Training and test questions are drawn at random too; dev stays as it is, and test.qrels
numbers the questions anew. The smaller corpus is the easier one, so figures on the two cannot be
compared.
"""

import argparse
import csv
import json
import random
from pathlib import Path


def main(
    source: Path,
    out: Path,
    *,
    passages: int,
    train_questions: int,
    test_questions: int,
    seed: int = 13,
) -> None:
    if out.exists():
        raise SystemExit(f"{out} exists; delete it or name another folder")
    draw = random.Random(seed)

    # --- questions, in the order of their files
    train, dev = (_json(source / f"{name}.json") for name in ("train", "dev"))
    train = [train[i] for i in _some(draw, len(train), train_questions)]
    asked = next(name for name in ("test.qa.csv", "queries.tsv") if (source / name).exists())
    test = _csv(source / asked)
    test_rows = _some(draw, len(test), test_questions)
    new_row = {str(old): str(new) for new, old in enumerate(test_rows)}
    qrels = [line.split() for line in _text(source / "test.qrels").splitlines()]
    qrels = [[new_row[row], *rest] for row, *rest in qrels if row in new_row]

    # --- passages, in the order of their file
    header, *rows = _csv(source / "passages.tsv")
    gold = {passage_id for _, _, passage_id, grade in qrels if int(grade) > 0}
    for question in train + dev:
        gold |= {str(one["passage_id"]) for one in question["positive_ctxs"]}
    others = [row[0] for row in rows if row[0] not in gold]
    if not len(gold) <= passages <= len(rows):
        raise SystemExit(
            f"--passages is {passages}; {source} has {len(rows)}, {len(gold)} of them gold: ask for"
            " a number between"
        )
    kept = gold | set(draw.sample(others, passages - len(gold)))

    # --- written
    out.mkdir(parents=True)
    _write(out / "passages.tsv", [header, *(row for row in rows if row[0] in kept)])
    chosen = [test[row] for row in test_rows]
    if asked == "queries.tsv":  # with an id in front, which test.qrels has too
        chosen = [[str(new), text] for new, (_, text) in enumerate(chosen)]
    _write(out / asked, chosen)
    lines = "".join(" ".join(fields) + "\n" for fields in qrels)
    (out / "test.qrels").write_text(lines, encoding="utf-8")
    for name, questions in (("train", train), ("dev", dev)):
        text = json.dumps(questions, ensure_ascii=False, indent=1)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(
        f"{out}: {passages:,} of {len(rows):,} passages, {len(gold):,} of them gold; questions:"
        f" {len(train):,} train, {len(dev):,} dev, {len(test_rows):,} test"
    )


def _some(draw: random.Random, size: int, wanted: int) -> list[int]:
    if not 0 <= wanted <= size:
        raise SystemExit(f"{wanted} questions are asked for, of {size}")
    return sorted(draw.sample(range(size), wanted))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _json(file: Path) -> list[dict]:
    return json.loads(_text(file))


def _csv(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t"))


def _write(file: Path, rows: list[list[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, delimiter="\t", lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder in DPR's layout")
    parser.add_argument("--passages", type=int, required=True)
    parser.add_argument("--train-questions", type=int, required=True)
    parser.add_argument("--test-questions", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    call = parser.parse_args()
    main(
        call.source,
        call.out,
        passages=call.passages,
        train_questions=call.train_questions,
        test_questions=call.test_questions,
    )
