"""Compares the figures of metrics/ with trec_eval's own (pytrec_eval through ir_measures).

  python benchmarks/trec_eval.py WORKDIR QRELS [SET]

Every run of the question set SET (default: test) is compared. QRELS are its gold passages, as in
data.test_qrels. Exits with an error where a figure differs by more than 1e-4.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import ir_measures

from dpr_jax.workdir import open_workdir

PAIRS = {
    "top-1": "Success@1",
    "top-5": "Success@5",
    "top-20": "Success@20",
    "top-100": "Success@100",
    "nDCG@10": "nDCG@10",
    "MAP": "AP",
    "recall@5": "R@5",
    "recall@20": "R@20",
    "recall@100": "R@100",
}
TOLERANCE = 1e-4


def main(folder: str, qrels_file: Path, question_set: str = "test") -> None:
    workdir = open_workdir(folder, new=False)
    qrels = list(ir_measures.read_trec_qrels(str(qrels_file)))
    measures = {name: ir_measures.parse_measure(PAIRS[name]) for name in PAIRS}
    largest = 0.0
    for run_file in sorted(workdir.runs(question_set).glob("*.trec")):
        metrics_file = workdir.metrics / question_set / f"{run_file.stem}.json"
        ours = json.loads(metrics_file.read_text(encoding="utf-8"))["gold"]["metrics"]
        run = list(ir_measures.read_trec_run(str(run_file)))
        found = ir_measures.pytrec_eval.calc_aggregate(list(measures.values()), qrels, run)
        theirs = {name: found[measure] for name, measure in measures.items()}
        theirs["MRR@10"] = reciprocal_rank(qrels, run)
        gaps = {name: abs(ours[name]["value"] - theirs[name]) for name in theirs}
        worst = max(gaps, key=gaps.__getitem__)
        largest = max(largest, gaps[worst])
        print(f"{run_file.stem}: largest gap {gaps[worst]:.1e} ({worst})")
    if largest > TOLERANCE:
        sys.exit(f"figures differ from trec_eval's by up to {largest:.1e}")


def reciprocal_rank(qrels: list, run: list) -> float:
    """Returns MRR@10.

    trec_eval's recip_rank has no cutoff, so it gets only the first ten of each question.
    """
    best: dict[str, list] = defaultdict(list)
    for one in run:
        best[one.query_id].append(one)
    first = [
        one for ranked in best.values() for one in sorted(ranked, key=lambda one: -one.score)[:10]
    ]
    return ir_measures.pytrec_eval.calc_aggregate([ir_measures.RR], qrels, first)[ir_measures.RR]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
