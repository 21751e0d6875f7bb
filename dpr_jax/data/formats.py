"""Readers of other people's files, plain or .gz, one row at a time: what DPR's downloads and TREC's tools look like on disk.

Every reader says where a bad row is (file and line) and what the rule is. Texts are UTF-8, with or without a byte order mark; lines end
in LF or CRLF.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.data import rows
from dpr_jax.data.rows import OnRead
from dpr_jax.errors import InputError


class Passage(NamedTuple):
    """A passage of the corpus; the title may be empty."""

    id: str
    title: str
    text: str

    @property
    def title_and_text(self) -> str:
        """What BM25 indexes."""
        return f"{self.title} {self.text}"


class RawQuestion(NamedTuple):
    """A question whose passages are still the ids of the file.

    Attributes:
      where: file and row, for messages.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    negatives: tuple[str, ...]
    where: str


class Qrels(NamedTuple):
    """Relevance judgements: question id -> ids of its relevant passages, and file:line of each question's first judgement."""

    positives: dict[str, list[str]]
    where: dict[str, str]


# --- the four layouts ---------------------------------------------------------------------------------------------------


def read_passages(
    path: Path, on_read: OnRead | None = None
) -> Iterator[tuple[int, Passage]]:
    """A corpus: TSV with the header `id, text, title`, quoted as CSV where a field needs it.

    Yields:
      The number of the line where the row begins, and the passage, its text without outer quotes.

    Raises:
      InputError: wrong header or number of columns, an id that is empty or holds white space, a quote that is never closed, no
        passage at all, or a file that cannot be read as UTF-8 text.
    """
    table = rows.tsv(path, on_read)
    line, header = next(table, (1, []))
    if not header:
        raise InputError(f"{path} is empty; a corpus begins with id, text, title")
    if header != ["id", "text", "title"]:
        raise InputError(
            f"{path}:{line}: the first line must be the header id, text, title (tab-separated), found {_short(header)}"
        )
    empty = True
    for line, row in table:
        if len(row) != 3:
            raise InputError(
                f"{path}:{line}: {len(row)} columns; a passage has 3 (id, text, title), separated by tabs"
            )
        id_, text, title = row
        if id_.split() != [id_]:
            raise InputError(
                f"{path}:{line}: passage id {id_!r} must be one word; run files and qrels separate ids by spaces"
            )
        yield line, Passage(id_, title, text.strip('"'))
        empty = False
    if empty:
        raise InputError(f"{path}: no passage after the header; the corpus is empty")


