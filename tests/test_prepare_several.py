"""The prepare stage with several training files: one data set that knows which rows are of which
file.
"""

from pathlib import Path

import pytest
from layouts import lines, write_text

from dpr_jax import artifacts, console
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare, store
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir


def row(question: str, *gold: str) -> dict[str, object]:
    contexts = [{"passage_id": id_} for id_ in gold]
    return {"question": question, "answers": ["x"], "positive_ctxs": contexts}


@pytest.fixture
def names(tmp_path: Path) -> tuple[str, str]:
    """Two training files; one row of each has no gold passage."""
    first = lines(row("a", "P1"), row("none"), row("b", "P2"))
    second = lines(row("c", "P2"), row("d", "P1", "P2"), row("none"))
    return (
        str(write_text(tmp_path, "one.json", first)),
        str(write_text(tmp_path, "two.json", second)),
    )


def prepared(tmp_path: Path, train: str | tuple[str, ...], name: str = "work") -> WorkDir:
    passages = write_text(tmp_path, "p.tsv", "id\ttext\ttitle\nP1\tone\t\nP2\ttwo\t\n")
    data = DataConfig(passages=str(passages), train=train)
    workdir = open_workdir(tmp_path / name)
    prepare.run(Config(data=data), workdir)
    return workdir


def test_rows_know_their_file(
    tmp_path: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    workdir = prepared(tmp_path, names)
    train = store.open_questions(workdir, "train")
    asked = [("0", "a"), ("2", "b"), ("0", "c"), ("1", "d")]
    assert [(one.id, one.question) for one in train] == asked
    sets = store.train_sets(workdir)
    assert sets == [(names[0], range(2)), (names[1], range(2, 4))]
    second = train.part(sets[1][1])
    assert [one.question for one in second] == ["c", "d"]
    assert (len(second), second[1].question) == (2, "d")
    with pytest.raises(IndexError):
        second[2]
    manifest = artifacts.read_json(workdir.data / "manifest.json")
    assert manifest["questions"] == {"train": 4}
    text = "\n".join(said)
    assert f"train/2: {names[1]} is DPR JSONL" in text
    assert "train/2: 2 kept, 1 dropped: no positive passage" in text
    said.clear()
    prepared(tmp_path, names)
    assert said == [f"prepare: up to date ({workdir.data})"]


def test_one_file_in_a_tuple_is_one_file(tmp_path: Path, names: tuple[str, str]) -> None:
    alone = prepared(tmp_path, names[:1], "alone")
    plain = prepared(tmp_path, names[0], "plain")
    assert store.train_sets(alone) == store.train_sets(plain) == []
    made = [artifacts.read_json(one.data / "manifest.json")["made_from"] for one in (alone, plain)]
    assert made[0] == made[1]


def test_a_missing_one_is_named(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"none.json does not exist.*data.train must"):
        prepared(tmp_path, (names[0], "none.json"))
