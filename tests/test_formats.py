"""The readers, on what real files contain and on what breaks them."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpr_jax.data.readers import detect, formats, judgements, rows
from dpr_jax.errors import InputError

NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def passages(path: Path) -> list[tuple[str, ...]]:
    return [tuple(passage) for _, passage in formats.read_passages(path)]


@pytest.mark.parametrize("name", ["p.tsv", "p.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_passages_are_read_as_csv_with_tabs(tmp_path: Path, name: str, end: str, mark: str) -> None:
    lines = [
        "id\ttext\ttitle",
        '1\t"a ""quoted"" word"\tTitle',
        '2\tno "outer" quotes\t',
        '3\t"""said so"" he said"\tZoë',
        '4\t"over two',
        'lines\tand a tab"\tFour',
        "",
        "5\tlast",
    ]
    lines[-1] += "\tline without an end"
    path = write(tmp_path / name, mark + end.join(lines))
    assert passages(path) == [
        ("1", "Title", 'a "quoted" word'),
        ("2", "", 'no "outer" quotes'),
        ("3", "Zoë", 'said so" he said'),
        ("4", "Four", f"over two{end}lines\tand a tab"),
        ("5", "line without an end", "last"),
    ]


def test_passages_that_were_written_without_quoting(tmp_path: Path) -> None:
    """Quotes are letters there; none may swallow the rows after it."""
    rows_ = [
        '1\t"Eureka" is what he cried.\tEureka',
        '2\tHe said "no" twice.\tNo',
        '3\t"To be is the first half.\tHamlet',
        "4\tRome\ris here.\tRome",
        '5\tor not to be" is the second.\tHamlet',
        '6\t"quoted"\tSix',
        '7\t"open\tto the end',
    ]
    for count in range(1, len(rows_) + 1):
        path = write(tmp_path / "p.tsv", "\n".join(["id\ttext\ttitle", *rows_[-count:], ""]))
        fields = [one.split("\t") for one in rows_[-count:]]
        wanted = [(id_, title, text.replace('"quoted"', "quoted")) for id_, text, title in fields]
        assert passages(path) == wanted
        assert [where for where, _ in formats.read_passages(path)][-1] == f"{path}:{count + 1}"


def test_passages_tell_the_line_where_each_begins(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", 'id\ttext\ttitle\n1\t"a\nb"\tx\n2\tc\ty\n')
    assert [where for where, _ in formats.read_passages(path)] == [
        f"{path}:2",
        f"{path}:4",
    ]


def test_real_passages_agree_with_the_standard_library() -> None:
    path = NQ_SMALL / "passages.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        expected = list(csv.reader(file, delimiter="\t"))[1:]
    assert passages(path) == [(i, title, text.strip('"')) for i, text, title in expected]
    assert len(expected) == 427


def test_a_field_may_be_longer_than_csv_allows_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "id\ttext\ttitle\n1\t" + "x" * 200_000 + "\tt\n")
    assert len(passages(path)[0][2]) == 200_000


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("", None, "is empty"),
        ("id\ttext\ttitle\n", None, "the corpus is empty"),
        ("1\ta\tb\n", 1, "header"),
        ("id\ttitle\ttext\n1\ta\tb\n", 1, "header"),
        ("id\ttext\ttitle\n1\ta\tb\n2\tc\n", 3, "2 columns"),
        ("id\ttext\ttitle\n1\ta\tb\tc\n", 2, "4 columns"),
        ("id\ttext\ttitle\n1 x\ta\tb\n", 2, "one word"),
        ("id\ttext\ttitle\n\ta\tb\n", 2, "one word"),
        ('id\ttext\ttitle\n1\ta\tb\n2\t"open\n3\td\te\n', 3, "never closed"),
        ('id\ttext\ttitle\n1\ta\tb\n2\t"a" b\n', 3, "follows a closing quote"),
        (b"id\ttext\ttitle\n1\ta\xff\tb\n", 2, "UTF-8"),
        (b"id\ttext\ttitle\n1\ta\0\tb\n", 2, "NUL"),
        ("id\ttext\ttitle\r1\ta\tb\r", 1, "end in LF or CRLF"),
        ('id\ttext\ttitle\n1\ta\tb\n"', 3, "never closed"),
        ("id\ttext\ttitle\n1\ta\tb\n\ufeffid\ttext\ttitle\n", 3, "header once more"),
        ("id\ttext\ttitle\n\0\ta\tb\n", 2, "NUL"),
    ],
)
def test_bad_passages(tmp_path: Path, content: str | bytes, line: int | None, says: str) -> None:
    path = write(tmp_path / "p.tsv", content)
    place = str(path) if line is None else f"{path}:{line}:"
    refuse(lambda: formats.read_passages(path), place, says)


