"""Several BEIR folders, each with its own corpus, in one call of the real command line."""

import json
import random
from pathlib import Path

import ir_measures
import pytest
import tiny

from dpr_jax import cli
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir

NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"
WORDS = ["iron", "copper", "river", "delta", "comet", "tulip", "violin", "harbour", "lantern"]


def beir_folder(folder: Path, subject: str, seed: int) -> Path:
    """A corpus of 40 passages whose ids are those of every other such folder, and six questions."""
    chance = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join([subject, *chance.choices(WORDS, k=6)]) for _ in range(40)]
    rows = [{"_id": f"d{n}", "title": subject, "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    asked = [{"_id": f"q{n}", "text": " ".join(texts[n].split()[2:5])} for n in range(6)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)) + "\n")
    judged = [f"q{n}\td{n}\t2\nq{n}\td{n + 7}\t1" for n in range(6)]
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n"
    )
    return folder


def ndcg(workdir: WorkDir, folder: Path, run: str) -> float:
    """nDCG@10 of a run file by trec_eval, from the raw qrels."""
    text = read_lines(folder / "qrels" / "test.tsv")[1:]
    qrels = [ir_measures.Qrel(q, p, int(grade)) for q, p, grade in map(str.split, text)]
    file = str(workdir.runs("test") / f"{run}.trec")
    measure = ir_measures.parse_measure("nDCG@10")
    return ir_measures.calc_aggregate([measure], qrels, ir_measures.read_trec_run(file))[measure]


def read_lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def row_of(table: str, run: str) -> str:
    return next(line for line in table.splitlines() if line.startswith(f"│ {run} "))


def test_an_encoder_on_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without data.passages: a table per set, the macro-average, and nothing twice."""
    folders = {name: beir_folder(tmp_path / name, name, n) for n, name in enumerate(("sea", "sky"))}
    args = [
        "pipeline",
        "--workdir",
        str(tmp_path / "w"),
        "--data.test",
        *map(str, folders.values()),
    ]
    args += ["--model.init", str(tiny.write(tmp_path / "init"))]
    cli.run(args)
    out, err = capsys.readouterr()
    assert "stage 15 of 15: evaluate" in err and "encode untrained on sky" in err
    workdir = open_workdir(tmp_path / "w")
    assert not workdir.find("data") and not workdir.retrievers()
    sea, sky = out[out.index("\nsea\n") : out.index("macro-average of 2 sets")].split("\nsky\n")
    mean = out.split("macro-average of 2 sets")[1]
    for run in ("bm25", "untrained"):
        found = {name: ndcg(workdir.question_set(name), folders[name], run) for name in folders}
        for table, value in ((sea, found["sea"]), (sky, found["sky"])):
            assert f" {100 * value:.1f} " in row_of(table, run)
        assert f" {100 * sum(found.values()) / 2:.1f} " in row_of(mean, run)
    assert len({ndcg(workdir.question_set(name), folders[name], "bm25") for name in folders}) == 2

    before = {path: path.stat().st_mtime_ns for path in workdir.root.rglob("*") if path.is_file()}
    cli.run(args)
    after = {path: path.stat().st_mtime_ns for path in workdir.root.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"macro_average.json"} and before.keys() == after.keys()
    assert capsys.readouterr().out.count("macro-average of 2 sets") == 1
    cli.run(["ask", "sky comet", "--workdir", str(workdir.question_set("sky").root), "--k", "1"])
    assert "sky" in capsys.readouterr().out


def test_what_was_trained_on_one_corpus_answers_another(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A set over the common corpus, a copy of that, and one with its own corpus."""
    other = beir_folder(tmp_path / "other", "moon", 3)
    common = beir_folder(tmp_path / "common", "sun", 4)
    copy = beir_folder(tmp_path / "copy", "sun", 4)
    texts = [json.loads(line)["text"] for line in read_lines(common / "corpus.jsonl")]
    train = [
        {
            "question": " ".join(text.split()[2:5]),
            "positive_ctxs": [{"passage_id": f"d{n}", "title": "sun", "text": text}],
        }
        for n, text in enumerate(texts[:16])
    ]
    (tmp_path / "train.json").write_text(json.dumps(train))
    settings = {
        "data.passages": common,
        "data.train": tmp_path / "train.json",
        "data.dev": tmp_path / "train.json",
        "model.init": tiny.write(tmp_path / "init", layers=1),
        "model.max-passage-tokens": 16,
        "train.batch-size": 8,
        "train.total-steps": 1,
        "train.hard-negatives": 0,
        "train.dropout": 0,
    }
    args = ["pipeline", "--workdir", str(tmp_path / "w"), "--data.test", str(copy), str(other)]
    cli.run([*args, *(str(part) for k, v in settings.items() for part in (f"--{k}", v))])
    out = capsys.readouterr().out
    workdir = open_workdir(tmp_path / "w")
    inside = workdir.question_set("other")
    assert (workdir.runs("copy") / "trained.trec").exists()  # the same corpus: no index twice
    assert not workdir.question_set("copy").file.exists()
    for run in ("bm25", "untrained", "trained", "hybrid"):
        value = 100 * ndcg(inside, other, run)
        assert f" {value:.1f} " in row_of(out[out.index("\nother\n") :], run)
        assert row_of(out.split("macro-average of 2 sets")[1], run)
    assert inside.retriever("trained").encoder == workdir.retriever("trained").encoder
    found_on_dev = workdir.retriever("hybrid").current("weight") / "manifest.json"
    recipe = inside.retriever("hybrid").read()["recipe"]
    weight = json.loads(found_on_dev.read_text())["weight"]
    assert recipe["retrieve"]["fusion_weight"] == weight


def test_prepare_alone_names_the_command(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "sea", "sea", 0)
    with pytest.raises(InputError, match=r"it must name the corpus; `dpr pipeline` runs test sets"):
        cli.run(["prepare", "--workdir", str(tmp_path / "w"), "--data.test", str(folder)])


def test_documents_around_the_work_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The Rhine rises in the Alps.")
    for folder in (tmp_path, tmp_path.parent, Path("/")):
        with pytest.raises(InputError, match=r"holds the work directory .*/w, which changes"):
            cli.run(["prepare", "--workdir", str(tmp_path / "w"), "--data.passages", str(folder)])
    assert not (tmp_path / "w").exists()
