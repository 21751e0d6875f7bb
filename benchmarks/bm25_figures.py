"""Measures BM25's top-k accuracy on test questions: the line that dense retrieval has to beat.

  python benchmarks/bm25_figures.py FOLDER

FOLDER holds passages.tsv, test.qrels and test.qa.csv or queries.tsv (or test.queries.tsv), plain or
.gz. A question counts where a gold passage, or one with an answer, is among the first 1, 5, 20 or
100. Both usual settings of k1 and b are shown: 0.9 and 0.4 of the DPR paper, and 1.2 and 0.75.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dpr_jax.data.answers import has_answer
from dpr_jax.data.readers import formats, judgements
from dpr_jax.index import bm25
from dpr_jax.workdir import open_workdir

CUTOFFS = (1, 5, 20, 100)
SETTINGS = ((0.9, 0.4), (1.2, 0.75))
READERS = {
    "test.qa.csv": formats.read_question_answers,
    "queries.tsv": formats.read_question_ids,
    "test.queries.tsv": formats.read_question_ids,
}


def main(folder: Path) -> None:
    passages = [row for _, row in formats.read_passages(find(folder, "passages.tsv"))]
    name = next(name for name in READERS if find(folder, name).exists())
    questions = list(READERS[name](find(folder, name), None))
    gold = judgements.read_qrels(folder / "test.qrels").positives
    print(f"{folder.name}: {len(passages):,} passages, {len(questions):,} questions")

    for k1, b in SETTINGS:
        start_s = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            texts = (one.title_and_text for one in passages)
            workdir, count = open_workdir(scratch), len(passages)
            index = bm25.build_if_missing(workdir, texts, count=count, corpus="", k1=k1, b=b)
            built_s = time.monotonic()
            asked = [one.question for one in questions]
            _, rows_QK = bm25.load(index).search(asked, max(CUTOFFS))
            searched_s = time.monotonic()
        found = [[passages[row] for row in rows if row >= 0] for rows in rows_QK.tolist()]
        by_gold = [
            [hit.id in gold.get(question.id, ()) for hit in hits]
            for question, hits in zip(questions, found, strict=True)
        ]
        print(f"k1 {k1}, b {b}: gold passage {accuracies(by_gold)}")
        if any(question.answers for question in questions):
            by_answer = [
                [has_answer(question.answers, hit.text) for hit in hits]
                for question, hits in zip(questions, found, strict=True)
            ]
            print(f"k1 {k1}, b {b}: answer in passage {accuracies(by_answer)}")
        print(
            f"  index {built_s - start_s:.1f} s, {len(asked) / (searched_s - built_s):.0f}"
            " questions/s"
        )


def find(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def accuracies(hits: list[list[bool]]) -> str:
    """Returns the share of the questions with a hit in the first k, in percent."""
    return "/".join(f"{100 * np.mean([any(row[:k]) for row in hits]):.1f}" for k in CUTOFFS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