def refuse(reader: Callable[[], Iterator[Any]], place: str, says: str) -> None:
    """The reader stops with one line that names the place and says what is wrong."""
    with pytest.raises(InputError) as caught:
        list(reader())
    message = str(caught.value)
    assert place in message and says in message and "\n" not in message


def row(**changes: Any) -> dict[str, Any]:
    positive = {"title": "T", "text": "x", "passage_id": "7"}
    whole = {"question": "who", "answers": ["a"], "positive_ctxs": [positive]}
    return whole | changes


def test_json_takes_both_names_of_an_id_and_replaces_the_curly_quote(
    tmp_path: Path,
) -> None:
    rows_ = [
        row(question="what’s this", answers=["the dog’s"]),
        row(
            positive_ctxs=[{"psg_id": 8}, {"passage_id": "wiki:9"}],
            hard_negative_ctxs=[{"passage_id": "1"}],
            negative_ctxs=[{"psg_id": "2"}],
        ),
        row(positive_ctxs=[], answers=[]),
    ]
    path = write(tmp_path / "t.json.gz", json.dumps(rows_, indent=1))
    first, second, third = detect.questions(path).read(None)
    assert first.id == "0" and first.question == "what's this"
    assert first.answers == ("the dog’s",) and first.positives == ("7",)
    assert second.positives == ("8", "wiki:9")
    assert (second.hard_negatives, second.negatives) == (("1",), ("2",))
    assert third.positives == () and third.answers == ()


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_json_is_streamed_to_the_same_rows(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(rows, "CHUNK_CHARS", chunk)
    path = NQ_SMALL / "dev.json"
    text = path.read_text(encoding="utf-8")
    found = list(rows.json_objects(path))
    assert [value for _, value in found] == json.loads(text)
    assert [line for line, _ in found] == list(range(2, 22))  # one row a line


@pytest.mark.parametrize("content", ["[]", " [\n] \n"])
def test_an_empty_json_list_has_no_rows(tmp_path: Path, content: str) -> None:
    assert list(detect.questions(write(tmp_path / "t.json", content)).read(None)) == []


WHOLE = json.dumps([row(), row()], indent=0)


@pytest.mark.parametrize("cut", range(7, len(WHOLE), 7))
def test_truncated_json_never_passes(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "t.json", WHOLE[:cut])
    refuse(lambda: detect.questions(path).read(None), f"{path}:", "truncated")


@pytest.mark.parametrize(
    ("content", "place", "says"),
    [
        ('[{"question": "a"}\n{"question": "b"}]', ":2:", "comma"),
        ('["a"]', "", "not a known layout"),
        ('[{"question": "a"}, "b"]', ":1:", "must stand here"),
        ('[\n{"question":\n oops}]', ":3:", "broken JSON"),
        ("[]\n[]", ":2:", "more after"),
        ([row(), row(question="")], " row 1 ", "no question"),
        ([{"answers": []}], "", "needs a question under"),
        ([row(), {"answers": []}], " row 1 (line 1)", "no question"),
        ([row(question=None)], " row 0 ", "no question"),
        ([row(answers="['a'")], " row 0 ", "must be a list"),
        ([row(answers={"a": 1})], " row 0 ", "list of texts"),
        ([row(answers=[1])], " row 0 ", "list of texts"),
        ([row(answers=["a", " "])], " row 0 ", "answer is empty"),
        ([row(positive_ctxs=[{"title": "x"}])], " row 0 ", "positive_ctxs[0]"),
        ([row(positive_ctxs={"a": 1})], " row 0 ", "must be a list"),
        ([row(hard_negative_ctxs=[{"psg_id": ""}])], " row 0 ", "hard_negative_ctxs"),
        ([row(question="\ud800")], " row 0 ", "Unicode"),
        (b'[{"question": "\xff"}]', " after line 1", "UTF-8"),
    ],
)
def test_bad_json(tmp_path: Path, content: Any, place: str, says: str) -> None:
    text = json.dumps(content) if isinstance(content, list) else content
    path = write(tmp_path / "t.json", text)
    refuse(lambda: detect.questions(path).read(None), f"{path}{place}", says)


def test_question_answers(tmp_path: Path) -> None:
    text = 'who’s it\t[\'a\', "b\'s"]\n"a ""b"" c"\t"[""d\'s""]"\r\n'
    first, second = formats.read_question_answers(write(tmp_path / "q.csv", text))
    assert (first.id, first.question, first.answers) == ("0", "who's it", ("a", "b's"))
    assert (second.id, second.question) == ("1", 'a "b" c')
    assert second.answers == ("d's",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("who\n", "1 columns"),
        ("who\t['a']\tx\n", "3 columns"),
        ("\t['a']\n", "no question"),
        ("who\t__import__('os').getcwd()\n", "must be a list"),
        ("who\t['a'\n", "must be a list"),
        ("who\t'a'\n", "must be a list"),
    ],
)
def test_bad_question_answers(tmp_path: Path, content: str, says: str) -> None:
    path = write(tmp_path / "q.csv", content)
    refuse(lambda: formats.read_question_answers(path), f"{path}:1:", says)


