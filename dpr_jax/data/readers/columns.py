"""Gives each column of a table its role: by data.columns, else by its name.

A column that could change what the rows mean is never passed over: it has a role, is named in
data.columns, or the file is refused. Names are compared in small letters, with _ for blanks and
hyphens.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dpr_jax.errors import InputError

# Role -> names, in tiers. The first tier of which a column is there has the role; two columns of
# one tier are ambiguous.
QUESTION_TIERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "id": (
        ("query_id", "qid", "question_id", "queryid", "questionid", "topic_id"),
        ("_id", "id"),
    ),
    "question": (
        ("question", "query", "anchor"),
        ("query_text", "question_text"),
        ("sentence1", "sentence_1", "text1", "text_1", "sentence_a", "text_a", "premise"),
    ),
    "positive_ctxs": (("positive_ctxs",),),
    "hard_negative_ctxs": (("hard_negative_ctxs",),),
    "negative_ctxs": (("negative_ctxs",),),
    "positive_passages": (("positive_passages",),),
    "negative_passages": (("negative_passages",),),
    "passages": (("passages",),),
    "set": (("set",),),
    "positive": (
        ("positive", "positives", "pos", "positive_passage"),
        (
            "passage",
            "passage_text",
            "document",
            "documents",
            "document_text",
            "doc",
            "docs",
            "doc_text",
            "context",
            "entailment",
        ),
        ("sentence2", "sentence_2", "text2", "text_2", "sentence_b", "text_b"),
        ("text", "contents", "content", "body", "segment"),
    ),
    "positive_ids": (
        (
            "positive_document_ids",
            "positive_docids",
            "positive_doc_ids",
            "positive_passage_ids",
            "positive_ids",
            "positive_id",
            "pos_ids",
            "pos_id",
        ),
    ),
    "negative_ids": (
        (
            "negative_document_ids",
            "negative_docids",
            "negative_doc_ids",
            "negative_passage_ids",
            "negative_ids",
            "negative_id",
            "neg_ids",
            "neg_id",
        ),
    ),
    "passage_id": (
        ("passage_id", "psg_id", "pid", "corpus_id", "passageid"),
        ("docid", "doc_id", "document_id"),
    ),
    "answers": (("answers",), ("answer",), ("short_answers", "short_answer")),
    "label": (
        (
            "label",
            "labels",
            "relevance",
            "relevant",
            "is_relevant",
            "is_positive",
            "is_selected",
            "grade",
            "rel",
            "judgment",
            "judgement",
            "gold_label",
        ),
    ),
    "score": (("score", "scores", "similarity", "similarity_score", "relevance_score", "sim"),),
    "pos_scores": (("pos_scores", "positive_scores", "pos_score"),),
    "neg_scores": (("neg_scores", "negative_scores", "neg_score"),),
    "title": (("title", "passage_title", "doc_title", "document_title"),),
    "impossible": (("is_impossible",),),
}
ASKED_ONLY = ("text", "title", "body", "content", "contents", "utterance")  # a question, if alone
NEGATIVE = re.compile(
    r"(hard_)?neg(ative)?s?(_passage|_doc|_document|_text)?(_?\d+)?|contradiction"
)
PASSAGE_TIERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (
        ("text", "contents", "passage", "segment", "body", "content"),
        ("context", "passage_text", "doc_text", "document_text", "document"),
    ),
    "id": (
        ("passage_id", "psg_id", "pid", "passageid"),
        ("docid", "doc_id", "document_id", "corpus_id"),
        ("_id", "id"),
        ("doc",),
    ),
    "title": (("title", "passage_title", "doc_title", "document_title"),),
}
QUESTION_ROLES = (*QUESTION_TIERS, "negative")
ROLES = {"questions": QUESTION_ROLES, "passages": tuple(PASSAGE_TIERS)}
_MEANINGFUL = {
    "questions": re.compile(
        r"(^|_)(labels?|scores?|grades?|relevan(ce|t)|rel|answers?|contexts?|ctxs?|pid|passages?"
        r"|docid|docs?|documents?|positives?|negatives?|pos|neg|gold|judge?ments?|is_selected"
        r"|qrels?)(_|\d|$)"
    ),
    "passages": re.compile(
        r"(^|_)(labels?|grades?|relevan(ce|t)|answers?|quer(y|ies)|questions?|positives?"
        r"|negatives?)(_|\d|$)"
    ),
}
_HARMLESS = re.compile(r".*_(type|source|start|end|url|length|len|lang|language|count|date)s?")
# of a role, what a column of lower rank says besides is known and left out by name
_BESIDE = {"id", "passage_id", "title"}


class Chosen:
    """The roles that data.columns gives to the columns of one file.

    Attributes:
      kind: `questions` or `passages`.
      role_of: normal name or number of a column -> role.
      ignored: normal names of columns to leave out.
      strict: columns that must be there: named for this file alone.
    """

    def __init__(self, kind: str, columns: Mapping[str, str] | None = None, key: str = "") -> None:
        """Takes the entries that concern a file.

        Args:
          kind: `questions` or `passages`.
          columns: data.columns; a key is a role, or FILE.ROLE as in `test.question`.
          key: train, dev, test, passages or questions, of the file.

        Raises:
          InputError: a role is not known, or a column has two.
        """
        self.kind = kind
        self.role_of: dict[str, str] = {}
        self.ignored: set[str] = set()
        self.strict: set[str] = set()
        self.found: set[str] = set()
        for name, value in (columns or {}).items():
            file, dot, role = name.rpartition(".")
            _check_role(name, file, role)
            if (dot and file != key.partition("/")[0]) or role not in (*ROLES[kind], "ignore"):
                continue
            for column in map(normal, str(value).split(",")):
                if role == "ignore":
                    self.ignored.add(column)
                elif self.role_of.setdefault(column, role) != role:
                    raise InputError(
                        f"data.columns gives column {column!r} two roles, {self.role_of[column]}"
                        f" and {role}; it must have one"
                    )
                if dot:
                    self.strict.add(column)

    def keeps(self, column: str) -> bool:
        """Returns whether a column without a role is kept, to filter passages by."""
        return self.kind == "passages" and normal(column) not in self.ignored

    def by_number(self) -> dict[int, str]:
        """Returns the roles by the number of the column, from 1; empty where columns have names."""
        if self.role_of and all(column.isdigit() for column in self.role_of):
            return {int(column): role for column, role in self.role_of.items()}
        return {}


class Naming(NamedTuple):
    """The columns of a table.

    Attributes:
      role_of: column -> role; empty for one that is left out.
    """

    role_of: dict[str, str]

    @property
    def roles(self) -> set[str]:
        """Returns the roles that columns have."""
        return {*filter(None, self.role_of.values())}

    def described(self, chosen: Chosen) -> str:
        """Returns the columns for people, as `question: query, positive: pos; ignored: url`."""
        used: dict[str, list[str]] = {}
        for column, role in self.role_of.items():
            used.setdefault(role, []).append(column)
        others = used.pop("", [])
        parts = [f"{role}: {' '.join(columns)}" for role, columns in used.items()]
        text = ", ".join(parts)
        for title, is_kept in (("fields", True), ("ignored", False)):
            named = [column for column in others if chosen.keeps(column) is is_kept]
            text += f"; {title}: {', '.join(named)}" if named else ""
        return text


def normal(column: str) -> str:
    """Returns the name of a column in small letters, with _ for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


