"""Graded judgements and several test sets through the command line, held against ir_measures."""

import json
import random
from pathlib import Path

import ir_measures
import pytest
from layouts import lines, write_text

from dpr_jax import cli
from dpr_jax.data import store
from dpr_jax.data.readers import formats, judgements
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir

NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"
MEASURES = {
    "nDCG@10": "nDCG@10",
    "MAP": "AP",
    "recall@100": "R@100",
    "top-1": "Success@1",
    "top-20": "Success@20",
}


def beir_folder(folder: Path, rows: range, chance: random.Random) -> Path:
    """Writes questions of nq_small with grades 0 to 3 as a BEIR folder, without a corpus.

    A gold passage has 3, most others of its article 2 or 1, and passages from anywhere 0 to 2.
    """
    corpus = [one for _, one in formats.read_passages(NQ_SMALL / "passages.tsv.gz")]
    titles = {one.id: one.title for one in corpus}
    asked = [*formats.read_question_answers(NQ_SMALL / "test.qa.csv")]
    gold = judgements.read_qrels(NQ_SMALL / "test.qrels").positives
    queries, judged = [], []
    for row in rows:
        queries.append({"_id": f"q{row}", "text": asked[row].question})
        ids = [*gold[str(row)]]
        article = [one.id for one in corpus if one.title in {titles[id_] for id_ in ids}]
        others = [one.id for one in chance.sample(corpus, 6)]
        grades = {id_: chance.randrange(3) for id_ in others}
        grades |= {id_: chance.choice((1, 2, 2)) for id_ in article} | dict.fromkeys(ids, 3)
        judged += [f"q{row}\t{id_}\t{grade}\n" for id_, grade in grades.items()]
    (folder / "qrels").mkdir(parents=True)
    write_text(folder, "queries.jsonl", lines(*queries))
    write_text(folder / "qrels", "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def other_run(path: Path, rows: range, chance: random.Random) -> None:
    """Writes a run with ties, without the last two questions, gold passages among the first."""
    corpus = [one.id for _, one in formats.read_passages(NQ_SMALL / "passages.tsv.gz")]
    gold = judgements.read_qrels(NQ_SMALL / "test.qrels").positives
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for row in rows[:-2]:
            found = dict.fromkeys([*gold[str(row)], *chance.sample(corpus, 40)])
            for rank, id_ in enumerate(found, 1):
                file.write(f"q{row} Q0 {id_} {rank} {chance.randrange(12)} other\n")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkDir, dict[str, Path]]:
    """Two sets over one corpus, with a run of ours and one of another tool on each."""
    root, chance = tmp_path_factory.mktemp("graded"), random.Random(7)
    rows = {"early": range(25), "late": range(25, 60)}
    sets = {name: beir_folder(root / name / "beir", rows[name], chance) for name in rows}
    place = ["--workdir", str(root / "work")]
    named = [f"{name}={folder}" for name, folder in sets.items()]
    passages = str(NQ_SMALL / "passages.tsv.gz")
    cli.run(["prepare", *place, "--data.passages", passages, "--data.test", *named])
    for stage in ("index", "retrieve"):
        cli.run([stage, *place, "--retriever", "bm25"])
    workdir = open_workdir(root / "work")
    for name, asked in rows.items():
        other_run(workdir.imported_runs(name) / "other.trec", asked, chance)
    cli.run(["evaluate", *place])
    return workdir, sets


def mrr_at_10(file: Path, qrels: list[ir_measures.Qrel]) -> float:
    """Computes trec_eval's recip_rank on the first ten, in its order: by score, ties by id."""
    run = sorted(ir_measures.read_trec_run(str(file)), key=lambda one: (one.score, one.doc_id))
    tens = {one.query_id: [] for one in run}
    for one in run[::-1]:
        tens[one.query_id].append(one)
    first = [one for ten in tens.values() for one in ten[:10]]
    return ir_measures.calc_aggregate([ir_measures.RR], qrels, first)[ir_measures.RR]


def measured(workdir: WorkDir, question_set: str, run: str) -> dict[str, float]:
    facts = json.loads((workdir.metrics / question_set / f"{run}.json").read_text())
    return {name: one["value"] for name, one in facts["gold"]["metrics"].items()}


