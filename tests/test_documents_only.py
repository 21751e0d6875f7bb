"""Data without training questions: documents alone, or documents and test questions."""

from pathlib import Path

import pytest
from layouts import write_text
from test_cut import PICTURE

from dpr_jax import artifacts, cli
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

PASSAGES = "id\ttext\ttitle\n1\tIron is a metal.\tIron\n2\tOak is wood.\tOak\n"


def prepare(workdir: Path, **data: Path | int) -> None:
    settings = [f"--data.{name.replace('_', '-')}={value}" for name, value in data.items()]
    cli.run(["prepare", "--workdir", str(workdir), *settings])


def test_passages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "w"
    prepare(root, passages=write_text(tmp_path, "p.tsv", PASSAGES))
    workdir = open_workdir(root)
    assert [one.title for one in store.open_corpus(workdir)] == ["Iron", "Oak"]
    assert store.splits(workdir) == ()
    for split in ("train", "dev", "test"):
        with pytest.raises(InputError, match=f"no split '{split}'.*--data.{split} FILE"):
            store.open_questions(workdir, split)
    capsys.readouterr()
    cli.run(["inspect", "--workdir", str(root)])
    said = capsys.readouterr()
    assert "2 passages: 0 repeat" in said.out and "Questions of" not in said.out
    facts = artifacts.read_json(root / "inspection" / "inspection.json")
    assert (facts["splits"], facts["overlap"]) == ({}, [])


def test_passages_and_test_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "w"
    test = write_text(tmp_path, "test.csv", "what is iron?\t['a metal']\n")
    prepare(root, passages=write_text(tmp_path, "p.tsv", PASSAGES), test=test)
    workdir = open_workdir(root)
    assert store.splits(workdir) == ("test",)
    [question] = store.open_questions(workdir, "test")
    assert (question.question, question.answers) == ("what is iron?", ("a metal",))
    with pytest.raises(InputError, match="no split 'train', only test; name a file"):
        store.open_questions(workdir, "train")
    cli.run(["inspect", "--workdir", str(root)])
    assert "Questions of w" in capsys.readouterr().out


def test_pictures_among_documents_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "documents"
    (folder / "figures").mkdir(parents=True)
    write_text(folder, "iron.txt", "Iron is a metal.")
    write_text(folder, "oak.md", "Oak is wood.")
    for name in ("photo.jpg", "figures/plot.png"):
        (folder / name).write_bytes(PICTURE)
    prepare(tmp_path / "w", passages=folder, split_words=100)
    assert "cut 2 documents, 2 files passed over: not text" in capsys.readouterr().err
    texts = [one.text for one in store.open_corpus(open_workdir(tmp_path / "w"))]
    assert texts == ["Iron is a metal.", "Oak is wood."]


def test_a_folder_without_text_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(PICTURE)
    with pytest.raises(InputError, match="none of its 1 files is a document"):
        prepare(tmp_path / "w", passages=folder, split_words=100)


def test_text_that_is_not_utf8_is_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "iron.txt").write_bytes("Iron is a métal.".encode("latin-1"))
    with pytest.raises(InputError, match="iron.txt"):
        prepare(tmp_path / "w", passages=folder, split_words=100)


def test_a_folder_that_nobody_says_how_to_cut_is_cut_as_in_the_paper(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    write_text(folder, "iron.txt", "Iron is a metal. " * 50)
    prepare(tmp_path / "w", passages=folder)
    workdir = open_workdir(tmp_path / "w")
    assert "cut into passages of 100 words (data.split_words)" in capfd.readouterr().err
    assert len(store.open_corpus(workdir)) == 2
