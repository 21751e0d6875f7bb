"""Reads tables whose columns have roles: DPR's JSON, Tevatron, BEIR, sentence-transformers,
FlagEmbedding, labelled pairs, rows of SQuAD and MS MARCO.
"""

import ast
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.data import raw
from dpr_jax.data.fields import with_fields
from dpr_jax.data.raw import Passage, RawQuestion, answer_texts, one_word, question_text, short
from dpr_jax.data.readers import columns, labelled, tables, teacher
from dpr_jax.data.readers.columns import Chosen, Naming
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.errors import InputError

FIELDS = "fields"
CONTEXTS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


class Table(NamedTuple):
    """A table whose columns are known.

    Attributes:
      shape: of separated values; None for other files.
      chosen: what data.columns says.
      naming: the roles of the columns of the first rows.
      positive_from: least label or score of a positive passage; None: labels of 1 or more.
    """

    shape: tables.Separated | None
    chosen: Chosen
    naming: Naming
    positive_from: float | None = None

    @property
    def is_labelled(self) -> bool:
        """Returns whether a row is a question, a passage, and how relevant it is."""
        roles = self.naming.roles
        return bool(roles & {"label", "score"}) and not roles & {"negative", *CONTEXTS}

    @property
    def has_own_ids(self) -> bool:
        """Returns whether ids are those of questions, not of rows."""
        own = columns.QUESTION_TIERS["id"][0]
        return any(
            role == "id" and (columns.normal(column) in own or column in self.chosen.role_of)
            for column, role in self.naming.role_of.items()
        )


def read_questions(
    path: Path, on_read: OnRead | None = None, *, table: Table, group: bool = True
) -> Iterator[RawQuestion]:
    """Reads one question per row; of labelled pairs one per question, which are held in memory.

    A question keeps its id; without one it is known by its row, from 0.

    Raises:
      InputError: the file cannot be read, a row has no question, or a value is not what its column
        holds.
    """
    found = (
        _question(values, number, where, table)
        for number, (where, values) in enumerate(_valued(path, on_read, table))
    )
    if group and table.is_labelled:
        return labelled.grouped(found, by_id=table.has_own_ids)
    return found


def read_passages(
    path: Path, on_read: OnRead | None = None, *, table: Table
) -> Iterator[tuple[str, Passage]]:
    """Reads passages {id, title, text}; one without id is known by its content.

    Raises:
      InputError: the file cannot be read, a row has no text, or an id is not one word.
    """
    for where, values in _valued(path, on_read, table):
        row = {role: value for role, (value, *_) in values.items()}
        passage = raw.passage(row, "the passage", where)
        yield where, with_fields(passage, row.get(FIELDS, {}))


def _valued(
    path: Path, on_read: OnRead | None, table: Table
) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Yields file and row, and the values by role; null is no value.

    Of passages the columns without a role are together, by name, under the role FIELDS.
    """
    role_of = table.naming.role_of
    for where, row in tables.read(path, on_read, table.shape):
        if not row.keys() <= role_of.keys():
            role_of = columns.name(row, table.chosen, where, role_of).role_of
        values: dict[str, list[Any]] = {}
        for column, value in row.items():
            if value is not None and (role := role_of[column]):
                values.setdefault(role, []).append(value)
            elif value is not None and table.chosen.keeps(column):
                values.setdefault(FIELDS, [{}])[0][column] = value
        yield where, values


# --- one row


def _question(values: dict[str, list[Any]], number: int, where: str, table: Table) -> RawQuestion:
    row = {role: value for role, (value, *_) in values.items()}
    carried: list[Passage] = []

    # --- passages, by id; None for a text that is empty
    positives: list[str | None] = []
    hard: list[str | None] = []
    for role, into in (("positive_ctxs", positives), ("hard_negative_ctxs", hard)):
        into += _context_ids(row.get(role), role, where, carried)
    negatives = _context_ids(row.get("negative_ctxs"), "negative_ctxs", where, carried)
    for role, into in (("positive_passages", positives), ("negative_passages", hard)):
        into += _of_objects(row.get(role), role, where, carried)
    _add_texts(positives, values, "positive", where, carried)
    _add_texts(hard, values, "negative", where, carried)
    selected = _selected(row.get("passages"), where, carried)
    positives += [id_ for id_, is_selected in selected if is_selected]
    hard += [id_ for id_, is_selected in selected if not is_selected]
    if "set" in row:  # texts that mean the same: the first asks for the others
        row["question"], *others = _list_of_texts(row["set"], "set", where)
        positives += _texts(others, "set", where, carried)

    # --- answers, labels, scores
    answers, unusable = _answers(row.get("answers"), where)
    if raw.is_true(row.get("impossible")):
        unusable = "marked impossible"
    scores = teacher.beside_passages(row, positives, hard, where)
    grades: tuple[int, ...] = ()
    if table.is_labelled:
        positives, hard, grades, scores = labelled.judged(
            row, positives, where, table.positive_from
        )
    elif not scores:
        scores = teacher.of_row(row, positives, hard, where)
    id_ = row.get("id")
    if id_ is None and table.naming.roles <= {"id", "question"} and "id" in table.naming.roles:
        one_word(id_, "question id", where)
    return RawQuestion(
        id=str(number) if id_ is None else one_word(id_, "question id", where),
        question=question_text(row.get("question"), where),
        answers=answers,
        positives=tuple(filter(None, positives)),
        hard_negatives=tuple(filter(None, hard)),
        negatives=tuple(negatives),
        where=where,
        passages=tuple(carried),
        unusable=unusable,
        teacher_scores=scores,
        grades=grades,
    )


def _context_ids(contexts: Any, key: str, where: str, carried: list[Passage]) -> list[str]:
    """Returns the ids of DPR's contexts; those that come with their text are added to `carried`."""
    contexts = [] if contexts is None else contexts
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
    return ids