def test_question_ids(tmp_path: Path) -> None:
    text = '\ufeffq1\twho’s "it\r\n\n17\t"what" is\n'
    read = list(formats.read_question_ids(write(tmp_path / "q.tsv", text)))
    assert [(one.id, one.question) for one in read] == [
        ("q1", "who's \"it"),
        ("17", '"what" is'),
    ]


@pytest.mark.parametrize("head", ["query_id\ttext", "_id\ttext", "id\ttitle", "QID\tQuery_Text"])
@pytest.mark.parametrize("name", ["q.tsv", "q.csv"])
def test_a_header_is_no_question(tmp_path: Path, head: str, name: str) -> None:
    content = f"{head}\n10\tWhich volcano?\n"
    if name == "q.csv":
        content = content.replace("\t", ",")
    (one,) = detect.questions(write(tmp_path / name, content)).read(None)
    assert (one.id, one.question) == ("10", "Which volcano?")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("q1 who\n", "a tab"),
        ("q1\twho\twhat\n", "a tab"),
        ("q 1\twho\n", "one word"),
        ("\twho\n", "one word"),
        ("q1\t \n", "no question"),
    ],
)
def test_bad_question_ids(tmp_path: Path, content: str, says: str) -> None:
    path = write(tmp_path / "q.tsv", content)
    refuse(lambda: formats.read_question_ids(path), f"{path}:1:", says)


