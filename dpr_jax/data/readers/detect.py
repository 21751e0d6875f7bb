"""Recognises the layout of a raw file by its name's ending and its first rows, and the reader for
it.
"""

import functools
import hashlib
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax import artifacts
from dpr_jax.data.raw import Passage, RawQuestion, short
from dpr_jax.data.readers import carried, columns, formats, objects, rows, separated, tables
from dpr_jax.data.readers.columns import Chosen, Naming
from dpr_jax.data.readers.objects import Table
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.data.readers.pieces import ByLines
from dpr_jax.data.readers.tables import Separated
from dpr_jax.errors import InputError

SPLIT_SHARDS = "passages-*-of-*.jsonl"
BEIR_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
TABLES = {".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}
ROWS_TO_NAME_BY = 100
LEAST_WORDS_OF_PASSAGE, MOST_WORDS_OF_ANSWER = 10, 4  # of a column `answer`
LIST_ROLES = ("question", "positive", "negative")  # of rows that are lists
PASSAGE_ROLES = {
    *("positive", "negative", "positive_ids", "passage_id", "passages", "set"),
    *("positive_passages", "negative_passages", "positive_ctxs", "hard_negative_ctxs"),
}

Reader = Callable[[Path, OnRead | None], Iterator[Any]]


class Literal:
    """Counts rows of separated values whose quotes are letters.

    Attributes:
      count: how many there are.
      example: file and line of the first.
    """

    def __init__(self) -> None:
        self.count, self.example = 0, ""

    def __call__(self, where: str) -> None:
        self.count += 1
        self.example = self.example or where


class Source(NamedTuple):
    """A raw input whose layout is known.

    Attributes:
      layout: its name, for people.
      files: what is read, in order.
      read: yields RawQuestion, or (where, Passage) for a corpus.
      columns: what its columns are used for, and which are left out; empty where it has none.
      first: returns the first row as understood; None where that costs too much.
      literal: rows whose quotes are letters, of the latest reading.
      by_lines: the form of a corpus that is one file of lines; None for another.
    """

    layout: str
    files: tuple[Path, ...]
    read: Callable[[OnRead | None], Iterator[Any]]
    columns: str = ""
    first: Callable[[], Any] | None = None
    literal: Literal | None = None
    by_lines: ByLines | None = None

    def fingerprint(self, checksum: Callable[[Path], str] = artifacts.checksum) -> str:
        """The checksum of the file, or one over those of several."""
        checksums = [checksum(path) for path in self.files]
        if len(checksums) == 1:
            return checksums[0]
        return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def questions(
    path: Path, chosen: Chosen | None = None, positive_from: float | None = None
) -> Source:
    """The reader for a file of questions, with or without their passages.

    Args:
      path: the file.
      chosen: what data.columns says of it.
      positive_from: least label or score of a positive passage.

    Raises:
      InputError: the file cannot be read, is empty, is none of the known layouts, or could be one
        of two.
    """
    chosen = chosen or Chosen("questions")
    head = _head(path)
    if _is_topics(head):
        return _source("TREC topics", path, formats.read_topics)
    if _is_squad(head):
        return _source("SQuAD JSON", path, carried.read_squad)
    shape = None
    if tables.ending(path) in tables.DELIMITERS:
        written = separated.questions(path, chosen)
        if written.layout:
            return _source(*_UNNAMED[written.layout][:1], path, *_UNNAMED[written.layout][1:])
        shape = written.shape
        _choose_by_number(chosen, written.roles)
    begin = _first_rows(path, shape, "questions")
    if begin and not shape and [*begin[0]] == [*tables.by_number([*begin[0]])]:
        _choose_by_number(chosen, LIST_ROLES[: len(begin[0])] if len(begin[0]) < 4 else ())
    naming = _named(path, begin, chosen)
    table = Table(shape, chosen, _with_answer(path, begin, naming, chosen), positive_from)
    return _table_source(_layout(path, table, begin), path, objects.read_questions, table)[0]


def passages(path: Path, chosen: Chosen | None = None) -> Source:
    """The reader for a corpus file.

    Args:
      path: the file.
      chosen: what data.columns says of it.

    Raises:
      InputError: the file cannot be read, is empty, is none of the known layouts, or could be one
        of two.
    """
    chosen = chosen or Chosen("passages")
    head = _head(path)
    if _is_squad(head):
        return _source("SQuAD paragraphs", path, carried.read_squad_passages)
    shape = None
    if tables.ending(path) in tables.DELIMITERS:
        written = separated.passages(path, chosen)
        if written.layout:
            layout, reader, used = _UNNAMED[written.layout]
            form = ByLines(reader, header=False, quoted=False)
            return _source(layout, path, reader, used)._replace(by_lines=form)
        shape = written.shape
        if _first_line(head).split("\t") == ["id", "text", "title"] and not chosen.role_of:
            literal = Literal()
            reader = functools.partial(formats.read_passages, literal=literal)
            source = _source("DPR passage TSV", path, reader, "id, text, title", literal)
            return source._replace(by_lines=ByLines(reader, header=True, quoted=True))
    begin = _first_rows(path, shape, "passages")
    known = {name for tier in columns.PASSAGE_TIERS["text"] for name in tier}
    keys = {key: None for row in begin for key in row}
    if "text" not in chosen.role_of.values() and not known & {*map(columns.normal, keys)}:
        raise InputError(
            f"{path}: not a known layout of passages; its first row has {_names(keys)}, but needs a"
            f" text under one of {', '.join(columns.PASSAGE_TIERS['text'][0])} (see docs/data.md)"
        )
    table = Table(shape, chosen, _named(path, begin, chosen))
    if "text" not in table.naming.roles:
        raise InputError(f"{path}: no column has the role text; its columns are {_names(keys)}")
    kind = _table(path)
    source, reader = _table_source(f"passages, {kind}", path, objects.read_passages, table)
    if kind not in ("CSV", "TSV", "JSONL"):
        return source
    form = ByLines(reader, header=bool(shape and shape.header), quoted=shape is not None)
    return source._replace(by_lines=form)


def beir(folder: Path, role: str) -> dict[str, Path]:
    """Returns the files of a BEIR folder for one setting: its corpus, or a split with its qrels.

    Raises:
      InputError: one of them is not there.
    """
    if role == "passages":
        return {"passages": _one_of(folder, BEIR_CORPUS)}
    return {
        role: _one_of(folder, ("queries.jsonl", "queries.jsonl.gz")),
        f"{role}_qrels": _one_of(folder / "qrels", (f"{role}.tsv",)),
    }


def is_split(folder: Path) -> bool:
    """Returns whether `dpr split` wrote this folder, or began to."""
    return any(folder.glob(SPLIT_SHARDS))


def split_passages(folder: Path) -> Source:
    """Returns the passages that `dpr split` wrote, in the order of their documents.

    Raises:
      InputError: it has not finished, or a shard is missing or damaged.
    """
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise InputError(
            f"{folder} has no {manifest.name}: dpr split was not finished; run it again"
        )
    files = tuple(folder / name for name in sorted(artifacts.verify(manifest)["files"]))
    naming = Naming({"id": "id", "title": "title", "text": "text"})
    table = Table(None, Chosen("passages"), naming)

    def read(on_read: OnRead | None) -> Iterator[tuple[str, Passage]]:
        for file in files:
            yield from objects.read_passages(file, on_read, table=table)

    return Source("passages that dpr split cut", files, read)


def described(source: Source) -> str:
    """Returns one line: the layout, the columns, and the first row as it is understood.

    Raises:
      InputError: the first row is broken.
    """
    used = f" ({source.columns})" if source.columns else ""
    row = source.first() if source.first is not None else None
    return f"{source.layout}{used}" + (f"; first row: {_row(row)}" if row is not None else "")


def _row(row: RawQuestion | tuple[str, Passage]) -> str:
    """Returns a row for people, on one line."""
    if not isinstance(row, RawQuestion):
        id_, title, text = row[1]
        return f"id {short(id_)}, title {short(title)}, text {short(text)}"
    texts = {passage.id: passage.text for passage in row.passages}
    parts = [f"id {short(row.id)}", f"question {short(row.question)}"]
    if row.answers:
        parts.append(f"answers {short([*row.answers])}")
    for name, ids in (
        ("gold", row.positives),
        ("hard negative", row.hard_negatives),
        ("negative", row.negatives),
    ):
        if ids:
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            parts.append(f"{name} {short(texts.get(ids[0], ids[0]))}{more}")
    return ", ".join(parts)


# layout of separated values without names -> its name, reader, columns
_UNNAMED: Mapping[str, tuple[Any, ...]] = {
    "answers": (
        "DPR question/answers",
        formats.read_question_answers,
        "question: 1, answers: 2",
    ),
    "ids": ("questions, id and text", formats.read_question_ids, "id: 1, question: 2"),
    "triples": (
        "MS MARCO triples",
        carried.read_triples,
        "question: 1, positive: 2, negative: 3",
    ),
    "collection": ("MS MARCO collection", formats.read_collection, "id: 1, text: 2"),
}


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} is not a BEIR folder: it has no {names[0]}; BEIR has corpus.jsonl, queries.jsonl"
        " and qrels/SPLIT.tsv"
    )


