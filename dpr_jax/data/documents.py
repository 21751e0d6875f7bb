"""Raw documents to be split into passages: plain text files, WikiExtractor's output, or any corpus
layout; a file or a folder of them.
"""

import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from dpr_jax.console import say
from dpr_jax.data import recognise, rows, tables
from dpr_jax.data.raw import Passage, one_word
from dpr_jax.data.recognise import Reader, Source
from dpr_jax.data.rows import OnRead
from dpr_jax.errors import InputError

PLAIN_ENDINGS = (".txt", ".md", ".text")
HEAD_BYTES = 8192
_DOC = re.compile(r'<doc\s+id="([^"]*)".*?\stitle="(.*)"\s*>\s*')


def recognised(path: Path) -> Source:
    """The documents of a file, or of all files below a folder.

    Raises:
      InputError: a file cannot be read, is empty, or is of no known layout.
    """
    files = below(path)
    found = [recognised_file(file, name_of(file, path)) for file in files]
    layouts, readers = zip(*found, strict=True)

    def read(on_read: OnRead | None) -> Iterator[tuple[str, Passage]]:
        for file, reader in zip(files, readers, strict=True):
            yield from reader(file, on_read)

    return Source(" and ".join(dict.fromkeys(layouts)), files, read)


def below(path: Path) -> tuple[Path, ...]:
    """Returns the file itself, or all files below a folder in the order of their names.

    Hidden files are left out, and files that are no text, such as pictures, whose number is said.

    Raises:
      InputError: there is none.
    """
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.rglob("*") if file.is_file())
    shown = [file for file in found if not file.name.startswith(".")]
    files = tuple(file for file in shown if not _is_binary(file))
    if not files:
        raise InputError(f"{path}: no text file in this folder; documents are expected")
    if passed_over := [file for file in shown if file not in files]:
        count = len(passed_over)
        say(
            f"prepare: {count:,} file{'s' * (count > 1)} passed over in {path}: not text, such as"
            f" {passed_over[0].name}"
        )
    return files


def _is_binary(file: Path) -> bool:
    """Whether a file is neither text nor of an ending that a reader knows."""
    if file.suffix in (".gz", ".bz2", ".parquet"):
        return False
    with file.open("rb") as opened:
        return b"\0" in opened.read(HEAD_BYTES)


def name_of(file: PurePath, folder: PurePath) -> str:
    """What a plain text file is called as a document: its path below the folder, as one word."""
    name = file.name if file == folder else file.relative_to(folder).as_posix()
    return "_".join(name.split())


def recognised_file(file: Path, name: str) -> tuple[str, Reader]:
    """The layout of one file, and the reader for it.

    Args:
      file: where it lies.
      name: the id of its document, where it is plain text.

    Raises:
      InputError: it cannot be read, is empty, or is of no known layout.
    """
    if rows.head(file).lstrip().startswith("<doc "):
        return "WikiExtractor documents", read_wiki
    if tables.ending(file) in PLAIN_ENDINGS:
        return "plain text documents", functools.partial(read_plain, id_=name)
    source = recognise.passages(file)
    return source.layout, lambda _, on_read: source.read(on_read)


def read_plain(
    path: Path, on_read: OnRead | None = None, *, id_: str
) -> Iterator[tuple[str, Passage]]:
    """A text file as one document, whose title is the file's name without its ending; it is held in
    memory.

    Raises:
      InputError: the file cannot be read as UTF-8 text.
    """
    text = "".join(line for _, line in rows.lines(path, on_read))
    title = path.name.removesuffix(".gz").removesuffix(".bz2")
    yield str(path), Passage(id_, title.rpartition(".")[0], text)


def read_wiki(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """WikiExtractor's `<doc id= url= title=> ... </doc>`; the title's own line at the head of each
    text is left out.

    Raises:
      InputError: text outside of a document, a document that is not closed, or without id and
        title.
    """
    where, id_, title = "", "", ""
    parts: list[str] = []
    for line, text in rows.lines(path, on_read):
        if text.startswith("<doc "):
            if where:
                break
            where, found = f"{path}:{line}", _DOC.fullmatch(text)
            if found is None:
                raise InputError(f"{where}: <doc> needs an id and a title")
            id_ = one_word(found[1], "document id", where)
            title, parts = html.unescape(found[2]), []
        elif text.strip() == "</doc>" and where:
            yield where, Passage(id_, title, _without_title(parts, title))
            where = ""
        elif where:
            parts.append(text)
        elif text.strip():
            raise InputError(f"{path}:{line}: text outside of <doc ...> and </doc>")
    if where:
        raise InputError(f"{where}: this document is not closed by </doc>")


def _without_title(parts: list[str], title: str) -> str:
    if parts and parts[0].strip() == title:
        parts = parts[1:]
    return "".join(parts)
