"""Tables of random layout, made from a known truth, are read as meant, or refused in one line."""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("hypothesis", reason="in the dev extra: pip install 'dpr_jax[dev]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr_jax.data.raw import RawQuestion
from dpr_jax.data.readers import detect, judgements
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.errors import InputError

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

WORDS = ("who", "Etna", "is", "the", "capital", "1984", "Straße", "河流", '"Eureka"', '"so', 'it"')
TEXT = st.lists(st.sampled_from(WORDS), min_size=2, max_size=6).map(" ".join)
NAMES = {
    "question": ("question", "query", "anchor", "Query_Text", "sentence1"),
    "positive": ("positive", "pos", "passage", "document", "sentence2", "context"),
    "label": ("label", "relevance", "is_relevant", "grade"),
    "id": ("query_id", "qid", "question-id"),
    "url": ("url", "source", "comment"),
}


class Truth(NamedTuple):
    """Judged pairs: question, passage, grade; what a file of them means."""

    rows: list[tuple[str, str, int]]

    def meaning(self) -> dict[str, tuple[set[str], set[str]]]:
        """Returns the positives and negatives of each question."""
        found: dict[str, tuple[set[str], set[str]]] = {}
        for question, passage, grade in self.rows:
            found.setdefault(question, (set(), set()))[grade < 1].add(passage)
        return found


@st.composite
def truths(draw: Any, grades: tuple[int, ...]) -> Truth:
    rows = draw(
        st.lists(
            st.tuples(TEXT, TEXT, st.sampled_from(grades)),
            min_size=1,
            max_size=6,
            unique_by=lambda row: row[:2],
        )
    )
    return Truth(rows)


def understood(rows: list[RawQuestion]) -> dict[str, tuple[set[str], set[str]]]:
    found: dict[str, tuple[set[str], set[str]]] = {}
    for row in rows:
        texts = {one.id: one.text for one in row.passages}
        sides = found.setdefault(row.question, (set(), set()))
        sides[0].update(texts[id_] for id_ in row.positives)
        sides[1].update(texts[id_] for id_ in row.hard_negatives)
    return found


def written(kind: str, names: list[str] | None, rows: list[list[Any]]) -> tuple[str, str]:
    """Returns the name of a file and its content."""
    if kind == "jsonl":
        keys = names or []
        objects = [dict(zip(keys, row, strict=True)) for row in rows]
        return "t.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
    lines = [*([names] if names else []), *rows]
    if kind == "print":  # tabs between, quotes as letters
        return "t.tsv", "".join("\t".join(map(str, line)) + "\n" for line in lines)
    text = io.StringIO()
    delimiter = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return ("t.tsv" if kind == "tsv" else "t.csv"), text.getvalue()


def read(path: Path, chosen: Chosen | None = None) -> list[RawQuestion] | None:
    """Returns the rows; None where the file is refused in one line that names it."""
    try:
        return list(detect.questions(path, chosen).read(None))
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


KINDS = st.sampled_from(["jsonl", "csv", "tsv", "print", "semicolon"])


@SETTINGS
@given(data=st.data(), truth=truths((0, 1)), kind=KINDS, header=st.booleans())
def test_labelled_pairs(
    tmp_path: Path, data: st.DataObject, truth: Truth, kind: str, header: bool
) -> None:
    header = header or kind == "jsonl"
    roles = data.draw(st.permutations(["question", "positive", "label"]))
    if not header and roles.index("positive") < roles.index("question"):
        roles = roles[::-1]  # nothing tells two texts apart but their order
    extra = data.draw(st.booleans())
    roles = [*roles, *(["url"] if extra else [])]
    names = [data.draw(st.sampled_from(NAMES[role])) for role in roles] if header else None
    cells = {"question": 0, "positive": 1, "label": 2}
    rows = [[row[cells[role]] if role in cells else "x" for role in roles] for row in truth.rows]
    name, content = written(kind, names, rows)
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = read(path)
    if found is not None:
        assert unquoted(understood(found)) == unquoted(truth.meaning())
    elif header and kind != "print":
        pytest.fail(f"refused: {content}")
    # said outright, it is read in any case
    said = {role: column for role, column in zip(roles, names or "1234", strict=False)}
    said.pop("url", None)
    chosen = Chosen("questions", said)
    found = read(path, chosen)
    if found is not None:
        assert unquoted(understood(found)) == unquoted(truth.meaning())
    elif kind != "print":
        pytest.fail(f"refused: {content}")


def unquoted(meaning: dict[str, tuple[set[str], set[str]]]) -> dict[str, Any]:
    """Leaves out quotes around a whole text, which say nothing in TSV written by print."""

    def plain(text: str) -> str:
        return text.strip().strip('"').strip()

    found: dict[str, tuple[set[str], set[str]]] = {}
    for question, (positives, negatives) in meaning.items():
        sides = found.setdefault(plain(question), (set(), set()))
        sides[0].update(map(plain, positives))
        sides[1].update(map(plain, negatives))
    return found


@SETTINGS
@given(data=st.data(), truth=truths((1,)), kind=KINDS, header=st.booleans())
def test_questions_with_ids(
    tmp_path: Path, data: st.DataObject, truth: Truth, kind: str, header: bool
) -> None:
    header = header or kind == "jsonl"
    roles = data.draw(st.sampled_from([["id", "question"], ["question", "id"]]))
    names = [data.draw(st.sampled_from(NAMES[role])) for role in roles] if header else None
    asked = {f"q{number}": row[0] for number, row in enumerate(truth.rows)}
    rows = [[{"id": id_, "question": text}[role] for role in roles] for id_, text in asked.items()]
    name, content = written(kind, names, rows)
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = read(path)
    if found is None:
        assert not header or kind == "print", content
        return
    assert {row.id: row.question.strip('"') for row in found} == {
        id_: text.strip('"') for id_, text in asked.items()
    }


@SETTINGS
@given(data=st.data(), header=st.booleans(), grades=st.lists(st.integers(-1, 3), min_size=1))
def test_judgements(tmp_path: Path, data: st.DataObject, header: bool, grades: list[int]) -> None:
    layout = data.draw(st.sampled_from(["TREC", "BEIR", "CSV"]))
    form = data.draw(st.sampled_from([str, lambda grade: f"{grade}.0"]))
    rows = [(f"q{number % 3}", f"d{number}", form(one)) for number, one in enumerate(grades)]
    if layout == "TREC":
        heads, lines = "query-id 0 corpus-id score", [f"{q} 0 {d} {g}" for q, d, g in rows]
    else:
        by = "," if layout == "CSV" else "\t"
        heads, lines = by.join(["query-id", "corpus-id", "score"]), [by.join(row) for row in rows]
    path = tmp_path / ("q.csv" if layout == "CSV" else "q.tsv")
    path.write_text("\n".join([*([heads] if header else []), *lines, ""]), encoding="utf-8")
    found = judgements.read_qrels(path)
    wanted: dict[str, dict[str, int]] = {}
    for number, grade in enumerate(grades):
        if grade > 0:
            wanted.setdefault(f"q{number % 3}", {})[f"d{number}"] = grade
    read_grades = {
        question: {passage: one.grade for passage, one in judged.items()}
        for question, judged in found.positives.items()
    }
    assert read_grades == wanted and not found.negatives


@SETTINGS
@given(data=st.data(), truth=truths((1,)), kind=KINDS, header=st.booleans())
def test_passages(
    tmp_path: Path, data: st.DataObject, truth: Truth, kind: str, header: bool
) -> None:
    header = header or kind == "jsonl"
    roles = data.draw(st.permutations(["id", "text", "title"]))
    names = {
        "id": data.draw(st.sampled_from(["id", "_id", "docid", "pid", "DocID"])),
        "text": data.draw(st.sampled_from(["text", "contents", "body", "content"])),
        "title": "title",
    }
    corpus = [(f"d{number}", text, title) for number, (title, text, _) in enumerate(truth.rows)]
    place = {"id": 0, "text": 1, "title": 2}
    rows = [[passage[place[role]] for role in roles] for passage in corpus]
    name, content = written(kind, [names[role] for role in roles] if header else None, rows)
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    try:
        found = [passage for _, passage in detect.passages(path).read(None)]
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert not header or kind == "print", content
        return
    plain = [tuple(part.strip('"') for part in (one.id, one.text, one.title)) for one in found]
    assert plain == [tuple(part.strip('"') for part in passage) for passage in corpus]
