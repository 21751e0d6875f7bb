"""benchmarks/cut_corpus.py: what is left is whole, and the qrels point at the same questions and
passages.
"""

import ast
import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("train.json", "dev.json", "test.qa.csv", "test.qrels"):
        shutil.copyfile(NQ_SMALL / name, folder / name)
    passages = gzip.decompress((NQ_SMALL / "passages.tsv.gz").read_bytes())
    (folder / "passages.tsv").write_bytes(passages)
    return folder


def read(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t"))


def judged(folder: Path) -> dict[str, set[str]]:
    """The gold passages of each test question, by its text."""
    questions = read(folder / "test.qa.csv")
    found: dict[str, set[str]] = {}
    for line in (folder / "test.qrels").read_text(encoding="utf-8").splitlines():
        row, _, passage_id, _ = line.split()
        found.setdefault(questions[int(row)][0], set()).add(passage_id)
    return found


def test_gold_passages_and_judgements_stay(source: Path, tmp_path: Path) -> None:
    import cut_corpus

    whole = {row[0]: row for row in read(source / "passages.tsv")}
    test = len(read(source / "test.qa.csv"))
    sizes = {"train_questions": 10, "test_questions": test // 2}
    out = tmp_path / "cut"
    cut_corpus.main(source, out, passages=len(whole) - 20, **sizes)

    rows = read(out / "passages.tsv")
    assert len(rows) - 1 == len(whole) - 20  # without the header
    assert all(row == whole[row[0]] for row in rows)
    kept = {row[0] for row in rows}
    assert len(kept) == len(rows)

    train = json.loads((out / "train.json").read_text(encoding="utf-8"))
    dev = json.loads((out / "dev.json").read_text(encoding="utf-8"))
    assert len(train) == 10
    assert dev == json.loads((source / "dev.json").read_text(encoding="utf-8"))
    for question in train + dev:
        assert {str(one["passage_id"]) for one in question["positive_ctxs"]} <= kept

    before, after = judged(source), judged(out)
    asked = read(out / "test.qa.csv")
    assert len(asked) == test // 2
    assert all(isinstance(ast.literal_eval(answers), list) for _, answers in asked)
    for question, _ in asked:
        assert after[question] == before[question] <= kept

    again = tmp_path / "again"
    cut_corpus.main(source, again, passages=len(whole) - 20, **sizes)
    for file in out.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_questions_without_answers_are_numbered_anew(source: Path, tmp_path: Path) -> None:
    """As test.qrels is; and no training question need be kept."""
    import cut_corpus

    asked = [question for question, _ in read(source / "test.qa.csv")]
    lines = "".join(f"{number}\t{question}\n" for number, question in enumerate(asked))
    (source / "queries.tsv").write_text(lines, encoding="utf-8")
    out = tmp_path / "with answers"
    sizes = {"train_questions": 0, "test_questions": len(asked) // 2}
    passages = len(read(source / "passages.tsv")) - 21
    cut_corpus.main(source, out, passages=passages, **sizes)
    kept = [question for question, _ in read(out / "test.qa.csv")]
    assert json.loads((out / "train.json").read_text(encoding="utf-8")) == []

    (source / "test.qa.csv").unlink()
    again = tmp_path / "without"
    cut_corpus.main(source, again, passages=passages, **sizes)
    assert read(again / "queries.tsv") == [[str(i), text] for i, text in enumerate(kept)]
    assert (again / "test.qrels").read_bytes() == (out / "test.qrels").read_bytes()


def test_sizes_that_cannot_be_had_are_refused(source: Path, tmp_path: Path) -> None:
    import cut_corpus

    out = tmp_path / "cut"
    with pytest.raises(SystemExit, match="of them gold: ask for a number between"):
        cut_corpus.main(source, out, passages=5, train_questions=10, test_questions=10)
    with pytest.raises(SystemExit, match="100000 questions are asked for"):
        cut_corpus.main(source, out, passages=500, train_questions=100_000, test_questions=10)
    assert not out.exists()