@pytest.mark.parametrize("question_set", ["early", "late"])
@pytest.mark.parametrize("run", ["bm25", "other"])
def test_figures_are_trec_evals(
    evaluated: tuple[WorkDir, dict[str, Path]], question_set: str, run: str
) -> None:
    """Computed from the raw files alone; the order of equal scores is part of it."""
    workdir, sets = evaluated
    text = (sets[question_set] / "qrels" / "test.tsv").read_text().splitlines()[1:]
    qrels = [ir_measures.Qrel(q, p, int(grade)) for q, p, grade in map(str.split, text)]
    assert {one.relevance for one in qrels} == {0, 1, 2, 3}
    folders = workdir.runs(question_set), workdir.imported_runs(question_set)
    (file,) = (one / f"{run}.trec" for one in folders if (one / f"{run}.trec").exists())
    parsed = {name: ir_measures.parse_measure(measure) for name, measure in MEASURES.items()}
    found = ir_measures.calc_aggregate(parsed.values(), qrels, ir_measures.read_trec_run(str(file)))
    wanted = {name: found[measure] for name, measure in parsed.items()}
    ours = measured(workdir, question_set, run)
    wanted["MRR@10"] = mrr_at_10(file, qrels)
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert 0.05 < wanted["nDCG@10"] < 0.95
    # grades count: with all gold passages alike nDCG is another number
    alike = [one._replace(relevance=min(1, one.relevance)) for one in qrels]
    ndcg = parsed["nDCG@10"]
    binary = ir_measures.calc_aggregate([ndcg], alike, ir_measures.read_trec_run(str(file)))
    assert abs(binary[ndcg] - ours["nDCG@10"]) > 1e-3


def test_a_table_per_set_and_the_macro_average(
    evaluated: tuple[WorkDir, dict[str, Path]], capsys: pytest.CaptureFixture
) -> None:
    workdir, _ = evaluated
    cli.run(["evaluate", "--workdir", str(workdir.root)])
    out, err = capsys.readouterr()
    assert err.count("evaluate: up to date") == 2
    assert out.index("\nearly\n") < out.index("\nlate\n") < out.index("macro-average of 2 sets")
    head = next(line for line in out.splitlines() if "top-1 [95 %]" in line)
    assert [head.count(name) for name in ("MRR@10", "nDCG@10", "recall@100")] == [1, 1, 1]
    averages = json.loads((workdir.metrics / "macro_average.json").read_text())["gold"]
    for run in ("bm25", "other"):
        both = [measured(workdir, question_set, run) for question_set in ("early", "late")]
        mean = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
        assert averages[run] == pytest.approx(mean)
        row = next(line for line in out.split("macro-average")[1].splitlines() if run in line)
        assert f" {100 * mean['nDCG@10']:.1f} " in row
    for question_set in ("early", "late"):
        page = (workdir.metrics / f"{question_set}.html").read_text()
        assert all(f"<th>{name}</th>" in page for name in ("MRR@10", "nDCG@10", "recall@100"))


def test_two_runs_are_compared_on_every_set(
    evaluated: tuple[WorkDir, dict[str, Path]], capsys: pytest.CaptureFixture
) -> None:
    workdir, _ = evaluated
    cli.run(["compare", "bm25", "other", "--workdir", str(workdir.root)])
    out = capsys.readouterr().out
    early, late = out[out.index("\nearly\n") :].split("\nlate\n")
    for part, question_set in ((early, "early"), (late, "late")):
        row = next(line for line in part.splitlines() if line.startswith("│ nDCG@10"))
        for run in ("bm25", "other"):
            assert f" {100 * measured(workdir, question_set, run)['nDCG@10']:.1f} " in row


def test_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    chance = random.Random(1)
    one = beir_folder(tmp_path / "a" / "set", range(2), chance)
    other = beir_folder(tmp_path / "b" / "set", range(2), chance)
    args = ["prepare", "--workdir", str(tmp_path / "work"), "--data.passages"]
    args += [str(NQ_SMALL / "passages.tsv.gz"), "--data.test", str(one)]
    with pytest.raises(InputError, match=r"'set', which is taken; write NAME=PATH"):
        cli.run([*args, str(other)])
    cli.run([*args, f"b={other}"])
    assert store.test_sets(open_workdir(tmp_path / "work")) == ("set", "b")