def name(keys: Iterable[str], chosen: Chosen, where: str, fixed: Mapping[str, str]) -> Naming:
    """Finds the role of every column.

    Args:
      keys: names of the columns as they stand in the file.
      chosen: what data.columns says.
      where: the file, and the row where it matters.
      fixed: roles that earlier rows have settled, by column.

    Raises:
      InputError: two columns could have a role, or one that could change the meaning has none.
    """
    tiers = QUESTION_TIERS if chosen.kind == "questions" else PASSAGE_TIERS
    names = {key: normal(key) for key in keys}
    role_of = dict(fixed)
    for key, plain in names.items():
        if key in role_of:
            continue
        if plain in chosen.ignored:
            role_of[key] = ""
        elif plain in chosen.role_of:
            role_of[key] = chosen.role_of[plain]
        else:
            continue
        chosen.found.add(plain)
    open_keys = [key for key in names if key not in role_of]
    if chosen.kind == "questions":
        open_keys = _asked_alone(names, open_keys, role_of)
    settled = {role for role in role_of.values() if role}
    for role, of_role in tiers.items():
        if role in settled:
            continue
        for tier in of_role:
            there = [key for key in open_keys if names[key] in tier and key not in role_of]
            if len(there) > 1:
                raise InputError(
                    f"{where}: columns {' and '.join(map(repr, there))} could both be the {role};"
                    f" say which with --data.columns {role}={there[0]}"
                )
            if there:
                role_of[there[0]] = role
                break
    for key in open_keys:
        if key not in role_of and chosen.kind == "questions" and NEGATIVE.fullmatch(names[key]):
            role_of[key] = "negative"
    for key in open_keys:
        if key not in role_of:
            _refuse_if_meaningful(key, names[key], chosen, where, {*role_of.values()})
            role_of[key] = ""
    return Naming({key: role_of[key] for key in (*fixed, *(k for k in names if k not in fixed))})