def _of_objects(value: Any, key: str, where: str, carried: list[Passage]) -> list[str]:
    """Returns the ids of Tevatron's passages."""
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{where}: {key} must be a list of objects, found {short(value)}")
    found = [raw.passage(one, f"{key}[{number}]", where) for number, one in enumerate(value)]
    carried += found
    return [passage.id for passage in found]


def _add_texts(
    into: list[str | None],
    values: dict[str, list[Any]],
    role: str,
    where: str,
    carried: list[Passage],
) -> None:
    """Adds the ids of passages that a row has as texts, as ids, or both."""
    ids = _ids(values.get(f"{role}_ids", []), where)
    title = ""
    if role == "positive":
        ids += _ids(values.get("passage_id", []), where)
        title = raw.title_text((values.get("title") or [None])[0], where)
        if _is_squad(values):
            title = title.replace("_", " ")
    if role not in values:
        into += ids
        return
    texts = [
        one for value in values[role] for one in (value if isinstance(value, list) else [value])
    ]
    if ids and len(ids) != len(texts):
        raise InputError(
            f"{where}: {len(ids)} ids for {len(texts)} {role} texts; each text needs one, or leave"
            " the ids out with data.columns ignore=..."
        )
    into += _texts(texts, role, where, carried, ids=ids, title=title)


def _texts(
    texts: list[Any],
    what: str,
    where: str,
    carried: list[Passage],
    *,
    ids: Sequence[str] = (),
    title: str = "",
) -> list[str | None]:
    """Returns the ids of passages that are texts, None for each that is empty."""
    found: list[str | None] = []
    for number, text in enumerate(texts):
        if isinstance(text, dict):
            carried.append(raw.passage(text, what, where))
        elif text is not None and not isinstance(text, str):
            raise InputError(
                f"{where}: {what} must be a text or a list of texts, found {short(text)}"
            )
        elif text is None or raw.is_blank(text):
            found.append(None)
            continue
        elif ids:
            carried.append(Passage(ids[number], title, raw.encodable(text.strip(), where)))
        else:
            carried.append(raw.by_content(title, raw.encodable(text.strip(), where)))
        found.append(carried[-1].id)
    return found


def _ids(values: list[Any], where: str) -> list[str]:
    """Returns ids of passages, one or a list of them per value."""
    ids = []
    for value in values:
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = listed(value, "ids of passages", where)
        ids += [
            one_word(one, "passage id", where)
            for one in (value if isinstance(value, list) else [value])
        ]
    return ids


def _selected(value: Any, where: str, carried: list[Passage]) -> list[tuple[str, bool]]:
    """Returns the passages of MS MARCO's {is_selected, passage_text}, and which are relevant."""
    if value is None:
        return []
    texts, chosen = (
        value.get(key) if isinstance(value, dict) else None
        for key in ("passage_text", "is_selected")
    )
    if not isinstance(texts, list) or not isinstance(chosen, list) or len(texts) != len(chosen):
        raise InputError(
            f"{where}: passages must be MS MARCO's lists passage_text and is_selected, found"
            f" {short(value)}; name another role with data.columns, such as positive=passages"
        )
    ids = _texts(texts, "passage_text", where, carried)
    return [
        (id_, bool(is_selected))
        for id_, is_selected in zip(ids, chosen, strict=True)
        if id_ is not None
    ]


def _list_of_texts(value: Any, what: str, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
        raise InputError(
            f"{where}: {what} must be a list of two or more texts, found {short(value)}"
        )
    return value


def _is_squad(values: dict[str, list[Any]]) -> bool:
    answers = (values.get("answers") or [None])[0]
    return isinstance(answers, dict) and "answer_start" in answers


def _answers(value: Any, where: str) -> tuple[tuple[str, ...], str]:
    """Returns the answers, and why the row is unusable, if it is.

    A list, a text, TriviaQA's {value, aliases} or SQuAD's {text: [...]}, of which an empty list
    marks an impossible question.
    """
    unusable = ""
    if isinstance(value, dict):
        keys = ("value", "aliases", "text")
        lists = [one if isinstance(one, list) else [one] for one in map(value.get, keys) if one]
        if "answer_start" in value and not lists:
            return (), "marked impossible"
        value = list(dict.fromkeys(itertools.chain(*lists))) or value
    if isinstance(value, str):  # a CSV cell may hold a list
        value = listed(value, "answers", where) if value.lstrip().startswith("[") else [value]
    return answer_texts([] if value is None else value, where), unusable


def listed(text: str, what: str, where: str) -> list[Any]:
    """Parses a list such as ['answer', 'another']; runs nothing.

    Raises:
      InputError: it is no such list.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of \\d and the like
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise InputError(
            f"{where}: the {what} must be a list such as ['answer', 'another'], found {short(text)}"
        )
    return found
