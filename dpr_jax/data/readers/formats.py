"""Readers of layouts whose columns have no names of their own: DPR's passages and questions with
answers, ids with questions, TREC topics.

Every reader says where a bad row is (file and line) and what the rule is.
"""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpr_jax.data import raw
from dpr_jax.data.raw import Passage, RawQuestion, answer_texts, one_word, question_text, short
from dpr_jax.data.readers import columns, rows, tables
from dpr_jax.data.readers.objects import listed
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.errors import InputError

QUESTION_ID_KEYS = tuple(name for tier in columns.QUESTION_TIERS["id"] for name in tier)

_TOPIC = re.compile(r"<top(ic\b[^>]*)?>", re.IGNORECASE)
_TOPIC_END = re.compile(r"</top(ic)?>", re.IGNORECASE)
_TOPIC_NUMBER = re.compile(
    r"""(?:<topic\s+number\s*=\s*["']?|<num>\s*(?:Number:)?\s*)([^\s"'<>]+)""",
    re.IGNORECASE,
)
_TOPIC_FIELD = re.compile(r"<(title|query|question)>([^<]*)", re.IGNORECASE)


def read_passages(
    path: Path,
    on_read: OnRead | None = None,
    *,
    literal: Callable[[str], None] = lambda where: None,
) -> Iterator[tuple[str, Passage]]:
    """Reads a corpus: TSV with the header `id, text, title`, quoted as CSV where a field needs it.

    Args:
      path: the file.
      on_read: told the bytes read.
      literal: told of each row whose quotes are letters.

    Yields:
      File and line where the row begins, and the passage. Its text is without outer quotes, as in
      DPR, unless quotes are letters of the row.

    Raises:
      InputError: wrong header or number of columns, an id that is empty or holds white space, a
        quote that is never closed, no passage at all, or a file that cannot be read as UTF-8 text.
    """
    table = rows.tsv(path, on_read)
    line, header, _ = next(table, (1, [], False))
    if not header:
        raise InputError(f"{path} is empty; a corpus begins with id, text, title")
    if header != ["id", "text", "title"]:
        raise InputError(
            f"{path}:{line}: the first line must be the header id, text, title (tab-separated),"
            f" found {short(header)}"
        )
    empty = True
    for line, row, as_it_stands in table:
        if row == header:
            raise InputError(f"{path}:{line}: {tables.REPEATED_HEADER}")
        if len(row) != 3:
            raise InputError(
                f"{path}:{line}: {len(row)} columns; a passage has 3 (id, text, title), separated"
                " by tabs"
            )
        where = f"{path}:{line}"
        if as_it_stands:
            literal(where)
        id_, text, title = row
        yield (
            where,
            Passage(
                one_word(id_, "passage id", where), title, text if as_it_stands else text.strip('"')
            ),
        )
        empty = False
    if empty:
        raise InputError(f"{path}: no passage after the header; the corpus is empty")


def read_collection(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """MS MARCO's `id TAB text`, without header and without quoting.

    Raises:
      InputError: a line without two columns, an id that is not one word, or a file that cannot be
        read.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        columns = rows.as_letters(text)
        if columns == [""]:
            continue
        if len(columns) != 2:
            raise InputError(
                f"{where}: {len(columns)} columns; a line is a passage id, a tab, and its text"
            )
        yield where, Passage(one_word(columns[0], "passage id", where), "", columns[1])


def read_question_answers(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """DPR's question/answers files: `question TAB ['answer', ...]`. The id of a question is its
    0-based row.

    Raises:
      InputError: wrong number of columns, an empty question, or a second column that is not a list
        of strings.
    """
    for number, (line, row, _) in enumerate(rows.tsv(path, on_read)):
        where = f"{path}:{line}"
        if len(row) != 2:
            raise InputError(
                f"{where}: {len(row)} columns; a line is a question, a tab, and a list such as"
                " ['answer', 'another']"
            )
        yield RawQuestion(
            id=str(number),
            question=question_text(row[0], where),
            where=where,
            answers=answer_texts(listed(row[1], "answers", where), where),
        )


def read_question_ids(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """Reads `id TAB question` without quoting, as of TREC and MS MARCO; a header is passed over.

    Raises:
      InputError: wrong number of columns, an id that is empty or holds white space, or an empty
        question.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        fields = rows.as_letters(text)
        if fields == [""] or (line == 1 and fields[0].lower() in QUESTION_ID_KEYS):
            continue
        if len(fields) != 2:
            raise InputError(f"{where}: a line is a question id, a tab, and a question")
        yield _asked(one_word(fields[0], "question id", where), fields[1], where)


def read_topics(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """TREC topics: <top> with <num> and <title>, closed or not; or <topic number="1"> with <query>,
    <question> or <title>.

    Raises:
      InputError: a topic has no number or no question, a topic is not closed, or there is none.
    """
    found, begun, parts = False, 0, []
    for line, text in rows.lines(path, on_read):
        if _TOPIC.search(text):
            if begun:
                break
            begun, parts = line, []
        if begun:
            parts.append(text)
        if begun and _TOPIC_END.search(text):
            yield _topic("".join(parts), f"{path}:{begun}")
            found, begun = True, 0
    if begun:
        raise InputError(f"{path}:{begun}: a topic is not closed; every <top> needs a </top>")
    if not found:
        raise InputError(f"{path}: no topic; each stands between <top> and </top>")


def _asked(id_: str, question: Any, where: str) -> RawQuestion:
    return RawQuestion(id_, question_text(question, where), where)


def _topic(text: str, where: str) -> RawQuestion:
    number = _TOPIC_NUMBER.search(text)
    if number is None:
        raise InputError(f"{where}: a topic needs <num> or <topic number=...>")
    fields = {name.lower(): value for name, value in _TOPIC_FIELD.findall(text)}
    question = raw.first_of(fields, ("query", "question", "title")) or ""
    question = " ".join(html.unescape(question).split())
    return _asked(number[1], question.removeprefix("Topic: "), where)
