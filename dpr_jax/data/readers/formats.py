"""Readers of files that name passages by id, one row at a time: DPR's downloads, and what TREC,
BEIR and MS MARCO have for questions.

Every reader says where a bad row is (file and line) and what the rule is. Texts are UTF-8, with or
without a byte order mark; lines end in LF or CRLF.
"""

import ast
import html
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.data import raw
from dpr_jax.data.raw import (
    Passage,
    RawQuestion,
    answer_texts,
    one_word,
    question_text,
    short,
)
from dpr_jax.data.readers import rows, tables, teacher
from dpr_jax.data.readers.rows import OnRead
from dpr_jax.errors import InputError

QUESTION_KEYS = ("question", "query", "anchor")
QUESTION_TEXT_KEYS = (*QUESTION_KEYS, "text", "query_text", "title")  # of rows that only ask
CONTEXT_KEYS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")
QUESTION_ID_KEYS = ("query_id", "qid", "question_id", "_id", "id")
QRELS_HEADS = ("query-id", "query_id", "qid", "query", "topic")
LINES_TO_TELL_BY = 1000

_WHOLE = re.compile(r"(-?\d{1,9})(?:\.0*)?", re.ASCII)
_SMALL = re.compile(r"-?(?:\d|10)(?:\.\d*)?", re.ASCII)  # a grade, no passage's id
_TOPIC = re.compile(r"<top(ic\b[^>]*)?>", re.IGNORECASE)
_TOPIC_END = re.compile(r"</top(ic)?>", re.IGNORECASE)
_TOPIC_NUMBER = re.compile(
    r"""(?:<topic\s+number\s*=\s*["']?|<num>\s*(?:Number:)?\s*)([^\s"'<>]+)""",
    re.IGNORECASE,
)
_TOPIC_FIELD = re.compile(r"<(title|query|question)>([^<]*)", re.IGNORECASE)


class Judgement(NamedTuple):
    """The grade of a passage for a question, and the line of the file that gives it."""

    grade: int
    line: int


class Qrels(NamedTuple):
    """Relevance judgements of one file.

    Attributes:
      path: the file.
      positives: question id -> passage id -> its judgement, where the grade is 1 or more.
      negatives: question id -> ids of irrelevant passages, where the file is one of triples.
      contradictions: file, line and content of each judgement that differs from an earlier one.
    """

    path: Path
    positives: dict[str, dict[str, Judgement]]
    negatives: dict[str, list[str]]
    contradictions: list[str]

    def where(self, question_id: str, passage_id: str) -> str:
        """Returns file:line of a positive."""
        return f"{self.path}:{self.positives[question_id][passage_id].line}"


# --- passages and questions