def _source(
    layout: str, path: Path, reader: Reader, used: str = "", literal: Literal | None = None
) -> Source:
    def read(on_read: OnRead | None) -> Iterator[Any]:
        if literal is not None:
            literal.__init__()  # type: ignore[misc]
        return reader(path, on_read)

    return Source(
        layout, (path,), read, used, lambda: next(iter(reader(path, None)), None), literal
    )


def _table_source(
    layout: str, path: Path, reader: Callable[..., Iterator[Any]], table: Table
) -> tuple[Source, Reader]:
    """Returns the source of a table, and the reader for any path."""
    literal = Literal()
    if table.shape is not None:
        table = table._replace(shape=table.shape._replace(literal=literal))
    of_path = functools.partial(reader, table=table)
    source = _source(layout, path, of_path, table.naming.described(table.chosen), literal)
    if table.is_labelled:
        ungrouped = functools.partial(reader, table=table, group=False)
        source = source._replace(first=lambda: next(ungrouped(path), None))
    return source, of_path


# --- the first rows


def _head(path: Path) -> str:
    head = rows.head(path)
    if not head.strip():
        raise InputError(f"{path} is empty")
    return head


def _is_topics(head: str) -> bool:
    """Mark-up that has topics."""
    text = head.lstrip().lower()
    return text.startswith("<") and ("<top>" in text or "<topic " in text)


