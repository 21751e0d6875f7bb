"""Cuts this folder's data set out of the full MedQuAD in DPR's layout; run again, it gives the same
rows.

  python data/quickstart/cut.py MEDQUAD_FOLDER [OUT_FOLDER]

MEDQUAD_FOLDER holds passages.tsv, train.json, dev.json, queries.tsv and test.qrels. Whole subjects
are drawn, so that the questions on one disease (its symptoms, its treatment, ...) stay together:
telling those apart is the task. A subject belongs to one split only, however its name is spelled.
"""

import csv
import gzip
import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

SEED = 13
TRAIN_QUESTIONS, DEV_QUESTIONS, TEST_QUESTIONS = 1500, 200, 400
TRAIN_FAMILY = 2  # a training subject has at least so many questions
PASSAGES = 3300

Question = dict[str, Any]  # id, question, gold (passage ids), row (as in the file)


def main(source: Path, out: Path) -> None:
    with (source / "passages.tsv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    passages = {row[0]: row for row in rows}
    subject_of = {id_: subject(title) for id_, _, title in rows}

    full = {
        "train": read_json(source / "train.json"),
        "dev": read_json(source / "dev.json"),
        "test": read_test(source / "queries.tsv", source / "test.qrels"),
    }
    families = {split: by_subject(questions, subject_of) for split, questions in full.items()}
    owners = Counter(name for family in families.values() for name in family)
    for family in families.values():
        for name in [name for name in family if owners[name] > 1]:
            del family[name]

    rng = random.Random(SEED)
    chosen = {
        "test": draw(families["test"], TEST_QUESTIONS, 1, rng),
        "dev": draw(families["dev"], DEV_QUESTIONS, 1, rng),
        "train": draw(families["train"], TRAIN_QUESTIONS, TRAIN_FAMILY, rng),
    }
    subjects = {
        split: {subject_of[id_] for question in questions for id_ in question["gold"]}
        for split, questions in chosen.items()
    }
    assert not subjects["test"] & (subjects["train"] | subjects["dev"])
    assert not subjects["dev"] & subjects["train"]

    kept = {id_ for split in chosen.values() for row in split for id_ in row["gold"]}
    kept |= {id_ for id_, name in subject_of.items() if name in subjects["test"]}
    others = [id_ for id_ in passages if id_ not in kept]
    kept |= set(rng.sample(others, PASSAGES - len(kept)))

    out.mkdir(parents=True, exist_ok=True)
    lines = [tsv(header)] + [tsv(row) for id_, row in passages.items() if id_ in kept]
    write_gz(out / "passages.tsv.gz", "".join(lines))
    for split in ("train", "dev"):
        lines = [
            json.dumps(row["row"], ensure_ascii=False, separators=(",", ":"))
            for row in chosen[split]
        ]
        write_gz(out / f"{split}.json.gz", "[\n" + ",\n".join(lines) + "\n]\n")
    (out / "test.queries.tsv").write_text(
        "".join(f"{row['id']}\t{row['question']}\n" for row in chosen["test"]),
        encoding="utf-8",
    )
    (out / "test.qrels").write_text(
        "".join(f"{row['id']} 0 {id_} 1\n" for row in chosen["test"] for id_ in row["gold"]),
        encoding="utf-8",
    )
    counts = {split: len(questions) for split, questions in chosen.items()}
    print({**counts, "passages": len(kept)})


def subject(title: str) -> str:
    """One name for all spellings of a subject: lower case, words in order of the alphabet, no
    punctuation.
    """
    return " ".join(sorted(re.findall(r"\w+", title.casefold())))


def read_json(path: Path) -> list[Question]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        {
            "id": str(number),
            "question": row["question"],
            "gold": [passage["passage_id"] for passage in row["positive_ctxs"]],
            "row": row,
        }
        for number, row in enumerate(rows)
    ]


def read_test(queries: Path, qrels: Path) -> list[Question]:
    gold = defaultdict(list)
    for line in qrels.read_text(encoding="utf-8").splitlines():
        question_id, _, passage_id, _ = line.split()
        gold[question_id].append(passage_id)
    pairs = [line.split("\t") for line in queries.read_text(encoding="utf-8").splitlines()]
    return [{"id": id_, "question": text, "gold": gold[id_]} for id_, text in pairs]


def by_subject(questions: list[Question], subject_of: dict[str, str]) -> dict[str, list[Question]]:
    """Subject -> its questions; a question whose gold passages lie in several subjects is left
    out.
    """
    families = defaultdict(list)
    for question in questions:
        names = {subject_of[id_] for id_ in question["gold"]}
        if len(names) == 1:
            families[names.pop()].append(question)
    return dict(families)


def draw(
    families: dict[str, list[Question]], total: int, smallest: int, rng: random.Random
) -> list[Question]:
    """Whole families by chance until there are `total` questions; one that no longer fits is passed
    over.
    """
    names = sorted(name for name in families if len(families[name]) >= smallest)
    rng.shuffle(names)
    chosen: list[Question] = []
    for name in names:
        if len(chosen) + len(families[name]) <= total:
            chosen += families[name]
    assert len(chosen) == total
    return sorted(chosen, key=lambda question: int(question["id"]))


def tsv(row: list[str]) -> str:
    """One line as DPR's corpus has it: quotes only around a field that needs them."""
    fields = ['"' + field.replace('"', '""') + '"' if '"' in field else field for field in row]
    assert not any("\t" in field or "\n" in field for field in row)
    return "\t".join(fields) + "\n"


def write_gz(path: Path, text: str) -> None:
    """Compresses without time stamp and file name, so that the same text gives the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as file,
    ):
        file.write(text.encode("utf-8"))


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent,
    )
