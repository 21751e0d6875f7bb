"""A teacher's scores: in every layout that has them, beside the right passages, through to the
prepared data.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from layouts import DPR, TEVATRON, lines, write_parquet, write_text

from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare, store
from dpr_jax.data.readers import detect
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

TRIPLET = {"anchor": "who", "positive": "him", "negative": "her"}
LISTS = {"query": "who", "pos": ["him"], "neg": ["her", "", "them"]}
SCORED = {"pos_scores": [3.0], "neg_scores": [1.0, 7.0, -2.5]}


def read(path: Path) -> dict[str, float]:
    """The scores of the first row, by text of the passage (its id where it has none of its own)."""
    row = next(iter(detect.questions(path).read(None)))
    texts = {one.id: one.id if one.id.startswith("P") else one.text for one in row.passages}
    return {texts[id_]: score for id_, score in row.teacher_scores}


def read_row(folder: Path, row: dict[str, Any]) -> dict[str, float]:
    return read(write_text(folder, "t.jsonl", lines(row)))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        # what stands beside an empty text goes with it
        (LISTS | SCORED, {"him": 3.0, "her": 1.0, "them": -2.5}),
        (TEVATRON | {"pos_scores": [9], "neg_scores": [8]}, {"P1": 9.0, "P2": 8.0}),
        (DPR | {"pos_scores": [9], "neg_scores": [8]}, {"P1": 9.0, "P2": 8.0}),
        (TRIPLET | {"label": 4.5}, {"him": 0.0, "her": -4.5}),
        (TRIPLET | {"score": [4.5]}, {"him": 0.0, "her": -4.5}),
        (TRIPLET | {"scores": [4.5, 1]}, {"him": 4.5, "her": 1.0}),
        (
            TRIPLET | {"negative_2": "them", "label": [1, 2]},
            {"him": 0.0, "her": -1.0, "them": -2.0},
        ),
        (
            TRIPLET | {"negative_2": "", "label": [1, 2, 3]},
            {"him": 1.0, "her": 2.0},
        ),
        # one passage alone teaches nothing; such labels mean something else
        ({"anchor": "who", "positive": "him", "label": 1}, {}),
        (LISTS | {"pos_scores": None, "neg_scores": []}, {}),
        (TEVATRON, {}),
    ],
)
def test_scores_stand_beside_their_passages(
    tmp_path: Path, row: dict[str, Any], wanted: dict[str, float]
) -> None:
    assert read_row(tmp_path, row) == wanted


def test_a_score_of_a_dpr_context_is_not_a_teachers(tmp_path: Path) -> None:
    row = DPR | {"positive_ctxs": [{"passage_id": "P1", "score": 1000}]}
    assert read_row(tmp_path, row) == {}


def test_scores_of_tables(tmp_path: Path) -> None:
    csv = "anchor,positive,negative,label\nwho,him,her,-0.5\n"
    assert read(write_text(tmp_path, "t.csv", csv)) == {"him": 0.0, "her": 0.5}
    csv = 'anchor,positive,negative,scores\nwho,him,her,"[2, 1]"\n'
    assert read(write_text(tmp_path, "t.csv", csv)) == {"him": 2.0, "her": 1.0}
    path = write_parquet(tmp_path / "t.parquet", [LISTS | SCORED])
    assert read(path) == {"him": 3.0, "her": 1.0, "them": -2.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (LISTS | {"neg_scores": [1]}, r":1: neg_scores has 1 numbers for 3 passages"),
        (TRIPLET | {"label": [1, 2, 3]}, r":1: label has 3 numbers for 2 passages"),
        (TRIPLET | {"negative_2": "them", "score": 1}, "score has 1 numbers for 3"),
        ({"anchor": "who", "positive": "him", "label": "entailment"}, "label must be a number, or"),
        (TRIPLET | {"label": "entailment"}, "label must be a teacher's score.*found"),
        (LISTS | {"pos_scores": [True]}, "pos_scores must be a teacher's score"),
        (LISTS | {"pos_scores": [float("nan")]}, "finite number"),
        (LISTS | {"pos_scores": [1e39]}, "finite number"),
        (LISTS | {"pos_scores": {"a": 1}}, "finite number"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_row(tmp_path, row)


def test_prepared_scores_name_rows(tmp_path: Path) -> None:
    passages = "id\ttext\ttitle\nP1\tone\t\nP2\ttwo\t\nP3\tthree\t\n"
    train = [
        {
            "question": "who",
            "answers": [],
            "positive_ctxs": [{"passage_id": "P3"}],
            "hard_negative_ctxs": [{"passage_id": "P1"}, {"passage_id": "P9"}],
            "pos_scores": [0.1],
            "neg_scores": [2.5, 7.5],  # of P9, which is not in the corpus
        },
        {"question": "what", "answers": [], "positive_ctxs": [{"passage_id": "P2"}]},
    ]
    data = DataConfig(
        passages=str(write_text(tmp_path, "p.tsv", passages)),
        train=str(write_text(tmp_path, "t.json", json.dumps(train))),
    )
    workdir = open_workdir(tmp_path / "work")
    prepare.run(Config(data=data), workdir)
    first, second = store.open_questions(workdir, "train")
    assert [row for row, _ in first.teacher_scores] == [2, 0]
    assert [score for _, score in first.teacher_scores] == pytest.approx([0.1, 2.5])
    assert (first.positives, first.hard_negatives) == ((2,), (0,))
    assert second.teacher_scores == ()