def _is_squad(head: str) -> bool:
    """One JSON object with a list "data" of articles."""
    text = head.lstrip()
    return text.startswith("{") and '"data"' in text and '"paragraphs"' in text


def _first_line(head: str) -> str:
    return head.lstrip("\r\n").partition("\n")[0].rstrip("\r")


def _first_rows(path: Path, shape: Separated | None, what: str) -> list[dict[str, Any]]:
    if tables.ending(path) not in TABLES and rows.head(path).lstrip()[0] not in "[{":
        raise InputError(
            f"{path}: not a known layout of {what}; a file is JSON, or its name ends in"
            f" {', '.join(TABLES)} (or that and .gz; see docs/data.md)"
        )
    return [row for _, row in itertools.islice(tables.read(path, shape=shape), ROWS_TO_NAME_BY)]


def _choose_by_number(chosen: Chosen, roles: tuple[str, ...]) -> None:
    """Gives the columns of a table without names their roles, where none are chosen."""
    if roles and not chosen.role_of:
        chosen.role_of |= {str(number): role for number, role in enumerate(roles, 1)}


def _named(path: Path, begin: list[dict[str, Any]], chosen: Chosen) -> Naming:
    keys = dict.fromkeys(key for row in begin for key in row)
    return columns.name(keys, chosen, str(path), {})


def _with_answer(path: Path, begin: list[dict[str, Any]], naming: Naming, chosen: Chosen) -> Naming:
    """Returns the naming where a column `answer` of texts is what its texts look like.

    It holds passages in pairs of sentence-transformers, and short answers elsewhere.
    """
    name = next((c for c, role in naming.role_of.items() if role == "answers"), "")
    passages = naming.roles & (PASSAGE_ROLES - {"negative"})
    if columns.normal(name) != "answer" or name in chosen.role_of or passages:
        return naming
    texts = [row[name] for row in begin if row.get(name)]
    if not texts or not all(isinstance(text, str) for text in texts):
        return naming
    words = [len(text.split()) for text in texts]
    if all(text.lstrip().startswith("[") for text in texts):
        return naming
    if "negative" in naming.roles or statistics.median(words) >= LEAST_WORDS_OF_PASSAGE:
        return Naming(naming.role_of | {name: "positive"})
    if max(words) <= MOST_WORDS_OF_ANSWER:
        return naming
    raise InputError(
        f"{path}: column {name!r} could hold short answers or passages that answer, such as"
        f" {short(texts[0])}; say which with --data.columns answers={name} or positive={name}"
    )


def _layout(path: Path, table: Table, begin: list[dict[str, Any]]) -> str:
    """Returns the name of a table's layout by the roles of its columns."""
    roles, kind = table.naming.roles, _table(path)
    if roles & {*objects.CONTEXTS}:
        return f"DPR {kind}"
    if "set" in roles:
        return f"sets of texts, {kind}"
    if "question" in roles:
        for name, telling in (
            ("labelled pairs, {}", {"label", "score"} if table.is_labelled else set()),
            ("Tevatron {}", {"positive_passages", "negative_passages"}),
            ("MS MARCO {}", {"passages"}),
            ("(anchor, positive, negative ...) {}", {"positive", "negative"}),
            ("questions with ids of passages, {}", {"positive_ids", "negative_ids", "passage_id"}),
            ("questions and answers, {}", {"answers"}),
            ("questions, {} (BEIR, Tevatron)", {"id"}),
        ):
            if roles & telling:
                return name.format(kind)
    if kind == "JSON" and (not begin or "question" in roles):
        return "DPR JSON"
    first = begin[0] if begin else {}
    raise InputError(
        f"{path}: not a known layout of questions; its first row has {_names(first)}, but needs a"
        f" question under one of {', '.join(columns.QUESTION_TIERS['question'][0])} (see"
        " docs/data.md), and an id, answers or passages beside it"
    )


def _table(path: Path) -> str:
    """The kind of table, for people."""
    ending = tables.ending(path)
    if ending in TABLES:
        return TABLES[ending]
    return "JSON" if tables.is_json_list(path) else "JSONL"


def _names(keys: Mapping[str, Any]) -> str:
    return short(", ".join(sorted(keys))) if keys else "no names"
