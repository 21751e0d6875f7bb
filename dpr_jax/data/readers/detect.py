"""Recognises the layout of a raw file by its name's ending and its first row, and the reader for
it.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax import artifacts
from dpr_jax.data.raw import ID_KEYS, TEXT_KEYS, Passage, short
from dpr_jax.data.readers import carried, corpora, formats, rows, tables
from dpr_jax.data.readers.rows import OnRead
from dpr_jax.errors import InputError

SPLIT_SHARDS = "passages-*-of-*.jsonl"
TABLES = {".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}

Reader = Callable[[Path, OnRead | None], Iterator[Any]]


class Source(NamedTuple):
    """A raw input whose layout is known.

    Attributes:
      layout: its name, for people.
      files: what is read, in order.
      read: yields RawQuestion, or (where, Passage) for a corpus.
    """

    layout: str
    files: tuple[Path, ...]
    read: Callable[[OnRead | None], Iterator[Any]]

    def fingerprint(self) -> str:
        """The checksum of the file, or one over those of several."""
        checksums = [artifacts.checksum(path) for path in self.files]
        if len(checksums) == 1:
            return checksums[0]
        return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def questions(path: Path) -> Source:
    """The reader for a file of questions, with or without their passages.

    Raises:
      InputError: the file cannot be read, is empty, or is none of the known layouts.
    """
    head = _head(path)
    if _is_topics(head):
        return _source("TREC topics", path, formats.read_topics)
    if _is_squad(head):
        return _source("SQuAD JSON", path, carried.read_squad)
    ending = tables.ending(path)
    if ending in tables.DELIMITERS and not _has_header(head, ending):
        return _separated_questions(head, path, ending)
    keys = _first_keys(path, head, "questions")
    if keys & {"positive_ctxs", "hard_negative_ctxs"}:
        return _source(f"DPR {_table(path)}", path, formats.read_dpr_json)
    if keys & {"positive_passages", "negative_passages"}:
        return _source(f"Tevatron {_table(path)}", path, carried.read_tevatron)
    asked = keys & {*formats.QUESTION_KEYS}
    if asked and ("answers" in keys or _holds(path, "answer", (list, dict))):
        layout = f"questions and answers, {_table(path)}"
        return _source(layout, path, formats.read_dpr_json)
    if asked and keys & {*carried.POSITIVE_KEYS}:
        layout = f"(anchor, positive, negative ...) {_table(path)}"
        return _source(layout, path, carried.read_pairs)
    if keys & {*formats.QUESTION_ID_KEYS} and (asked or keys & {*formats.QUESTION_TEXT_KEYS}):
        layout = f"questions, {_table(path)} (BEIR, Tevatron)"
        return _source(layout, path, formats.read_question_objects)
    if _table(path) == "JSON":
        return _source("DPR JSON", path, formats.read_dpr_json)
    raise InputError(
        f"{path}: not a known layout of questions; its first row has {_names(keys)}, but needs a"
        f" question under one of {', '.join(formats.QUESTION_KEYS)} (see docs/data.md)"
    )


def passages(path: Path) -> Source:
    """The reader for a corpus file.

    Raises:
      InputError: the file cannot be read, is empty, or is none of the known layouts.
    """
    head = _head(path)
    if _is_squad(head):
        return _source("SQuAD paragraphs", path, carried.read_squad_passages)
    ending = tables.ending(path)
    if ending == ".tsv":
        columns = _first_line(head).split("\t")
        if len(columns) == 2 and columns[0].strip().lower() not in ID_KEYS:
            return _source("MS MARCO collection", path, corpora.read_collection)
        if columns == ["id", "text", "title"] or not {*columns} & {*TEXT_KEYS}:
            return _source("DPR passage TSV", path, formats.read_passages)
    keys = _first_keys(path, head, "passages")
    if not keys & {*TEXT_KEYS}:
        raise InputError(
            f"{path}: not a known layout of passages; its first row has {_names(keys)}, but needs a"
            f" text under one of {', '.join(TEXT_KEYS)} (see docs/data.md)"
        )
    return _source(f"passages, {_table(path)}", path, corpora.read_passage_objects)


def beir(folder: Path, role: str) -> dict[str, Path]:
    """The files of a BEIR folder for one setting: the corpus for `passages`, questions and their
    qrels for train, dev or test.

    Raises:
      InputError: one of them is not there.
    """
    if role == "passages":
        return {"passages": _one_of(folder, ("corpus.jsonl", "corpus.jsonl.gz"))}
    return {
        role: _one_of(folder, ("queries.jsonl", "queries.jsonl.gz")),
        f"{role}_qrels": _one_of(folder / "qrels", (f"{role}.tsv",)),
    }


def is_split(folder: Path) -> bool:
    """Returns whether `dpr split` wrote this folder, or began to."""
    return any(folder.glob(SPLIT_SHARDS))


def split_passages(folder: Path) -> Source:
    """The passages that `dpr split` wrote, in the order of their documents.

    Raises:
      InputError: it has not finished, or a shard is missing or damaged.
    """
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise InputError(
            f"{folder} has no {manifest.name}: dpr split was not finished; run it again"
        )
    files = tuple(folder / name for name in sorted(artifacts.verify(manifest)["files"]))

    def read(on_read: OnRead | None) -> Iterator[tuple[str, Passage]]:
        for file in files:
            yield from corpora.read_passage_objects(file, on_read)

    return Source("passages that dpr split cut", files, read)


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} is not a BEIR folder: it has no {names[0]}; BEIR has corpus.jsonl, queries.jsonl"
        " and qrels/SPLIT.tsv"
    )


def _source(layout: str, path: Path, reader: Reader) -> Source:
    return Source(layout, (path,), functools.partial(reader, path))


# --- the first row


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


def _has_header(head: str, ending: str) -> bool:
    """Returns whether the first row names the columns of a table of questions."""
    columns = _first_line(head).split(tables.DELIMITERS[ending])
    names = [name.strip(' "').lower() for name in columns]
    known = {*names} & {*formats.QUESTION_KEYS} or names[0] in formats.QUESTION_ID_KEYS
    return len({*names}) > 1 and bool(known)


def _separated_questions(head: str, path: Path, ending: str) -> Source:
    if ending == ".csv":
        return _source("DPR question/answers", path, formats.read_question_answers)
    if _first_line(head).count("\t") == 2:
        return _source("MS MARCO triples", path, carried.read_triples)
    return _source("questions, id and text", path, formats.read_question_ids)


def _first_line(head: str) -> str:
    return head.lstrip("\r\n").partition("\n")[0].rstrip("\r")


def _first_row(path: Path) -> dict[str, Any]:
    return next(tables.read(path), ("", {}))[1]


def _first_keys(path: Path, head: str, what: str) -> set[str]:
    if tables.ending(path) not in TABLES and head.lstrip()[0] not in "[{":
        raise InputError(
            f"{path}: not a known layout of {what}; a file is JSON, or its name ends in"
            f" {', '.join(TABLES)} (or that and .gz; see docs/data.md)"
        )
    return {*_first_row(path)}


def _holds(path: Path, key: str, types: tuple[type, ...]) -> bool:
    return isinstance(_first_row(path).get(key), types)


def _table(path: Path) -> str:
    """The kind of table, for people."""
    ending = tables.ending(path)
    if ending in TABLES:
        return TABLES[ending]
    return "JSON" if rows.head(path).lstrip().startswith("[") else "JSONL"


def _names(keys: set[str]) -> str:
    return short(", ".join(sorted(keys))) if keys else "no names"
