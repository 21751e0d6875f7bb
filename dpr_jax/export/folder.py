"""The folder of an export: written aside, gone on with after a kill, checked, never replaced."""

import contextlib
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import progress
from dpr_jax.data.raw import Passage
from dpr_jax.errors import Busy, InputError
from dpr_jax.export.source import ROWS_PER_FILE, ExportSource, parts

MANIFEST = "manifest.json"
STARTED = "started.json"
LINES, PLACES = "passages.jsonl", "passages.npy"


def find(out: Path, origin: dict[str, Any]) -> bool:
    """Returns whether `out` holds this export already, whole.

    Raises:
      InputError: it holds another export, a damaged one, or something else.
    """
    if (out / MANIFEST).exists():
        facts = open_export(out)
        if facts["made_from"] == artifacts.plain(origin):
            return True
        raise InputError(
            f"--out {out} holds another export ({facts['engine']} of {facts['retriever']},"
            f" {facts['count']:,} passages); give another folder, or delete it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is not empty and no export of dpr_jax; give a new folder")
    return False


def open_export(out: Path, engine: str | None = None) -> dict[str, Any]:
    """Returns the manifest of an export after checking every file.

    Raises:
      InputError: there is none, of another engine, or a file is missing or damaged (by name).
    """
    if not (out / MANIFEST).exists():
        raise InputError(f"{out} holds no finished export; run `dpr export ENGINE --out {out}`")
    facts = artifacts.verify(out / MANIFEST, f"delete {out} and export again")
    if facts.get("engine") is None or engine not in (None, facts["engine"]):
        raise InputError(f"{out} is an export to {facts.get('engine')}, not to {engine}")
    return facts


@contextlib.contextmanager
def begun(out: Path, origin: dict[str, Any]) -> Iterator[Path]:
    """Yields the folder to fill; what a killed run of the same export left is in it.

    It stays where the block is killed, and goes where the block refuses its input.

    Raises:
      InputError: something else has the name of that folder.
      Busy: another process is exporting there.
    """
    partial = out.with_name(out.name + ".partial")
    started = partial / STARTED
    if partial.exists() and not started.exists():
        raise InputError(f"{partial} is in the way and no unfinished export; move it elsewhere")
    partial.mkdir(parents=True, exist_ok=True)
    with started.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is exporting to {out}; wait for it") from None
        file.seek(0)
        text = json.dumps(artifacts.plain(origin), sort_keys=True)
        if file.read() != text:  # of other inputs: nothing in it serves
            for path in partial.iterdir():
                if path != started:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            file.truncate(0)
            file.write(text)
            file.flush()
        try:
            yield partial
        except InputError:  # nothing in it serves: what was refused has to change first
            shutil.rmtree(partial, ignore_errors=True)
            raise


def finish(partial: Path, out: Path, origin: dict[str, Any], **facts: Any) -> None:
    """Writes the manifest over all files and gives the folder its name."""
    files = [path for path in partial.rglob("*") if path.is_file() and path.name != STARTED]
    artifacts.write_manifest(partial / MANIFEST, origin, files, **facts)
    if out.exists():
        out.rmdir()  # empty, as `find` saw it
    (partial / STARTED).unlink()
    partial.rename(out)


# --- what every export holds besides the engine's own files


def write_passages(source: ExportSource, folder: Path) -> None:
    """Writes passages.jsonl, passages.npy (where each line begins) and docid (an id per line).

    A killed run goes on behind the last block of lines whose places are in passages.npy.
    """
    file, count = folder / PLACES, source.count
    if not file.exists():
        with artifacts.atomic_file(file) as partial:
            np.lib.format.open_memmap(partial, "w+", np.int64, (count + 1,)).flush()
    places = np.load(file, mmap_mode="r+")
    done = int(np.count_nonzero(places))
    with (
        (folder / LINES).open("ab") as lines,
        progress("export passages", count, "passages") as advance,
    ):
        lines.truncate(places[done])
        advance(done)
        for start in range(done, count, ROWS_PER_FILE):
            block, at = range(start, min(start + ROWS_PER_FILE, count)), [int(places[start])]
            for passage in source.passages(block):
                line = json.dumps(passage._asdict(), ensure_ascii=False).encode() + b"\n"
                at.append(at[-1] + lines.write(line))
            lines.flush()
            os.fsync(lines.fileno())
            places[block.start + 1 : block.stop + 1] = at[1:]
            advance(len(block))
    places.flush()
    with (
        artifacts.atomic_file(folder / "docid") as partial,
        partial.open("w", encoding="utf-8") as docids,
        (folder / LINES).open("rb") as lines,
    ):
        docids.writelines(f"{json.loads(line)['id']}\n" for line in lines)


def write_parts(
    source: ExportSource,
    folder: Path,
    name: str,
    write: Callable[[Path, range], None],
    *,
    rows: int = ROWS_PER_FILE,
) -> list[str]:
    """Writes a file per block of positions, but those that a killed run finished.

    Args:
      source: tells how many positions there are.
      folder: of the files.
      name: of a file, with a place for its number: "vectors-{:05d}.npy".
      write: writes the rows at some positions to a path.
      rows: positions per file.

    Returns:
      The names of all files, in corpus order.
    """
    files = []
    with progress("export vectors", source.count, "vectors") as advance:
        for number, positions in enumerate(parts(source.count, rows)):
            files.append(name.format(number))
            if not (folder / files[-1]).exists():
                with artifacts.atomic_file(folder / files[-1]) as partial:
                    write(partial, positions)
            advance(len(positions))
    return files


class Passages:
    """The passages of an export, read from its files by position or by id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def _files(self) -> tuple[np.ndarray, np.ndarray]:
        places = np.load(self._folder / PLACES, mmap_mode="r")
        return places, np.memmap(self._folder / LINES, np.uint8, "r")

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {id_: at for at, id_ in enumerate(read_ids(self._folder))}

    def __getitem__(self, position: int) -> Passage:
        places, lines = self._files
        start, end = places[position : position + 2]
        return Passage(**json.loads(lines[start:end].tobytes()))

    def by_id(self, id_: str) -> Passage:
        """Returns the passage with an id."""
        return self[self._positions[id_]]


def read_ids(folder: Path) -> list[str]:
    """Returns the ids of an export, in the order of its vectors."""
    return (folder / "docid").read_text(encoding="utf-8").split("\n")[:-1]
