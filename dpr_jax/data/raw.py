"""The rows that every reader yields, and the checks that every value passes."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dpr_jax.errors import InputError

# pid before docid: rows of MS MARCO v2 name their passage and its document
ID_KEYS = ("passage_id", "psg_id", "pid", "docid", "doc_id", "_id", "id")
TEXT_KEYS = ("text", "contents", "passage", "segment", "body")
_WORD = re.compile(r"\w+")


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
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    negatives: tuple[str, ...]
    where: str
    passages: tuple[Passage, ...] = ()
    unusable: str = ""
    teacher_scores: tuple[tuple[str, float], ...] = ()
    grades: tuple[int, ...] = ()


def unique(questions: Iterable[RawQuestion]) -> Iterator[RawQuestion]:
    """The questions as they come.

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
    """A question, with a plain apostrophe for the curly one, as DPR has it.

    Raises:
      InputError: it is no text, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: no question; every row needs a text as question")
    return encodable(value, where).replace("’", "'")


def answer_texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of answers.

    Raises:
      InputError: it is no list of texts, or one of them is blank.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: answers must be a list of texts, found {short(value)}")
    if not all(item.strip() for item in value):
        raise InputError(
            f"{where}: an answer is empty and would be found in every passage; remove it"
        )
    return tuple(encodable(item, where) for item in value)


def one_word(value: Any, what: str, where: str) -> str:
    """An id: a word, or a whole number.

    Raises:
      InputError: it is something else, or holds white space or NUL.
    """
    known = isinstance(value, str | int) and not isinstance(value, bool)
    id_ = str(value) if known else ""
    if id_.split() != [id_] or "\0" in id_:
        raise InputError(
            f"{where}: {what} {short(value)} must be one word; run files and qrels separate ids by"
            " spaces"
        )
    return encodable(id_, where)


def passage(value: dict[str, Any], what: str, where: str) -> Passage:
    """A passage that a row holds as an object {id, title, text}; one without id is known by its
    content.

    Raises:
      InputError: the text is missing, the id is not one word, or a value is no text.
    """
    text = first_of(value, TEXT_KEYS)
    title = value.get("title")
    title = "" if title is None else title
    if not isinstance(text, str) or not isinstance(title, str):
        raise InputError(
            f"{where}: {what} has no text; a passage is an object with id, title and text"
        )
    id_ = first_of(value, ID_KEYS)
    title, text = encodable(title, where), encodable(text, where)
    if id_ is None or id_ == "":
        return by_content(title, text)
    return Passage(one_word(id_, f"id of {what}", where), title, text)


def by_content(title: str, text: str) -> Passage:
    """A passage whose id is made of its title and text, the same in every file."""
    digest = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()
    return Passage(f"text-{digest[:16]}", title, text)


def comparable(question: str) -> str:
    """A question without what differs between copies: case, punctuation and white space."""
    return " ".join(_WORD.findall(question.casefold()))


def first_of(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value that is there; None where none is."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def encodable(text: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {short(text)} is not a valid Unicode text") from None
    return text


def short(value: Any) -> str:
    """A value for a message: on one line, not longer than that."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
