"""Run files of any tool, in trec_eval's order, and what is wrong with them by line."""

from pathlib import Path

import ir_measures
import numpy as np
import pytest

from dpr_jax.errors import InputError
from dpr_jax.evaluation.trec import read_run

QUESTIONS = {"q1": 0, "q2": 1, "q3": 2}
PASSAGES = {name: row for row, name in enumerate(["a", "b", "10", "9", "é"])}


def read(tmp_path: Path, text: str) -> list[list[int]]:
    file = tmp_path / "run.trec"
    file.write_text(text, encoding="utf-8")
    return [found.tolist() for found in read_run(file, QUESTIONS, PASSAGES)]


def test_order_is_by_score_not_by_line_or_rank(tmp_path: Path) -> None:
    text = "q2 Q0 a 1 0.5 x\nq1 Q0 b 1 1 x\nq2 Q0 é 2 0.75 x\n\nq2\tQ0\tb\t3\t-1e3\tx\n"
    assert read(tmp_path, text) == [[1], [4, 0, 1], []]


def test_ties_are_trec_evals(tmp_path: Path) -> None:
    """Equal as float32, ids backwards: é > b > a > 9 > 10."""
    lines = [
        f"q1 Q0 {name} {rank} {score} x"
        for rank, (name, score) in enumerate(
            [("10", 1), ("9", 1), ("a", 1 + 1e-12), ("b", 1), ("é", 1)], start=1
        )
    ]
    [order, *_] = read(tmp_path, "\n".join(lines))
    names = list(PASSAGES)
    assert [names[row] for row in order] == ["é", "b", "a", "9", "10"]
    for rank, row in enumerate(order, start=1):
        run = ir_measures.read_trec_run(str(tmp_path / "run.trec"))
        found = ir_measures.calc_aggregate([ir_measures.RR], {"q1": {names[row]: 1}}, run)
        assert found[ir_measures.RR] == pytest.approx(1 / rank)


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffq1 Q0 a 1 2 x\r\nq2 Q0 b 1 1e-3 x\r\n") == [[0], [1], []]


def test_scores_beyond_float32(tmp_path: Path) -> None:
    assert read(tmp_path, "q1 Q0 a 1 1e38 x\nq1 Q0 b 2 1e300 x\n")[0] == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 a 1 1 x\nq1 Q0 b 2 0.5\n", r"run.trec:2: 5 fields"),
        ("q1 Q0 a 1 high x\n", r"run.trec:1: score 'high' is not a finite number"),
        ("q1 Q0 a 1 nan x\n", r"run.trec:1: score 'nan' is not a finite number"),
        ("q1 Q0 a 1 -inf x\n", r"run.trec:1: score '-inf' is not a finite number"),
        ("\nq9 Q0 a 1 1 x\n", r"run.trec:2: question 'q9' is not among the 3 test"),
        ("q1 Q0 z 1 1 x\n", r"run.trec:1: passage 'z' is not in the corpus of 5"),
        (
            "q1 Q0 a 1 1 x\nq1 Q0 a 2 .5 x\n",
            r"run.trec: passage 'a' is there twice for question 'q1'",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "run.trec"
    file.write_bytes(b"q1 Q0 \xff\xfe 1 1 x\n")
    with pytest.raises(InputError, match="run.trec:1: passage"):
        read_run(file, QUESTIONS, PASSAGES)


def test_rows_are_int64(tmp_path: Path) -> None:
    file = tmp_path / "run.trec"
    file.write_text("q1 Q0 a 1 1 x\n")
    assert all(found.dtype == np.int64 for found in read_run(file, QUESTIONS, PASSAGES))
