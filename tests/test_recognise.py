"""Every layout is recognised and read aright, and no damage to a file passes in silence."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layouts import (
    CURLY,
    GOLD,
    OTHER,
    PAIRS,
    PASSAGES,
    QUESTIONS,
    SQUAD,
    lines,
    write_parquet,
    write_text,
)

from dpr_jax.data import raw
from dpr_jax.data.readers import detect, judgements
from dpr_jax.errors import InputError

PLAIN = CURLY.replace("’", "'")


def questions(path: Path) -> list[raw.RawQuestion]:
    return list(detect.questions(path).read(None))


def texts(row: raw.RawQuestion, ids: tuple[str, ...]) -> list[str]:
    """The texts that a row carries of these passages."""
    by_id = {passage.id: passage.text for passage in row.passages}
    return [by_id[id_] for id_ in ids]


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_files_are_recognised(tmp_path: Path, name: str) -> None:
    file, content, layout = QUESTIONS[name]
    path = write_text(tmp_path, file, content)
    source = detect.questions(path)
    rows = list(source.read(None))
    assert source.layout == layout and source.files == (path,)
    assert PLAIN in [row.question for row in rows]
    assert all(str(path) in row.where for row in rows)
    for row in rows:
        assert texts(row, row.positives + row.hard_negatives) or not row.passages


@pytest.mark.parametrize("name", PASSAGES)
def test_corpora_are_recognised(tmp_path: Path, name: str) -> None:
    file, content, layout = PASSAGES[name]
    path = write_text(tmp_path, file, content)
    source = detect.passages(path)
    found = [passage for _, passage in source.read(None)]
    assert source.layout == layout
    assert [one.text for one in found][1:] == [OTHER]
    assert found[0].text in (GOLD, 'said "so')
    assert len({one.id for one in found}) == 2


@pytest.mark.parametrize(
    "name", ["pairs JSON lines", "pairs CSV", "FlagEmbedding", "triples", "Parquet"]
)
def test_anchor_positive_negatives(tmp_path: Path, name: str) -> None:
    if name == "Parquet":
        path = write_parquet(tmp_path / "t.parquet", PAIRS)
    else:
        path = write_text(tmp_path, *QUESTIONS[name][:2])
    first, second = questions(path)
    assert (first.id, first.question, second.question) == ("0", "who", PLAIN)
    assert texts(first, first.positives)[0].startswith("him")
    wanted = ["her"] if name == "triples" else ["her", "them"]
    assert texts(first, first.hard_negatives) == wanted
    assert texts(second, second.hard_negatives) == ["that"]


def test_dpr_and_tevatron_rows_carry_their_passages(tmp_path: Path) -> None:
    for name in ("DPR JSON", "DPR JSON lines", "Tevatron"):
        row = questions(write_text(tmp_path, *QUESTIONS[name][:2]))[0]
        assert (row.positives, row.hard_negatives) == (("P1",), ("P2",))
        assert row.passages == (("P1", "T", GOLD), ("P2", "", OTHER))


def test_squad(tmp_path: Path) -> None:
    path = write_text(tmp_path, *QUESTIONS["SQuAD"][:2])
    first, second = questions(path)
    assert (first.id, first.answers, first.unusable) == ("s1", ("full",), "")
    (gold,) = first.passages
    assert (gold.title, gold.text) == ("Grand Hotel", GOLD)
    assert second.unusable == "marked impossible"
    corpus = [passage for _, passage in detect.passages(path).read(None)]
    assert corpus[0] == gold and corpus[1].text == OTHER


def test_questions_keep_ids_of_their_own(tmp_path: Path) -> None:
    passage = {"passage_id": "P1"}
    for name, row in (
        ("t.jsonl", {"id": "q17", "question": "who", "answers": ["a"]}),
        ("t.jsonl", {"query_id": "q17", "query": "who", "positive": "him"}),
        ("t.json", {"question_id": "q17", "question": "who", "positive_ctxs": [passage]}),
    ):
        content = json.dumps([row]) if name == "t.json" else lines(row)
        (one,) = questions(write_text(tmp_path, name, content))
        assert one.id == "q17"
    with pytest.raises(InputError, match="'a b' must be one word"):
        questions(write_text(tmp_path, "t.jsonl", lines(row | {"question_id": "a b"})))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("Seine", ("Seine",)),
        ("['Seine', 'River Seine']", ("Seine", "River Seine")),
        ({"value": "Seine", "aliases": ["Seine", "River Seine"]}, ("Seine", "River Seine")),
        ({"text": ["Seine", "Seine"], "answer_start": [1, 5]}, ("Seine",)),
    ],
)
def test_answers_that_are_no_list(tmp_path: Path, value: Any, wanted: tuple[str, ...]) -> None:
    for id_ in ({}, {"id": 1}):
        row = id_ | {"question": "who", "answers": value}
        (one,) = questions(write_text(tmp_path, "t.jsonl", lines(row)))
        assert one.answers == wanted
    if isinstance(value, str):
        path = write_text(tmp_path, "t.csv", f'question,answers\nwho,"{value}"\n')
        assert [one.answers for one in questions(path)] == [wanted]
    if "aliases" in value:
        (one,) = questions(
            write_text(tmp_path, "t.jsonl", lines({"question": "who", "answer": value}))
        )
        assert one.answers == wanted


def test_passages_of_ms_marco_v2_are_known_by_pid(tmp_path: Path) -> None:
    rows = [{"pid": f"p{row}", "passage": "text", "docid": "d0"} for row in range(2)]
    path = write_text(tmp_path, "p.jsonl", lines(*rows))
    assert [one.id for _, one in detect.passages(path).read(None)] == ["p0", "p1"]


def test_topics(tmp_path: Path) -> None:
    rows = questions(write_text(tmp_path, *QUESTIONS["topics"][:2]))
    assert [(row.id, row.question) for row in rows] == [("q1", PLAIN), ("q2", "AT&T")]
    xml = (
        '<topics><topic number="7"><query>covid</query>\n<question>what is\n'
        " it?</question></topic></topics>"
    )
    (row,) = questions(write_text(tmp_path, "t.xml", xml))
    assert (row.id, row.question) == ("7", "covid")


def test_texts_that_look_like_another_layout(tmp_path: Path) -> None:
    row = {"anchor": "what is <top>", "positive": "a list", "negative": "<topic 1>"}
    source = detect.questions(write_text(tmp_path, "t.jsonl", lines(row)))
    assert source.layout == "(anchor, positive, negative ...) JSONL"
    path = write_text(tmp_path, "q.tsv", "1\twhat does a query question\n")
    assert detect.questions(path).layout == "questions, id and text"


def test_passages_without_id_are_known_by_their_content() -> None:
    first = raw.by_content("T", "x")
    assert first == raw.by_content("T", "x") and first.id.split() == [first.id]
    others = [raw.by_content("Tx", ""), raw.by_content("", "Tx")]
    assert len({first.id, *(one.id for one in others)}) == 3


def test_qrels_of_beir_and_of_triples(tmp_path: Path) -> None:
    beir = "query-id\tcorpus-id\tscore\nq1\tP1\t1\nq1\tP2\t0\n"
    qrels = judgements.read_qrels(write_text(tmp_path, "test.tsv", beir))
    assert qrels.positives == {"q1": {"P1": (1, 2)}} and not qrels.negatives
    triples = "1\t7\t18\n1\t7\t9\n2\t5\t7\n"
    qrels = judgements.read_qrels(write_text(tmp_path, "triples.tsv", triples))
    assert qrels.positives == {"1": {"7": (1, 1)}, "2": {"5": (1, 3)}}
    assert qrels.negatives == {"1": ["18", "9"], "2": ["7"]}


# --- what is broken


def test_layouts_that_are_not_known(tmp_path: Path) -> None:
    for name, content, says in (
        ("t.jsonl", '{"a": 1}\n', "first row has 'a', but needs a question"),
        ("t.jsonl", '{"query": "who"}\n', "not a known layout"),
        ("t.txt", "some words\n", "not a known layout"),
        ("t.json", "", "is empty"),
        ("t.jsonl", "\n \n", "is empty"),
        ("t.csv", "", "is empty"),
    ):
        path = write_text(tmp_path, name, content)
        with pytest.raises(InputError, match=re.escape(says)) as caught:
            questions(path)
        assert str(path) in str(caught.value)
    path = write_text(tmp_path, "p.jsonl", '{"question": "who"}\n')
    with pytest.raises(InputError, match="needs a text under"):
        detect.passages(path)
    with pytest.raises(InputError, match="does not exist"):
        detect.questions(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("t.jsonl", lines(PAIRS[0]) + '{"anchor"', ":2", "truncated"),
        ("t.jsonl", lines(PAIRS[0]) + "[1]\n", ":2", "one JSON object"),
        ("t.jsonl", lines(PAIRS[0], {"positive": "x"}), ":2", "no question"),
        ("t.jsonl", lines(PAIRS[0] | {"negative": 3}), ":1", "must be a text"),
        ("t.jsonl", lines(PAIRS[0] | {"positive": [["x"]]}), ":1", "must be a text"),
        ("t.csv", "anchor,positive\nwho\n", ":2", "1 columns; the header names 2"),
        ("t.csv", "anchor,positive,positive\na,b,c\n", ":1", "every column once"),
        ("t.csv", 'anchor,positive\na,"b\nc,d\n', ":2", "never closed"),
        ("t.csv", 'anchor,positive\na,b\n"', ":3", "never closed"),
        ("t.csv", "anchor,positive\na,b\n" * 2, ":3", "header once more"),
        ("t.tsv", "q1\twho\rq2\twhat\r", ":1", "end in LF or CRLF"),
        ("t.jsonl", '{"_id": true, "text": "a"}', ":1", "one word"),
        ("t.jsonl", '{"_id": "a\\u0000", "text": "a"}', ":1", "one word"),
        ("t.tsv", "a\tb\tc\nd\te\n", ":2", "2 columns"),
        ("t.jsonl", '{"query_id": "a b", "query": "c", "text": "d"}', ":1", "one word"),
        ("t.jsonl", '{"query_id": "a", "query": "c", "text": 1}', ":1", "must be a text"),
        (
            "t.jsonl",
            lines({"query_id": 1, "query": "x", "positive_passages": [{"docid": "a"}]}),
            ":1",
            "positive_passages[0] has no text",
        ),
        (
            "t.jsonl",
            lines({"query_id": 1, "query": "x", "positive_passages": ["a"]}),
            ":1",
            "list of objects",
        ),
        ("t.json", json.dumps(SQUAD)[:-30], ":1", "truncated"),
        ("t.json", json.dumps(SQUAD).replace(GOLD[-4:], "\\ud800"), "", "Unicode"),
        ("t.json", json.dumps(SQUAD).replace('"s1"', "null"), "article 0", "one word"),
        ("t.txt", "<top><num> 1 <title> a\n", ":1", "not closed"),
        ("t.txt", "<top><title> a </top>\n", ":1", "<num>"),
        ("t.txt", "<top><num> 1 </top>\n", ":1", "no question"),
        ("t.jsonl", '{"anchor": "a", "positive": ' + "[" * 100_000, ":1", ""),
        ("t.jsonl", '{"_id": ' + "9" * 5000 + ', "text": "a"}', ":1", "broken"),
    ],
)
def test_broken_rows(tmp_path: Path, name: str, content: str, place: str, says: str) -> None:
    path = write_text(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        questions(path)
    message = str(caught.value)
    assert str(path) in message and place in message and says in message
    assert "\n" not in message


def test_a_parquet_file_that_is_cut(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", PAIRS * 50)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"t\.parquet: not a Parquet file"):
        questions(path)


# --- fuzzing: any damage ends in a right reading or in one line that names the file

Damage = Callable[[random.Random, bytes], bytes]


def _insert(piece: bytes) -> Damage:
    def damage(chance: random.Random, data: bytes) -> bytes:
        at = chance.randrange(len(data) + 1)
        return data[:at] + piece + data[at:]

    return damage


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def _drop(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randrange(1, 9) :]


def _flip(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


DAMAGES: list[Damage] = [
    _cut,
    _drop,
    _flip,
    *map(_insert, (b'"', b"\t", b"\n", b"\r", b"\0", b"\xff", b"\\", b"{", b"]", b",")),
    lambda chance, data: data.replace(b"\n", b"\r\n"),
    lambda chance, data: b"\xef\xbb\xbf" + data,
    lambda chance, data: data.decode().encode("utf-16"),
    lambda chance, data: data.decode().encode("latin-1", errors="replace"),
    lambda chance, data: data + data,
]


def _read(path: Path, what: str) -> Iterator[Any]:
    if what == "qrels":
        yield judgements.read_qrels(path).positives
        return
    yield from getattr(detect, what)(path).read(None)


SEEDS = {
    **{f"questions: {name}": ("questions", *QUESTIONS[name][:2]) for name in QUESTIONS},
    **{f"passages: {name}": ("passages", *PASSAGES[name][:2]) for name in PASSAGES},
    "qrels": ("qrels", "q.qrels", "1 0 P1 1\n2 0 P2 0\n"),
    "qrels of BEIR": ("qrels", "q.tsv", "query-id\tcorpus-id\tscore\n1\tP1\t1\n"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_fuzz(tmp_path: Path, name: str) -> None:
    what, file, content = SEEDS[name]
    sound, chance = content.encode(), random.Random(name)
    path = tmp_path / file
    for number in range(150):
        path.write_bytes(DAMAGES[number % len(DAMAGES)](chance, sound))
        try:
            rows = list(_read(path, what))
        except InputError as error:
            message = str(error)
            assert str(path) in message and "\n" not in message and len(message) < 600
            continue
        for row in rows:
            json.dumps(row, ensure_ascii=False).encode()  # texts that a file can hold
            ids = [row.id] if hasattr(row, "id") else []
            assert all(id_.split() == [id_] for id_ in ids)


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    long = "word " * 10_000_000
    path = write_text(tmp_path, "t.jsonl", lines(PAIRS[0] | {"positive": long}))
    (row,) = questions(path)
    assert texts(row, row.positives) == [long.strip()]
    path = write_text(tmp_path, "p.tsv", f"1\t{long}\n2\tshort\n")
    found = [passage for _, passage in detect.passages(path).read(None)]
    assert [len(one.text) for one in found] == [len(long), 5]
