"""The folder of an export: written aside, gone on with after a kill, checked, never replaced."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import progress
from dpr_jax.data.raw import Passage
from dpr_jax.errors import Busy, InputError
from dpr_jax.export.source import ROWS_PER_FILE, Source, parts

MANIFEST = "manifest.json"
STARTED = "started.json"


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


def write_passages(source: Source, folder: Path) -> None:
    """Writes docid (an id per line), and JSON Lines of passages with the offset of every line."""
    count = source.count
    with progress("export passages", count, "passages") as advance:
        for number, positions in enumerate(parts(count)):
            file = folder / f"passages-{number:05d}.jsonl"
            offsets = file.with_suffix(".npy")
            if not offsets.exists():
                _write_lines(source, positions, file, offsets)
            advance(len(positions))
    with (
        artifacts.atomic_file(folder / "docid") as partial,
        partial.open("w", encoding="utf-8") as docids,
    ):
        for file in sorted(folder.glob("passages-*.jsonl")):
            with file.open("rb") as lines:
                docids.writelines(f"{json.loads(line)['id']}\n" for line in lines)


def _write_lines(source: Source, positions: range, file: Path, offsets: Path) -> None:
    places = np.zeros(len(positions) + 1, np.int64)
    with artifacts.atomic_file(file) as partial, partial.open("wb") as lines:
        for at, passage in enumerate(source.passages(positions), 1):
            line = json.dumps(passage._asdict(), ensure_ascii=False).encode() + b"\n"
            places[at] = places[at - 1] + lines.write(line)
    with artifacts.atomic_file(offsets) as partial, partial.open("wb") as opened:
        np.save(opened, places)


class Passages:
    """The passages of an export, read from its files by position or by id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._positions: dict[str, int] = {}

    def __getitem__(self, position: int) -> Passage:
        number, at = divmod(position, ROWS_PER_FILE)
        file = self._folder / f"passages-{number:05d}.jsonl"
        places = np.load(file.with_suffix(".npy"), mmap_mode="r")
        with file.open("rb") as lines:
            lines.seek(int(places[at]))
            return Passage(**json.loads(lines.readline()))

    def between(self, positions: range) -> Iterator[Passage]:
        """Yields the passages at some positions, in order: faster than from the corpus."""
        at = positions.start
        while at < positions.stop:
            number, line = divmod(at, ROWS_PER_FILE)
            file = self._folder / f"passages-{number:05d}.jsonl"
            wanted = min(ROWS_PER_FILE - line, positions.stop - at)
            with file.open("rb") as lines:
                lines.seek(int(np.load(file.with_suffix(".npy"), mmap_mode="r")[line]))
                for _ in range(wanted):
                    yield Passage(**json.loads(lines.readline()))
            at += wanted

    def by_id(self, id_: str) -> Passage:
        """Returns the passage with an id."""
        if not self._positions:
            with (self._folder / "docid").open(encoding="utf-8") as docids:
                self._positions = {line.rstrip("\n"): at for at, line in enumerate(docids)}
        return self[self._positions[id_]]
