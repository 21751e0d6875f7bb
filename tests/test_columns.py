"""No column that could change the meaning is passed over: it has a role, or the file is refused."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import lines, write_parquet, write_text

from dpr_jax import cli
from dpr_jax.data import changes, store
from dpr_jax.data.raw import RawQuestion
from dpr_jax.data.readers import detect
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

ETNA, ROME = "Etna is a volcano.", "Rome is a capital."
PAIR = {"query": "who", "passage": "him"}
PASSAGES = f"id\ttext\ttitle\np1\t{ETNA}\t\np2\t{ROME}\t\n"


def rows(path: Path, **columns: str) -> list[RawQuestion]:
    return list(detect.questions(path, Chosen("questions", columns)).read(None))


def texts(row: RawQuestion, ids: tuple[str, ...]) -> list[str]:
    by_id = {passage.id: passage.text for passage in row.passages}
    return [by_id.get(id_, id_) for id_ in ids]


def prepare(folder: Path, *flags: str) -> store.Corpus:
    """Runs `dpr prepare` and returns the corpus."""
    cli.run(["prepare", "--workdir", str(folder), *flags])
    workdir = open_workdir(folder)
    return changes.open_corpus(workdir, changes.read(workdir))


# --- labels and scores


@pytest.mark.parametrize("name", ["label", "relevance", "Is_Relevant", "grade", "rel"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_a_passage_labelled_0_is_a_negative(tmp_path: Path, name: str, kind: str) -> None:
    table = [
        PAIR | {name: 2},
        {"query": "what", "passage": "it", name: 0},
        {"query": "who", "passage": "her", name: 0},
    ]
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        write_parquet(path, table)
    elif kind == "jsonl":
        path.write_text(lines(*table), encoding="utf-8")
    else:
        by = "," if kind == "csv" else "\t"
        body = "".join(by.join(map(str, one.values())) + "\n" for one in table)
        path.write_text(by.join(table[0]) + "\n" + body, encoding="utf-8")
    first, second = rows(path)
    assert (texts(first, first.positives), first.grades) == (["him"], (2,))
    assert texts(first, first.hard_negatives) == ["her"]
    assert (second.positives, second.unusable) == ((), "no passage labelled relevant")


@pytest.mark.parametrize(
    ("label", "positive"),
    [(1, True), ("1.0", True), (True, True), ("yes", True), (0, False), (-1, False), ("No", False)],
)
def test_labels_as_people_write_them(tmp_path: Path, label: Any, positive: bool) -> None:
    (row,) = rows(write_text(tmp_path, "t.jsonl", lines(PAIR | {"label": label})))
    assert bool(row.positives) is positive


def test_lists_of_passages_with_a_list_of_labels(tmp_path: Path) -> None:
    table = lines({"query": "who", "docs": ["him", "her", "it"], "labels": [0, 1, 0]})
    (row,) = rows(write_text(tmp_path, "t.jsonl", table))
    assert texts(row, row.positives) == ["her"]
    assert texts(row, row.hard_negatives) == ["him", "it"]


def test_a_score_needs_a_threshold(tmp_path: Path) -> None:
    table = [PAIR | {"score": 0.9}, {"query": "who", "passage": "her", "score": 0.2}]
    path = write_text(tmp_path, "t.jsonl", lines(*table))
    with pytest.raises(InputError, match=r"t.jsonl:1: score 0.9 does not say.*positive-from"):
        rows(path)
    source = detect.questions(path, None, 0.5)
    (row,) = source.read(None)
    assert (texts(row, row.positives), texts(row, row.hard_negatives)) == (["him"], ["her"])
    assert [score for _, score in row.teacher_scores] == [0.9, 0.2]


def test_questions_of_one_id_are_one(tmp_path: Path) -> None:
    table = [
        {"qid": 7, "query": "who", "pid": "p1", "label": 1},
        {"qid": 8, "query": "who", "pid": "p2", "label": 1},
        {"qid": 7, "query": "who", "pid": "p3", "label": 0},
    ]
    first, second = rows(write_text(tmp_path, "t.jsonl", lines(*table)))
    assert (first.id, first.positives, first.hard_negatives) == ("7", ("p1",), ("p3",))
    assert (second.id, second.positives) == ("8", ("p2",))
    table[2]["query"] = "what"
    with pytest.raises(InputError, match=r"question id '7' has another text"):
        rows(write_text(tmp_path, "t.jsonl", lines(*table)))


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        # two columns for one role
        ("t.jsonl", lines(PAIR | {"question": "what"}), "'query' and 'question'.*question=query"),
        ("t.jsonl", lines(PAIR | {"context": "it"}), "'passage' and 'context' could both be the"),
        ("t.jsonl", lines(PAIR | {"id": 1, "_id": 2}), "'id' and '_id' could both be the id"),
        # what could change the meaning
        ("t.jsonl", lines(PAIR | {"gold_docs": [1]}), "column 'gold_docs' could change"),
        (
            "t.jsonl",
            lines({"question": "who", "answers": ["a"], "ctxs": []}),
            "'ctxs' could change",
        ),
        ("t.jsonl", lines(PAIR, PAIR | {"judgment_2": 0}), "'judgment_2' could change"),
        ("t.jsonl", lines(*[PAIR] * 120, PAIR | {"label_b": 0}), r":121: column 'label_b'"),
        # answers or passages
        (
            "t.jsonl",
            lines({"question": "who", "answer": "a man who lived there once"}),
            "answers or",
        ),
        # no header, and two layouts
        ("t.tsv", "who is it\tthe man\nand who\tshe is\n", "id=1 question=2 or .*positive=2"),
        ("t.tsv", "q1\twho is it\tthe man\nq2\twho\tshe is\n", "question=1.* or .*id=1"),
        ("t.tsv", "who is\t1\tthe man\nand who\t0\tshe is\n", "question=1.* or .*id=1"),
        ("t.csv", "who is it,the man\nand who,she is\n", "question=1 positive=2 or"),
        ("t.tsv", "q1\tp1\t1\nq1\tp2\t0\n", "ids and judgements"),
        ("t.tsv", "topicno\tutterance\n101\twho is it\n102\twhat was it\n", "header .topicno"),
        ("t.csv", "1,who,him\n", "not a known layout"),
        # labels
        ("t.jsonl", lines(PAIR | {"label": "neutral"}), "label must be a number, or true"),
        ("t.jsonl", lines({"query": "who", "label": 1}), "1 labels for 0 passages"),
        ("t.jsonl", lines({"query": "who", "pos": ["a"], "pos_id": ["1", "2"]}), "2 ids for 1"),
        ("t.jsonl", lines({"query": "who", "passages": ["a"]}), "passages must be MS MARCO's"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = write_text(tmp_path, name, content)
    with pytest.raises(InputError, match=says) as caught:
        rows(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", lines({"id": 1, "text": "a", "contents": "b"}), "could both be the text"),
        ("p.jsonl", lines({"id": 1, "text": "a", "question": "b"}), "'question' could change"),
        ("p.tsv", "1\ta\tb\n", "id=1 text=2 title=3"),
        ("p.tsv", "nummer\tinhalt\n1\ta b\n2\tc d\n", "header .nummer, inhalt. or the first row"),
    ],
)
def test_corpora_that_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = write_text(tmp_path, name, content)
    with pytest.raises(InputError, match=says):
        detect.passages(path)


# --- data.columns


def test_columns_are_said_outright(tmp_path: Path) -> None:
    path = write_text(tmp_path, "t.csv", f"a,b,c,label\n{ETNA},who,{ROME},x\n")
    (row,) = rows(path, positive="a", question="b", negative="c", ignore="label")
    assert (row.question, texts(row, row.positives)) == ("who", [ETNA])
    assert texts(row, row.hard_negatives) == [ROME]
    path = write_text(tmp_path, "t.tsv", f"{ETNA}\twho\t0\n{ROME}\twho\t1\n")
    (row,) = rows(path, positive="1", question="2", label="3")
    assert texts(row, row.positives) == [ROME]
    path = write_text(tmp_path, "p.tsv", f"7\tEtna\t{ETNA}\n")
    source = detect.passages(path, Chosen("passages", {"id": "1", "title": "2", "text": "3"}))
    assert [tuple(one) for _, one in source.read(None)] == [("7", "Etna", ETNA)]


def test_columns_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_text(tmp_path, "train.jsonl", lines({"q": "who", "doc": ETNA, "url": "x"}))
    test = write_text(tmp_path, "test.tsv", "Frage\tNr\nwhat is it\t5\n")
    flags = ["--data.train", str(train), "--data.test", str(test)]
    named = ["--data.columns", "question=q", "test.question=Frage", "test.id=Nr"]
    cli.run(["prepare", "--workdir", str(tmp_path / "dry"), "--dry-run", *flags, *named])
    said = capsys.readouterr().err.splitlines()
    pairs = "(anchor, positive, negative ...) JSONL (question: q, positive: doc; ignored: url)"
    asked = "questions, TSV (BEIR, Tevatron) (question: Frage, id: Nr)"
    assert said == [
        f"prepare: train: {train} is {pairs}; first row: id '0', question 'who', gold '{ETNA}'",
        f"prepare: test: {test} is {asked}; first row: id '5', question 'what is it'",
    ]
    assert not (tmp_path / "dry").exists()
    assert [one.text for one in prepare(tmp_path / "w", *flags, *named)] == [ETNA]
    stored = open_workdir(tmp_path / "w").read()["config"]["data"]["columns"]
    assert stored == {"question": "q", "test.question": "Frage", "test.id": "Nr"}
    for wrong, says in (
        (["--data.columns", "question"], "takes ROLE=COLUMN"),
        (["--data.columns", "query=q"], "must be a role"),
        (["--data.columns", "question=q", "answers=wrong"], "'wrong', which is no column"),
        (["--data.columns", "question=q", "test.question=q"], "data.test names no file"),
        (["--data.columns", "question=q", "train.id=nr"], "'nr', which is no column"),
        (["--data.columns", "question=q", "positive=q"], "two roles"),
    ):
        with pytest.raises(InputError, match=says):
            cli.run(["prepare", "--workdir", str(tmp_path / "x"), *flags[:2], *wrong])


# --- files as they come


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def tarred(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="reads zstd; in the extra `parquet`")
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("p.tsv.gz", gzip.compress),
        ("p.tsv", gzip.compress),  # its name does not say so
        ("p.tsv.bz2", bz2.compress),
        ("p.tsv.xz", lzma.compress),
        ("p.zip", lambda content: zipped(content, "p.tsv", "__MACOSX/._p.tsv")),
        ("p.tar.gz", lambda content: tarred(content, "p.tsv", "._p.tsv")),
        ("p.tgz", lambda content: tarred(content, "p.tsv")),
        ("p.tsv", lambda content: content.decode().encode("utf-16")),
        ("p.tsv.gz", lambda content: gzip.compress(content.decode().encode("utf-16"))),
        ("p.tsv", lambda content: content.decode().encode("utf-32")),
    ],
)
def test_packed_files_and_other_encodings(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(PASSAGES.encode()))
    found = [one for _, one in detect.passages(path).read(None)]
    assert [(one.id, one.text) for one in found] == [("p1", ETNA), ("p2", ROME)]


def test_zstd(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv.zst"
    pyarrow = pytest.importorskip("pyarrow", reason="reads zstd; in the extra `parquet`")
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(PASSAGES.encode())
    assert len(list(detect.passages(path).read(None))) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.zip", zipped(b"x", "a.tsv", "b.tsv"), "holds 2 files .a.tsv, b.tsv.; unpack it"),
        ("p.tar.gz", tarred(PASSAGES.encode(), "a.tsv", "b.tsv"), "holds 2 files"),
        ("p.tsv.xz", lzma.compress(PASSAGES.encode())[:-9], "truncated or damaged .xz"),
        ("p.tsv.gz", PASSAGES.encode(), "truncated or damaged .gz .*rename it if it is not packed"),
        ("p.tsv", PASSAGES.encode("utf-16")[:-1], "not UTF-16"),
        ("p.tsv", PASSAGES.replace("\n", "\r").encode(), r"CR alone.*tr '\\r' '\\n'"),
        ("p.tsv", b"id\ttext\ttitle\n1\tM\xfcnchen\tM\n", "not UTF-8"),
    ],
)
def test_files_that_need_a_hand(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        list(detect.passages(path).read(None))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [True, "true", "True", 1])
def test_impossible_questions_are_known_by_any_mark(tmp_path: Path, mark: Any) -> None:
    row = {"question": "who", "context": ETNA, "answers": {"text": ["a"], "answer_start": [0]}}
    table = lines(row | {"is_impossible": mark}, row | {"is_impossible": False})
    first, second = rows(write_text(tmp_path, "t.jsonl", table))
    assert (first.unusable, second.unusable) == ("marked impossible", "")
    row["answers"] = {"text": [], "answer_start": []}  # as of SQuAD 2 in rows
    (only,) = rows(write_text(tmp_path, "t.jsonl", lines(row)))
    assert only.unusable == "marked impossible"


def test_titles_of_tables(tmp_path: Path) -> None:
    content = (
        '{"id": "a", "title": NaN, "text": "x"}\n{"id": "b", "title": 1984, "text": "y"}\n'
        '{"id": "c", "title": null, "text": "z"}\n'
    )
    path = write_text(tmp_path, "p.jsonl", content)
    assert [one.title for _, one in detect.passages(path).read(None)] == ["", "1984", ""]
    for value, says in (("true", "title must be a text"), ('["x"]', "title must be a text")):
        path = write_text(tmp_path, "p.jsonl", content.replace("1984", value))
        with pytest.raises(InputError, match=says):
            list(detect.passages(path).read(None))
    path = write_text(tmp_path, "p.jsonl", '{"id": 1.0, "text": "x"}\n')
    with pytest.raises(InputError, match="an id is a text or a whole number"):
        list(detect.passages(path).read(None))


def test_quotes_that_are_letters_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = 'id\ttext\ttitle\n1\t"Eureka" is it\tE\n2\t"to be\tH\n3\tor not"\tH\n4\tx\t"T\n'
    corpus = prepare(tmp_path / "w", "--data.passages", str(write_text(tmp_path, "p.tsv", content)))
    assert [one.text for one in corpus] == ['"Eureka" is it', '"to be', "or not", "x"]
    said = capsys.readouterr().err
    assert "corpus: 3 rows have quotes that do not fit CSV" in said and "p.tsv:2" in said


def test_blank_texts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = lines({"id": 1, "text": " \u200b\x07"}, {"id": 2, "text": ROME}, {"id": 3, "text": ""})
    prepare(tmp_path / "w", "--data.passages", str(write_text(tmp_path, "p.jsonl", table)))
    assert "3 passages (0 repeat another's text, 2 have none)" in capsys.readouterr().err
    table = lines({"question": "\u200b \x07", "answers": ["a"]})
    with pytest.raises(InputError, match="no question"):
        rows(write_text(tmp_path, "t.jsonl", table))


def test_what_is_left_out_is_told_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = write_text(tmp_path, "p.tsv", PASSAGES)
    table = [{"question": "who", "positive_ids": ["p1"]}] * 150 + [{"question": "what"}] * 2
    train = write_text(tmp_path, "t.jsonl", lines(*table))
    prepare(tmp_path / "w", "--data.passages", str(passages), "--data.train", str(train))
    said = capsys.readouterr().err
    reason = f"dropped: no positive passage (such as {train}:151)"
    assert f"150 kept, 150 without answers, 2 {reason}" in said
    assert f"2 of 152 questions (1.3 %) are dropped: no positive passage, such as {train}" in said
    table = table[:1] * 500 + table[-1:]
    train.write_text(lines(*table), encoding="utf-8")
    prepare(tmp_path / "v", "--data.passages", str(passages), "--data.train", str(train))
    said = capsys.readouterr().err
    assert "1 dropped: no positive passage (such as" in said and "WARNING" not in said