def read_passages(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """Reads a corpus: TSV with the header `id, text, title`, quoted as CSV where a field needs it.

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


def read_dpr_json(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """Reads DPR's training files: objects {question, answers, positive_ctxs, hard_negative_ctxs,
    negative_ctxs}, a JSON list or one per line.

    The passages of a row are known by id (`passage_id` or `psg_id`), or by their content where they
    have none. The id of a question is its own (`query_id`, `id`, ...), else its 0-based row.
    `pos_scores` and `neg_scores` are a teacher's, of positive_ctxs and hard_negative_ctxs.

    Raises:
      InputError: truncated or broken JSON, a row without question, a passage with neither id nor
        text, or a value of the wrong type.
    """
    for number, (where, row) in enumerate(tables.read(path, on_read)):
        carried: list[Passage] = []
        positives, hard_negatives, negatives = (
            _context_ids(row, key, where, carried) for key in CONTEXT_KEYS
        )
        yield RawQuestion(
            id=question_id(row, number, where),
            question=question_text(raw.first_of(row, QUESTION_KEYS), where),
            answers=_answers(row, where),
            positives=positives,
            hard_negatives=hard_negatives,
            negatives=negatives,
            where=where,
            passages=tuple(carried),
            teacher_scores=teacher.beside_passages(row, positives, hard_negatives, where),
        )


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
            answers=answer_texts(_listed(row[1], where), where),
            positives=(),
            hard_negatives=(),
            negatives=(),
            where=where,
        )


def read_question_ids(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """Reads `id TAB question` without quoting, as of TREC and MS MARCO; a header is passed over.

    Raises:
      InputError: wrong number of columns, an id that is empty or holds white space, or an empty
        question.
    """
    for line, text in rows.lines(path, on_read):
        where = f"{path}:{line}"
        id_, tab, question = text.rstrip("\r\n").partition("\t")
        if (not tab and not id_) or (line == 1 and id_.lower() in QUESTION_ID_KEYS):
            continue
        if not tab or "\t" in question:
            raise InputError(f"{where}: a line is a question id, a tab, and a question")
        yield _asked(one_word(id_, "question id", where), question, where)


def read_question_objects(path: Path, on_read: OnRead | None = None) -> Iterator[RawQuestion]:
    """Objects that are questions alone: BEIR's queries.jsonl {_id, text}, Tevatron's {query_id,
    query}, {id, question}.

    Raises:
      InputError: the file cannot be read, an id is missing or not one word, or a question is
        missing.
    """
    for where, row in tables.read(path, on_read):
        id_ = one_word(raw.first_of(row, QUESTION_ID_KEYS), "question id", where)
        yield _asked(id_, raw.first_of(row, QUESTION_TEXT_KEYS), where)


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


# --- judgements


def read_qrels(path: Path) -> Qrels:
    """Reads judgements: TREC's `question-id 0 passage-id grade`, BEIR's `question-id passage-id
    grade`, or MS MARCO's triples of ids, `question-id positive negative`.

    A header is passed over. Without one, three columns are judgements where the third holds small
    whole numbers alone, else triples. Grades are whole numbers, as in trec_eval (1.0 is 1); 1 or
    more makes the passage gold. Of two judgements of one passage the first counts.

    Raises:
      InputError: a line without three or four columns or unlike the lines before it, a grade that
        is no whole number, or no judgement at all.
    """
    layout = _qrels_layout(path)
    qrels = Qrels(path, {}, {}, [])
    judged: dict[str, dict[str, Judgement]] = {}
    for line, columns in _qrels_rows(path):
        question_id, passage_id, grade = _judgement(columns, layout, f"{path}:{line}")
        found = judged.setdefault(question_id, {})
        first = found.setdefault(passage_id, Judgement(grade, line))
        if first.grade != grade:
            qrels.contradictions.append(
                f"{path}:{line}: passage {passage_id!r} of question {question_id!r} has grade"
                f" {grade}, and {first.grade} in line {first.line}"
            )
        if layout == "triples":
            qrels.negatives.setdefault(question_id, []).append(columns[2])
    if not judged:
        raise InputError(
            f"{path} is empty; qrels are lines of question-id, 0, passage-id, relevance"
        )
    for question_id, found in judged.items():
        if positives := {id_: one for id_, one in found.items() if one.grade > 0}:
            qrels.positives[question_id] = positives
    return qrels


def _qrels_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line and columns of every line that is neither blank nor the header."""
    comma = tables.ending(path) == ".csv"
    first = True
    for line, text in rows.lines(path, None):
        columns = [one.strip() for one in text.split(",")] if comma else text.split()
        if any(columns) and not (first and columns[0].lower() in QRELS_HEADS):
            yield line, columns
        first = first and not any(columns)


def _qrels_layout(path: Path) -> str:
    """Returns TREC, BEIR or triples, by the first lines."""
    begin = [columns for _, columns in itertools.islice(_qrels_rows(path), LINES_TO_TELL_BY)]
    if any(len(columns) != 3 for columns in begin):
        return "TREC"
    if all(_SMALL.fullmatch(grade) for *_, grade in begin):
        return "BEIR"
    # `question 0 passage` lacks its grade
    return "TREC" if all(second in ("0", "Q0") for _, second, _ in begin) else "triples"


