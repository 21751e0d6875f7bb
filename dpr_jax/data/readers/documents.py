"""Raw documents to be split into passages: plain text files, WikiExtractor's output, or any corpus
layout; a file or a folder of them.
"""

import functools
import html
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from dpr_jax.data.raw import Passage, one_word
from dpr_jax.data.readers import detect, rows, tables
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.data.readers.detect import Reader, Source
from dpr_jax.data.readers.opened import OnRead, inner_name
from dpr_jax.errors import InputError

PLAIN_ENDINGS = (".txt", ".md", ".text")
NOT_TEXT = "files passed over: not text"
NOT_KNOWN = "files passed over: text, but neither .txt, .md nor a table"
_ARCHIVE = re.compile(r".*\.(zip|tgz|tar(\.\w+)?)")
_DOC = re.compile(r'<doc\s+id="([^"]*)".*?\stitle="(.*)"\s*>\s*')


def recognised(path: Path, count: Counter[str], chosen: Chosen | None = None) -> Source:
    """Returns the documents of a file, or of all text files below a folder.

    Args:
      path: the file or folder.
      count: gets the number of files that are passed over: pictures and other binary files.
      chosen: what data.columns says of tables.

    Raises:
      InputError: a file cannot be read, is empty, or is of no known layout; or none holds text.
    """
    files = below(path)
    if path.is_dir():
        there, text = len(files), tuple(file for file in files if not is_binary(file))
        files = tuple(file for file in text if _is_known(file))
        count["documents"] += 0  # so that they are reported first
        count[NOT_TEXT] += there - len(text)
        if len(files) < len(text):
            count[NOT_KNOWN] += len(text) - len(files)
        if not files:
            raise InputError(
                f"{path}: none of its {there:,} files is a document; documents are .txt, .md,"
                " WikiExtractor's files and tables (docs/data.md)"
            )
    found = [recognised_file(file, name_of(file, path), chosen) for file in files]
    layouts, readers, columns = zip(*found, strict=True)

    def read(on_read: OnRead | None) -> Iterator[tuple[str, Passage]]:
        for file, reader in zip(files, readers, strict=True):
            yield from reader(file, on_read)

    layout = " and ".join(dict.fromkeys(layouts))
    used = "; ".join(filter(None, dict.fromkeys(columns)))
    return Source(layout, files, read, used, lambda: next(read(None), None))


def _is_known(file: Path) -> bool:
    """Returns whether a text file's name or content says what it is."""
    named = tables.ending(file) in (*PLAIN_ENDINGS, *detect.TABLES)
    return named or rows.head(file).lstrip().startswith(("<doc ", "{", "["))


def is_binary(file: Path) -> bool:
    """Returns whether a file is a picture, a PDF, an archive or the like, by content and name.

    A file whose name says that it is text is never one: if it is not UTF-8, that is an error.

    Raises:
      InputError: the file cannot be read.
    """
    if _ARCHIVE.fullmatch(file.name.lower()):
        return True
    if tables.ending(file) in (*PLAIN_ENDINGS, ".parquet"):
        return False
    head = rows.head(file)
    return "\0" in head or head.startswith("%PDF-")


def below(path: Path) -> tuple[Path, ...]:
    """Returns the file itself, or all files below a folder by name, without hidden ones.

    Raises:
      InputError: there is none.
    """
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.rglob("*") if file.is_file())
    files = tuple(file for file in found if not file.name.startswith("."))
    if not files:
        raise InputError(f"{path}: no file in this folder; documents are expected")
    return files


def name_of(file: PurePath, folder: PurePath) -> str:
    """Returns the id of a plain text file: its path below the folder, as one word."""
    name = file.name if file == folder else file.relative_to(folder).as_posix()
    return "_".join(name.split())


def recognised_file(file: Path, name: str, chosen: Chosen | None) -> tuple[str, Reader, str]:
    """Returns the layout of one file, its reader, and the use of its columns.

    Args:
      file: where it lies.
      name: the id of its document, where it is plain text.
      chosen: what data.columns says of a table.

    Raises:
      InputError: it cannot be read, is empty, or is of no known layout.
    """
    if rows.head(file).lstrip().startswith("<doc "):
        return "WikiExtractor documents", read_wiki, ""
    if tables.ending(file) in PLAIN_ENDINGS:
        return "plain text documents", functools.partial(read_plain, id_=name), ""
    source = detect.passages(file, chosen)
    return source.layout, lambda _, on_read: source.read(on_read), source.columns


def read_plain(
    path: Path, on_read: OnRead | None = None, *, id_: str
) -> Iterator[tuple[str, Passage]]:
    """Yields a text file as one document, whose title is the file's name without its ending.

    Raises:
      InputError: the file cannot be read as UTF-8 text.
    """
    text = "".join(line for _, line in rows.lines(path, on_read))
    yield str(path), Passage(id_, inner_name(path).rpartition(".")[0], text)


def read_wiki(path: Path, on_read: OnRead | None = None) -> Iterator[tuple[str, Passage]]:
    """Yields WikiExtractor's `<doc id= url= title=> ... </doc>`, without the title's own line.

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
