"""Readers of files that carry the texts of their passages, without names of columns: MS MARCO's
triples, SQuAD.

The passages of such files make the corpus where no corpus file is named. Those without an id are
known by their content, so that the same text is one passage wherever it stands.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpr_jax.data import raw
from dpr_jax.data.raw import (
    Passage,
    RawQuestion,
    answer_texts,
    encodable,
    one_word,
    question_text,
    short,
)
from dpr_jax.data.readers import rows
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.errors import InputError


def read_triples(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """MS MARCO's `question TAB positive TAB negative`, texts without quoting; the id of a question
    is its 0-based line.

    Raises:
      InputError: a line without three columns, without question, or a file that cannot be read.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        columns = rows.as_letters(text)
        if columns == [""]:
            continue
        if len(columns) != 3:
            raise InputError(
                f"{where}: {len(columns)} columns; a line is a question, a relevant passage, and an"
                " irrelevant one, separated by tabs"
            )
        question, positive, negative = columns
        yield _carrying(
            id_=str(line - 1),
            question=question,
            answers=(),
            positives=_texts(positive, "positive", where),
            negatives=_texts(negative, "negative", where),
            where=where,
        )


# --- SQuAD


def read_squad(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """SQuAD v1.1 and v2; the gold passage of a question is its paragraph. Questions marked
    impossible are unusable.

    Raises:
      InputError: the file cannot be read, or an article, paragraph or question lacks what it needs.
    """
    for where, article in _articles(path, on_read):
        for passage, questions in _paragraphs(article, where):
            for question in questions:
                yield _squad_question(question, passage, where)


def read_squad_passages(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """All paragraphs of a SQuAD file, also those without question; one that stands there twice is
    given once.

    Raises:
      InputError: as `read_squad`.
    """
    given = set()
    for where, article in _articles(path, on_read):
        for passage, _ in _paragraphs(article, where):
            if passage.id not in given:
                given.add(passage.id)
                yield where, passage


def _articles(path: Path, on_read: OnRead | None) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = True
    for number, (line, article) in enumerate(rows.json_objects(path, on_read, "data")):
        yield f"{path} article {number} (line {line})", article
        empty = False
    if empty:
        raise InputError(f'{path}: the list "data" is empty')


def _paragraphs(
    article: dict[str, Any], where: str
) -> Iterator[tuple[Passage, list[dict[str, Any]]]]:
    title = article.get("title") or ""
    if not isinstance(title, str):
        raise InputError(f"{where}: the title must be a text, found {short(title)}")
    title = encodable(title.replace("_", " "), where)
    for paragraph in _dicts(article, "paragraphs", where):
        text = paragraph.get("context")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: a paragraph has no context")
        passage = raw.by_content(title, encodable(text.strip(), where))
        yield passage, _dicts(paragraph, "qas", where)


def _squad_question(question: dict[str, Any], passage: Passage, where: str) -> RawQuestion:
    id_ = one_word(question.get("id"), "question id", where)
    where = f"{where}, question {id_}"
    impossible = raw.is_true(question.get("is_impossible"))
    texts = [answer.get("text") for answer in _dicts(question, "answers", where)]
    row = _carrying(
        id_=id_,
        question=question.get("question"),
        answers=answer_texts(list(dict.fromkeys(texts)), where),
        positives=[passage],
        negatives=[],
        where=where,
    )
    return row._replace(unusable="marked impossible" if impossible else "")


# --- values of a row


def _carrying(
    *,
    id_: str,
    question: Any,
    answers: tuple[str, ...],
    positives: Sequence[Passage | None],
    negatives: Sequence[Passage | None],
    where: str,
) -> RawQuestion:
    positives, negatives = list(filter(None, positives)), list(filter(None, negatives))
    return RawQuestion(
        id=id_,
        question=question_text(question, where),
        where=where,
        answers=answers,
        positives=tuple(passage.id for passage in positives),
        hard_negatives=tuple(passage.id for passage in negatives),
        passages=(*positives, *negatives),
    )


def _texts(value: Any, what: str, where: str) -> list[Passage | None]:
    """Passages of a text or a list of texts; None for each that is empty."""
    texts = value if isinstance(value, list) else [value]
    passages: list[Passage | None] = []
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"{where}: {what} must be a text or a list of texts, found {short(value)}"
            )
        passages.append(
            raw.by_content("", encodable(text.strip(), where)) if text and text.strip() else None
        )
    return passages


def _dicts(row: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{where}: {key} must be a list of objects, found {short(value)}")
    return value