def read_dpr_json(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """DPR's training files: one JSON list of {question, answers, positive_ctxs, hard_negative_ctxs, negative_ctxs}.

    The passages of a row are taken by id (`passage_id` or `psg_id`); their texts in the file are not used. The id of a
    question is its 0-based row.

    Raises:
      InputError: truncated or broken JSON, a row without question, a positive without id, or a value of the wrong type.
    """
    for number, (line, row) in enumerate(rows.json_objects(path, on_read)):
        where = f"{path} row {number} (line {line})"
        yield RawQuestion(
            id=str(number),
            question=_question(row.get("question"), where),
            answers=_answers(row.get("answers", []), where),
            positives=_context_ids(row, "positive_ctxs", where),
            hard_negatives=_context_ids(row, "hard_negative_ctxs", where),
            negatives=_context_ids(row, "negative_ctxs", where),
            where=where,
        )


def read_question_answers(
    path: Path, on_read: OnRead | None = None
) -> Iterator[RawQuestion]:
    """DPR's question/answers files: `question TAB ['answer', ...]`. The id of a question is its 0-based row.

    Raises:
      InputError: wrong number of columns, an empty question, or a second column that is not a list of strings.
    """
    for number, (line, row) in enumerate(rows.tsv(path, on_read)):
        where = f"{path}:{line}"
        if len(row) != 2:
            raise InputError(
                f"{where}: {len(row)} columns; a line is a question, a tab, and a list such as ['answer', 'another']"
            )
        try:
            answers = ast.literal_eval(row[1].strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise InputError(
                f"{where}: the second column must be a list such as ['answer', 'another'], found {_short(row[1])}"
            ) from None
        yield RawQuestion(
            id=str(number),
            question=_question(row[0], where),
            answers=_answers(answers, where),
            positives=(),
            hard_negatives=(),
            negatives=(),
            where=where,
        )


def read_question_ids(
    path: Path, on_read: OnRead | None = None
) -> Iterator[RawQuestion]:
    """`id TAB question`, without header and without quoting, as TREC and MS MARCO have it.

    Raises:
      InputError: wrong number of columns, an id that is empty or holds white space, or an empty question.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        id_, tab, question = text.rstrip("\r\n").partition("\t")
        if not tab and not id_:
            continue
        if not tab or "\t" in question:
            raise InputError(f"{where}: a line is a question id, a tab, and a question")
        if id_.split() != [id_]:
            raise InputError(
                f"{where}: question id {id_!r} must be one word; run files and qrels separate ids by spaces"
            )
        yield RawQuestion(id_, _question(question, where), (), (), (), (), where)


def read_qrels(path: Path) -> Qrels:
    """TREC qrels: `question-id 0 passage-id relevance`; a relevance above 0 makes the passage gold.

    Raises:
      InputError: a line without four columns, or a relevance that is not a whole number.
    """
    qrels = Qrels({}, {})
    for line, text in rows.lines(path, None):
        columns = text.split()
        if not columns:
            continue
        if len(columns) != 4 or not columns[3].removeprefix("-").isdecimal():
            raise InputError(
                f"{path}:{line}: a line is question-id, 0, passage-id, relevance (a whole number), found {_short(columns)}"
            )
        question_id, _, passage_id, relevance = columns
        if int(relevance) > 0:
            qrels.positives.setdefault(question_id, []).append(passage_id)
            qrels.where.setdefault(question_id, f"{path}:{line}")
    return qrels


Reader = Callable[[Path, OnRead | None], Iterator[RawQuestion]]

QUESTION_READERS: dict[str, Reader] = {
    ".json": read_dpr_json,
    ".csv": read_question_answers,
    ".tsv": read_question_ids,
}


def ending(path: Path) -> str:
    """The name's ending that says which layout a file has, without .gz."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def unique(questions: Iterable[RawQuestion]) -> Iterator[RawQuestion]:
    """The questions as they come.

    Raises:
      InputError: an id occurs twice.
    """
    seen: dict[str, str] = {}
    for row in questions:
        if row.id in seen:
            raise InputError(
                f"{row.where}: question id {row.id!r} occurs twice, first at {seen[row.id]}; ids must be unique"
            )
        seen[row.id] = row.where
        yield row


# --- values of a row ----------------------------------------------------------------------------------------------------


def _question(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: no question; every row needs a text as question")
    return _encodable(value, where).replace("’", "'")


def _answers(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(
            f"{where}: answers must be a list of texts, found {_short(value)}"
        )
    if not all(item.strip() for item in value):
        raise InputError(
            f"{where}: an answer is empty and would be found in every passage; remove it"
        )
    return tuple(_encodable(item, where) for item in value)


def _encodable(text: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: {_short(text)} is not a valid Unicode text"
        ) from None
    return text


def _context_ids(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    contexts = row.get(key) or []
    if not isinstance(contexts, list):
        raise InputError(f"{where}: {key} must be a list, found {_short(contexts)}")
    ids = []
    for number, context in enumerate(contexts):
        id_ = None
        if isinstance(context, dict):
            id_ = context.get("passage_id", context.get("psg_id"))
        if not isinstance(id_, str | int) or id_ == "":
            raise InputError(
                f"{where}: {key}[{number}] has no passage_id or psg_id; it must name a passage of the corpus"
            )
        ids.append(str(id_))
    return tuple(ids)


def _short(value: Any) -> str:
    """A value for a message: on one line, not longer than that."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