def test_qrels(tmp_path: Path) -> None:
    path = write(tmp_path / "q.qrels", "1 0 P1 1\n1\t0\tP2\t2\r\n\n2 0 P3 0\n3 0 P4 1")
    qrels = judgements.read_qrels(path)
    assert qrels.positives == {"1": {"P1": (1, 1), "P2": (2, 2)}, "3": {"P4": (1, 5)}}
    assert qrels.where("1", "P2") == f"{path}:2" and qrels.contradictions == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.qrels", "\ufeffq0 0 P1 1\nq0 0 P2 0\nq1 0 P2 3\n"),
        ("q.qrels", "q0 0 P1 1.0\nq0 0 P2 0.0\nq1 0 P2 3.\n"),
        ("q.qrels", "q0 0 P1 1\nq0 0 P2 -1\nq1 0 P2 3\n"),
        ("q.qrels", "qid 0 docid rel\nq0 0 P1 1\nq1 0 P2 3\n"),
        ("q.tsv", "query-id\tQ0\tcorpus-id\tscore\nq0\t0\tP1\t1\nq1\t0\tP2\t3\n"),
        ("q.tsv", "\nQuery-ID\tcorpus-id\tscore\r\nq0\tP1\t1\r\nq1\tP2\t3\r\n"),
        ("q.csv", "query_id,doc_id,score\nq0,P1,1\nq1, P2, 3\n"),
        # without a header the third column tells judgements from triples
        ("q.tsv", "q0\tP1\t1\nq0\tP2\t0\nq1\tP2\t3\n"),
        ("q.tsv", "q0 P1 1\nq0 P2 -2\nq1 P2 3\n"),
        ("q.tsv", "q0\tP1\t1.0\nq1\tP2\t3.0\n"),
    ],
)
def test_qrels_as_people_have_them(tmp_path: Path, name: str, content: str) -> None:
    qrels = judgements.read_qrels(write(tmp_path / name, content))
    grades = {
        question: {passage: one.grade for passage, one in found.items()}
        for question, found in qrels.positives.items()
    }
    assert grades == {"q0": {"P1": 1}, "q1": {"P2": 3}} and not qrels.negatives


def test_a_passage_that_is_judged_twice(tmp_path: Path) -> None:
    text = "q0 0 P9 2\nq0 0 P9 0\nq1 0 P10 1\nq1 0 P10 1.0\nq1 0 P11 0\nq1 0 P11 1\n"
    path = write(tmp_path / "q.qrels", text)
    qrels = judgements.read_qrels(path)
    assert qrels.positives == {"q0": {"P9": (2, 1)}, "q1": {"P10": (1, 3)}}
    assert qrels.contradictions == [
        f"{path}:2: passage 'P9' of question 'q0' has grade 0, and 2 in line 1",
        f"{path}:6: passage 'P11' of question 'q1' has grade 1, and 0 in line 5",
    ]


@pytest.mark.parametrize("content", ["", "\n \n", "query-id\tcorpus-id\tscore\n"])
def test_qrels_that_judge_nothing(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "q.qrels.gz", content)
    refuse(lambda: iter(judgements.read_qrels(path)), str(path), "is empty; qrels are")


@pytest.mark.parametrize(
    "content",
    [
        "1 0 P1\n",
        "1\t0\tP1\n",
        "1 0 P1 1 x\n",
        "1 0 P1 yes\n",
        "1 0 P1 0.5\n",
        "1 0 Mount Etna 1\n",
        "1\tMount Etna\t1\n",
        "1 Mount Etna 1\n",
        "1\t0\tMount Etna\t1\n",
        "1\tP1\n",
    ],
)
def test_bad_qrels(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "q.qrels", content)
    refuse(lambda: iter(judgements.read_qrels(path)), f"{path}:1:", "passage-id")


def test_files_put_one_after_the_other_bring_their_byte_order_marks(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "q.tsv", "\ufeff\ufeffa\twho\n\ufeffb\twhat\n")
    assert [row.id for row in formats.read_question_ids(path)] == ["a", "b"]
    path = write(tmp_path / "p.tsv", "\ufeff\ufeffid\ttext\ttitle\n1\ta\tb\n")
    ((_, passage),) = detect.passages(path).read(None)
    assert tuple(passage) == ("1", "b", "a")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"id\ttext\ttitle\n1\ta\tb\n" * 100, mtime=0)
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(packed[:-10])
    plain = tmp_path / "plain.tsv.gz"
    plain.write_bytes(b"id\ttext\ttitle\n")
    for path, says in (
        (cut, "truncated or damaged .gz"),
        (plain, "truncated or damaged .gz"),
        (tmp_path / "none.tsv", "does not exist"),
        (tmp_path, "cannot be read"),
    ):
        refuse(lambda path=path: formats.read_passages(path), str(path), says)


def test_readers_tell_the_bytes_they_read() -> None:
    path = NQ_SMALL / "passages.tsv.gz"
    counts: list[int] = []
    list(formats.read_passages(path, counts.append))
    assert sum(counts) == path.stat().st_size
