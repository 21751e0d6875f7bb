"""What `dpr evaluate` says of rankings and answers that plain counting gets wrong: questions that
are passages, scripts without spaces, broken patterns, runs older than the corpus.
"""

import json
from pathlib import Path

import pytest
from layouts import lines, write_text

from dpr_jax import cli
from dpr_jax.data.answers import has_answer

CHINESE = [
    ("c1", "塞纳河流经法国首都巴黎。", "哪条河流经巴黎？", "塞纳河"),
    ("c2", "柏林是德国的首都。", "德国的首都是哪里？", "柏林"),
    ("c3", "埃特纳火山位于西西里岛。", "西西里岛有哪座火山？", "埃特纳火山"),
]


def dpr(folder: Path, command: str, *flags: str) -> None:
    cli.run([*command.split(), "--workdir", str(folder / "w"), *flags])


def values(folder: Path, run: str, view: str) -> dict[str, float]:
    facts = json.loads((folder / "w" / "metrics" / "test" / f"{run}.json").read_text())
    return {name: found["value"] for name, found in facts[view]["metrics"].items()}


def write_run(folder: Path, name: str, *lists: tuple[str, str]) -> None:
    """Writes a run of another tool: question, then passages, best first."""
    target = folder / "w" / "runs" / "test" / "imported"
    target.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"{question} Q0 {passage} {rank} {9 - rank} x\n"
        for question, passages in lists
        for rank, passage in enumerate(passages.split(), 1)
    )
    (target / f"{name}.trec").write_text(text, encoding="utf-8")


def test_a_chinese_corpus_ends_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = lines(*({"id": id_, "text": text} for id_, text, *_ in CHINESE))
    asked = lines(
        *(
            {"question": question, "answers": [answer], "positive_ids": [id_]}
            for id_, _, question, answer in CHINESE
        )
    )
    passages = ["--data.passages", str(write_text(tmp_path, "p.jsonl", corpus))]
    test = ["--data.test", str(write_text(tmp_path, "q.jsonl", asked))]
    dpr(tmp_path, "prepare", *passages, *test)
    for command in ("index", "retrieve"):
        dpr(tmp_path, command, "--retriever", "bm25")
    assert "bm25: chinese (found from the corpus): pairs of characters" in capsys.readouterr().err
    dpr(tmp_path, "evaluate")
    said = capsys.readouterr()
    assert values(tmp_path, "bm25", "gold")["top-1"] == 1.0 and "bm25" in said.out
    assert "3 of 3 questions have answers in scripts without spaces, such as '塞纳河'" in said.err
    assert values(tmp_path, "bm25", "answer")["top-1"] == 0.0
    dpr(tmp_path, "retrieve", "--retriever", "bm25", "--evaluate.answer-match", "substring")
    dpr(tmp_path, "evaluate", "--evaluate.answer-match", "substring")
    assert "without spaces" not in capsys.readouterr().err
    assert values(tmp_path, "bm25", "answer")["top-1"] == 1.0


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("塞纳河", "塞纳河流经法国首都巴黎。", True),
        ("กรุงเทพ", "เมืองหลวงของไทยคือกรุงเทพมหานคร", True),
        ("서울", "대한민국의 수도는 서울이다.", True),
        ("München", "in Mu\u0308nchen", True),
        ("new  york", "New\nYork", True),
        ("巴黎市", "塞纳河流经巴黎", False),
    ],
)
def test_substrings(answer: str, text: str, found: bool) -> None:
    assert has_answer([answer], text, match="substring") is found


def arguana(folder: Path) -> list[str]:
    """Writes a BEIR folder whose question is a passage; returns the flags that name it."""
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    corpus = ("Zoos protect species", "Zoos keep species in cages", "Taxes on sugar")
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(corpus, 1)]
    write_text(beir, "corpus.jsonl", lines(*rows))
    write_text(beir, "queries.jsonl", lines(rows[0]))
    write_text(beir / "qrels", "test.tsv", "query-id\tcorpus-id\tscore\nd1\td2\t1\n")
    return ["--data.passages", str(beir), "--data.test", str(beir)]


def test_a_question_that_is_a_passage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dpr(tmp_path, "prepare", *arguana(tmp_path))
    write_run(tmp_path, "other", ("d1", "d1 d2 d3"))
    dpr(tmp_path, "evaluate")
    assert values(tmp_path, "other", "gold")["top-1"] == 0.0  # as trec_eval
    assert "1 of 1 questions are passages of the corpus themselves" in capsys.readouterr().err
    dpr(tmp_path, "evaluate", "--evaluate.drop-self")
    assert values(tmp_path, "other", "gold")["top-1"] == 1.0  # as BEIR
    said = capsys.readouterr().err
    assert "1 of 1 questions have a passage of their own id" in said and "by chance" not in said


def test_ids_that_are_equal_by_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passages = write_text(tmp_path, "p.tsv", "0\tRome is old\n1\tOslo is cold\n")
    test = write_text(tmp_path, "q.jsonl", lines({"question": "who", "positive_ids": ["0"]}))
    dpr(tmp_path, "prepare", "--data.passages", str(passages), "--data.test", str(test))
    write_run(tmp_path, "other", ("0", "0 1"))
    dpr(tmp_path, "evaluate")
    assert "themselves" not in capsys.readouterr().err
    dpr(tmp_path, "evaluate", "--evaluate.drop-self")
    assert "their texts differ, so the ids may be equal by chance" in capsys.readouterr().err


def test_broken_patterns_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passages = write_text(tmp_path, "p.tsv", "p0\tEtna is high\np1\tMadrid is big\n")
    test = write_text(tmp_path, "q.csv", "what\t['(Mt\\\\.? )?Etna']\nwhich\t['Madrid(']\n")
    dpr(tmp_path, "prepare", "--data.passages", str(passages), "--data.test", str(test))
    write_run(tmp_path, "other", ("0", "p0"), ("1", "p1"))
    dpr(tmp_path, "evaluate", "--evaluate.answer-match", "regex")
    assert values(tmp_path, "other", "answer")["top-1"] == 0.5
    said = capsys.readouterr().err
    assert "1 answers are no regular expressions and find nothing, such as 'Madrid('" in said


def test_runs_older_than_the_corpus_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = write_text(tmp_path, "p.tsv", "p0\tRome is old\np1\tOslo is cold\np2\tBern\n")
    test = write_text(tmp_path, "q.jsonl", lines({"question": "old", "positive_ids": ["p0"]}))
    dpr(tmp_path, "prepare", "--data.passages", str(passages), "--data.test", str(test))
    for command in ("index", "retrieve"):
        dpr(tmp_path, command, "--retriever", "bm25")
    write_run(tmp_path, "other", ("0", "p0 p1"))
    write_run(tmp_path, "clean", ("0", "p2 p1"))
    cli.run(
        ["index", "remove", str(write_text(tmp_path, "ids", "p0\n")), "--workdir"]
        + [str(tmp_path / "w")]
    )
    for _ in range(2):  # the second time it is up to date, and says so again
        capsys.readouterr()
        dpr(tmp_path, "evaluate")
        said = capsys.readouterr()
        assert "run other is marked with *: it holds 1 hits that were removed" in said.err
        assert "run bm25 is marked with *" in said.err and "run clean is" not in said.err
        assert "other *" in said.out and "clean *" not in said.out
    dpr(tmp_path, "retrieve", "--retriever", "bm25")
    dpr(tmp_path, "evaluate")
    assert "run bm25 is marked" not in capsys.readouterr().err