def _judgement(columns: list[str], layout: str, where: str) -> tuple[str, str, int]:
    """Returns question id, passage id and grade of a line."""
    if len(columns) != (4 if layout == "TREC" else 3):
        raise InputError(
            f"{where}: a line is question-id, 0, passage-id, relevance (BEIR: without the 0), each"
            f" one word, found {short(columns)}"
        )
    if layout == "triples":
        return columns[0], columns[1], 1
    whole = _WHOLE.fullmatch(columns[-1])
    if not whole:
        raise InputError(
            f"{where}: the last column, relevance of a passage-id, must be a whole number, found"
            f" {short(columns[-1])}; write 0, 1, 2 ... for it"
        )
    return columns[0], columns[-2], int(whole[1])


# --- values of a row


def question_id(row: dict[str, Any], number: int, where: str) -> str:
    """Returns the id that a row brings; else its number, from 0.

    Raises:
      InputError: the id is not one word.
    """
    id_ = raw.first_of(row, QUESTION_ID_KEYS)
    return str(number) if id_ is None else one_word(id_, "question id", where)


def _asked(id_: str, question: Any, where: str) -> RawQuestion:
    return RawQuestion(id_, question_text(question, where), (), (), (), (), where)


def _topic(text: str, where: str) -> RawQuestion:
    number = _TOPIC_NUMBER.search(text)
    if number is None:
        raise InputError(f"{where}: a topic needs <num> or <topic number=...>")
    fields = {name.lower(): value for name, value in _TOPIC_FIELD.findall(text)}
    question = raw.first_of(fields, ("query", "question", "title")) or ""
    question = " ".join(html.unescape(question).split())
    return _asked(number[1], question.removeprefix("Topic: "), where)


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """Returns the answers under one of their names; none where there is no such name.

    A list, a text, TriviaQA's {value, aliases} or SQuAD's {text: [...]}.
    """
    value = raw.first_of(row, ("answers", "answer"))
    if isinstance(value, dict):
        keys = ("value", "aliases", "text")
        lists = [one if isinstance(one, list) else [one] for one in map(value.get, keys) if one]
        value = list(dict.fromkeys(itertools.chain(*lists))) or value
    if isinstance(value, str):  # a CSV cell may hold a list
        value = _listed(value, where) if value.lstrip().startswith("[") else [value]
    return answer_texts([] if value is None else value, where)


def _listed(text: str, where: str) -> list[Any]:
    """Parses a list such as ['answer', 'another']; runs nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of \\d and the like
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise InputError(
            f"{where}: the answers must be a list such as ['answer', 'another'], found"
            f" {short(text)}"
        )
    return found


def _context_ids(
    row: dict[str, Any], key: str, where: str, carried: list[Passage]
) -> tuple[str, ...]:
    """The ids of a row's passages; those that come with their text are added to `carried`."""
    contexts = row.get(key) or []
    if not isinstance(contexts, list):
        raise InputError(f"{where}: {key} must be a list, found {short(contexts)}")
    ids = []
    for number, context in enumerate(contexts):
        what = f"{key}[{number}]"
        if not isinstance(context, dict):
            raise InputError(f"{where}: {what} must be an object, {{...}}")
        id_ = context.get("passage_id", context.get("psg_id"))
        text = context.get("text")
        if isinstance(text, str) and text.strip():
            carried.append(raw.passage(context | {"text": text.strip('"')}, what, where))
            ids.append(carried[-1].id)
        elif isinstance(id_, str | int) and not isinstance(id_, bool) and id_ != "":
            ids.append(str(id_))
        else:
            raise InputError(
                f"{where}: {what} has no passage_id or psg_id; it must name a passage of the"
                " corpus, or carry its text"
            )
    return tuple(ids)
