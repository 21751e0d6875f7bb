"""The rows that every reader yields, and the checks that every value passes."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import regex

from dpr_jax.errors import InputError

# pid before docid: rows of MS MARCO v2 name their passage and its document
ID_KEYS = ("passage_id", "psg_id", "pid", "docid", "doc_id", "_id", "id")
TEXT_KEYS = ("text", "contents", "passage", "segment", "body")
_WORD = re.compile(r"\w+")
_VISIBLE = regex.compile(r"[^\s\p{C}]")


class Passage(NamedTuple):
    """A passage of the corpus; the title may be empty."""

    id: str
    title: str
    text: str

    @property
    def title_and_text(self) -> str:
        """Title and text as one text, which BM25 indexes."""
        return f"{self.title} {self.text}"


class RawQuestion(NamedTuple):
    """A question whose passages are still the ids of the file.

    Attributes:
      where: file and row, for messages.
      passages: those that the row carries with their texts; they make the corpus where there is no
        corpus file.
      unusable: why the row is no question to learn from or to ask, where its file says so.
      teacher_scores: (passage id, score) of those that a teacher scored.
      grades: the relevance of each of the positives; empty where all have 1.
    """

    id: str
    question: str
    where: str
    answers: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()
    hard_negatives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    unusable: str = ""
    teacher_scores: tuple[tuple[str, float], ...] = ()
    grades: tuple[int, ...] = ()


def unique(questions: Iterable[RawQuestion]) -> Iterator[RawQuestion]:
    """Yields the questions as they come.

    Raises:
      InputError: an id occurs twice.
    """
    seen: dict[str, str] = {}
    for row in questions:
        if row.id in seen:
            raise InputError(
                f"{row.where}: question id {row.id!r} occurs twice, first at {seen[row.id]}; ids"
                " must be unique"
            )
        seen[row.id] = row.where
        yield row


def question_text(value: Any, where: str) -> str:
    """Returns a question, with a plain apostrophe for the curly one, as DPR has it.

    Raises:
      InputError: it is no text, or blank.
    """
    if not isinstance(value, str) or is_blank(encodable(value, where)):
        raise InputError(f"{where}: no question; every row needs a text as question")
    return value.replace("’", "'")


def answer_texts(value: Any, where: str) -> tuple[str, ...]:
    """Returns a list of answers.

    Raises:
      InputError: it is no list of texts, or one of them is blank.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: answers must be a list of texts, found {short(value)}")
    answers = tuple(encodable(item, where) for item in value)
    if any(map(is_blank, answers)):
        raise InputError(
            f"{where}: an answer is empty and would be found in every passage; remove it"
        )
    return answers


def one_word(value: Any, what: str, where: str) -> str:
    """Returns an id: a word, or a whole number.

    Raises:
      InputError: it is something else, or holds white space or NUL.
    """
    known = isinstance(value, str | int) and not isinstance(value, bool)
    id_ = str(value) if known else ""
    if id_.split() != [id_] or "\0" in id_:
        rule = "run files and qrels separate ids by spaces"
        if isinstance(value, float):
            rule = "an id is a text or a whole number; write the column as such"
        raise InputError(f"{where}: {what} {short(value)} must be one word; {rule}")
    return encodable(id_, where)


def passage(value: dict[str, Any], what: str, where: str) -> Passage:
    """A passage that a row holds as an object {id, title, text}; one without id is known by its
    content.

    Raises:
      InputError: the text is missing, the id is not one word, or a value is no text.
    """
    text = first_of(value, TEXT_KEYS)
    title = title_text(value.get("title"), where)
    if not isinstance(text, str):
        raise InputError(
            f"{where}: {what} has no text; a passage is an object with id, title and text"
        )
    id_ = first_of(value, ID_KEYS)
    text = encodable(text, where)
    if id_ is None or id_ == "":
        return by_content(title, text)
    return Passage(one_word(id_, f"id of {what}", where), title, text)


def title_text(value: Any, where: str) -> str:
    """Returns a title: a text or a number; none for null and for the NaN of a table.

    Raises:
      InputError: it is something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: the title must be a text, found {short(value)}")
    return encodable(str(value), where)


def is_true(value: Any) -> bool:
    """Returns whether a mark is set: true, 1, or a text that says so."""
    return value is True or str(value).strip().lower() in ("true", "1", "yes")


def is_blank(text: str) -> bool:
    """Returns whether a text has nothing but white space and control characters."""
    return not text[:1].isalnum() and _VISIBLE.search(text) is None


def by_content(title: str, text: str) -> Passage:
    """A passage whose id is made of its title and text, the same in every file."""
    digest = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()
    return Passage(f"text-{digest[:16]}", title, text)


def comparable(question: str) -> str:
    """Returns a question without what differs between copies: case, punctuation, white space."""
    return " ".join(_WORD.findall(question.casefold()))


def first_of(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Returns the first value that is there; None where none is."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def encodable(text: str, where: str) -> str:
    """Refuses half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {short(text)} is not a valid Unicode text") from None
    return text


def short(value: Any) -> str:
    """Returns a value for a message: on one line, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