def is_name(cell: str, kind: str) -> bool:
    """Returns whether a cell is the name of a column that is known."""
    plain = normal(cell.strip('"'))
    tiers = QUESTION_TIERS if kind == "questions" else PASSAGE_TIERS
    known = any(plain in tier for of_role in tiers.values() for tier in of_role)
    if kind == "passages":
        return known
    return known or plain in ASKED_ONLY or bool(NEGATIVE.fullmatch(plain))


def refuse_unused(columns: Mapping[str, str], files: Mapping[str, Chosen]) -> None:
    """Refuses columns of data.columns that no file has.

    Args:
      columns: data.columns.
      files: what was taken of it for each file, by its key, after its columns were named.

    Raises:
      InputError: there is one.
    """
    keys = {key.partition("/")[0] for key in files}
    for entry in columns:
        file = entry.rpartition(".")[0]
        if file not in ("", "questions", *keys):
            raise InputError(f"data.columns has {entry!r}, but data.{file} names no file")
    found = {column for one in files.values() for column in one.found}
    missing = {c for one in files.values() for c in (*one.role_of, *one.ignored)} - found
    missing |= {column for one in files.values() for column in one.strict - one.found}
    if missing:
        raise InputError(
            f"data.columns names {', '.join(map(repr, sorted(missing)))}, which is no column of the"
            " files that are read; check its spelling"
        )


def _asked_alone(
    names: Mapping[str, str], open_keys: list[str], role_of: dict[str, str]
) -> list[str]:
    """Gives a text beside an id the role of the question where the table only asks."""
    asked = {plain for tier in QUESTION_TIERS["question"] for plain in tier}
    if "question" in role_of.values() or asked & {*names.values()}:
        return open_keys
    for plain in ASKED_ONLY:
        for key in open_keys:
            if names[key] == plain:
                role_of[key] = "question"
                return [one for one in open_keys if one != key]
    return open_keys


def _check_role(entry: str, file: str, role: str) -> None:
    files = ("", "train", "dev", "test", "passages", "questions")
    roles = (*dict.fromkeys((*QUESTION_ROLES, *PASSAGE_TIERS)), "ignore")
    if file not in files or role not in roles:
        raise InputError(
            f"data.columns has {entry!r}; it must be a role ({', '.join(roles)}), or one after"
            " train., dev., test. or passages."
        )


def _refuse_if_meaningful(
    key: str, plain: str, chosen: Chosen, where: str, taken: set[str]
) -> None:
    if _HARMLESS.fullmatch(plain) or not _MEANINGFUL[chosen.kind].search(plain):
        return
    tiers = QUESTION_TIERS if chosen.kind == "questions" else PASSAGE_TIERS
    role = next((r for r, of_role in tiers.items() if any(plain in t for t in of_role)), "")
    if role in taken and (role in _BESIDE or role in chosen.role_of.values()):
        return
    raise InputError(
        f"{where}: column {key!r} could change what the rows mean, and has no role here; give it"
        f" one with --data.columns ROLE={key} ({', '.join(ROLES[chosen.kind])}), or leave it out"
        f" with --data.columns ignore={key}"
    )
