"""A work directory on object storage, of which a local folder is the cache.

Objects of an artifact are written once: its files first, its manifest last, so that the store shows
it whole or not at all. A pointer (config.json, retriever.json) is written on condition that it is
still the one that was read. So a writer that lost its lease moves nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_jax import artifacts, stores
from dpr_jax.errors import Busy, InputError
from dpr_jax.stores import Entry

MANIFESTS = ("manifest.json", "index.json")
POINTERS = re.compile(r"config\.json|retrievers/[^/]+/retriever\.json")
# of single processes, and of work directories within this one, which have caches of their own
LEASES = re.compile(r"(.*/)?lease\.json.*|sets/.+")
# of an artifact, with what it is made in: NAME-HASH/..., NAME-HASH.building/...
ARTIFACT = re.compile(r"((?:retrievers/[^/]+/)?(?:questions/)?[^/]+-[0-9a-f]{8})(\.\w+)?/(.+)")
STEP = re.compile(r"(.*/checkpoints-[0-9a-f]{8}/steps/)(\d+)/(.+)")
STEP_LAST = "_CHECKPOINT_METADATA"  # goes up when the rest of a step is there
UNFINISHED = (".partial", ".link", ".lock")
UPLOAD_EVERY_S = 5.0


class Remote:
    """The objects below a URL, and the folder that holds copies of them.

    Attributes:
      url: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.
      cache: the folder; processes of one host have their own.
    """

    def __init__(self, url: str) -> None:
        """Connects.

        Raises:
          InputError: another scheme, a library that is missing, or no such bucket.
        """
        self.url = url.rstrip("/")
        process = os.environ.get("DPR_PROCESS_ID") or os.environ.get("SLURM_PROCID") or "0"
        base = Path(os.environ.get("DPR_CACHE") or Path.home() / ".cache" / "dpr_jax")
        self.cache = base / hashlib.sha256(self.url.encode()).hexdigest()[:16] / process
        self._seen_file = self.cache.with_name(f"{process}.json")
        self._lock = threading.RLock()
        self._store = stores.connect(self.url)
        self._whole: set[str] = set()  # artifacts that are here
        self._seen: dict[str, list[Any]] = {}  # name -> tag, bytes and mtime of its copy
        if self._seen_file.exists() and self.cache.exists():
            self._seen = artifacts.read_json(self._seen_file)
        else:
            shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir(parents=True, exist_ok=True)

    # --- from the store --------------------------------------------------------------------------

    def pull(self, *, pointers_only: bool = False) -> None:
        """Copies all that belongs to no artifact, such as pointers, runs and metrics."""
        for name, entry in self._store.list("").items():
            wanted = POINTERS.fullmatch(name) if pointers_only else not ARTIFACT.fullmatch(name)
            if wanted and not LEASES.fullmatch(name):
                self._get(name, entry)
        self._remember()

    def fetch(self, folder: Path, *, manifest_only: bool = False) -> None:
        """Copies an artifact, if the store has it, and checks it against its manifest.

        Args:
          folder: where it lies in the cache.
          manifest_only: leave its other files for a later call.

        Raises:
          InputError: what came is not what the manifest says.
        """
        prefix = self._name(folder) + "/"
        if prefix in self._whole:
            return
        found = self._store.list(prefix)
        manifests = [name for name in found if name.removeprefix(prefix) in MANIFESTS]
        for manifest in manifests:
            facts = json.loads(self._store.read(manifest)[0])
            if not manifest_only:
                self._get_files(prefix, found, facts["files"])
                self._whole.add(prefix)
            self._get(manifest, found[manifest])
            if built := facts.get("built"):  # the index that this one lies over
                self.fetch(folder.parent / built, manifest_only=manifest_only)
        if not manifests:  # checkpoints: metrics, for the report
            for name, entry in found.items():
                if "/" not in name.removeprefix(prefix):
                    self._get(name, entry)
        self._remember()

    def _get_files(self, prefix: str, found: dict[str, Entry], files: dict[str, Any]) -> None:
        """Copies the files of an artifact, and checks each that it copied."""
        for file, facts in files.items():
            name = prefix + file
            if name not in found:
                reason = "is missing"
            elif self._get(name, found[name]) and (
                artifacts.checksum(self.cache / name) != facts["sha256"]
            ):
                (self.cache / name).unlink()
                reason = "is damaged"
            else:
                continue
            raise InputError(
                f"{self.url}/{name} {reason}, by the manifest beside it; delete all of"
                f" {self.url}/{prefix} and run its stage again"
            )

    def pull_parts(self, folder: Path) -> None:
        """Copies what there is of a folder that grows: checkpoints, or shards."""
        found = self._store.list(self._name(folder) + "/")
        for name, entry in found.items():
            step = STEP.fullmatch(name)
            if step and f"{step[1]}{step[2]}/{STEP_LAST}" not in found:
                continue  # whose upload was interrupted
            self._get(name, entry)
        self._remember()

    def _get(self, name: str, entry: Entry) -> bool:
        """Copies an object unless its copy is here; returns whether it did."""
        path = self.cache / name
        with self._lock:
            seen = self._seen.get(name)
        if seen and seen[0] == entry.tag and path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with artifacts.atomic_file(path) as partial:
            self._store.get(name, partial)
        self._see(name, entry.tag)
        return True

    # --- to the store ----------------------------------------------------------------------------

    def push(self, *, pointers_only: bool = False) -> None:
        """Sends all that is new or changed in the cache: artifacts that are whole, pointers last.

        Raises:
          Busy: another process moved a pointer since it was read.
        """
        pointers = []
        found = {} if pointers_only else self._store.list("")
        for name in sorted(self._files(), key=_last_ones_last):
            if POINTERS.fullmatch(name):
                pointers.append(name)
                continue
            artifact = ARTIFACT.fullmatch(name)
            if pointers_only or LEASES.fullmatch(name) or (artifact and artifact[2]):
                continue
            if artifact and not STEP.fullmatch(name) and "/checkpoints-" not in f"/{name}":
                home = artifact[1]
                if not any((self.cache / home / one).exists() for one in MANIFESTS):
                    continue
                if any(f"{home}/{one}" in found for one in MANIFESTS):
                    continue  # it is there, and never changes
                shard = f"{home}.building/{artifact[3]}"
                size = (self.cache / name).stat().st_size
                if shard in found and found[shard].bytes == size and shard in self._seen:
                    self._see(name, self._store.copy(shard, name))
                    continue
            self._put(name)
        for name in pointers:
            self._put(name, on_condition=True)
        for name in found:
            if self._is_over(name):
                self._store.delete(name)
        self._remember()

    def _is_over(self, name: str) -> bool:
        """Returns whether an object is a shard or a step of what is finished here."""
        artifact, step = ARTIFACT.fullmatch(name), STEP.fullmatch(name)
        if step:
            home = self.cache / step[1]
            return (home.parent / "finished.json").exists() and not home.exists()
        if not artifact or artifact[2] != ".building":
            return False
        return (self.cache / artifact[1] / MANIFESTS[0]).exists()

    def push_parts(self, folder: Path) -> None:
        """Sends what there is of a folder that grows; steps that are gone here go there too."""
        prefix = self._name(folder) + "/"
        for name in sorted(self._files(folder), key=_last_ones_last):
            with contextlib.suppress(FileNotFoundError):  # a step that has just been deleted
                self._put(name)
        here = {name for name in self._files(folder) if STEP.fullmatch(name)}
        there = [name for name in self._store.list(prefix) if STEP.fullmatch(name)]
        for name in sorted(there, key=_first):
            if name not in here:
                self._store.delete(name)
                self._seen.pop(name, None)
        self._remember()

    def push_file(self, file: Path) -> None:
        """Sends one file."""
        self._put(self._name(file))
        self._remember()

    @contextlib.contextmanager
    def kept_up(self, folder: Path) -> Iterator[None]:
        """Sends what is new in a folder every few seconds while the block runs, and at its end."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(UPLOAD_EVERY_S):
                with contextlib.suppress(OSError):  # tried again
                    self.push_parts(folder)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.push_parts(folder)

    def _put(self, name: str, *, on_condition: bool = False) -> None:
        path = self.cache / name
        stat = path.stat()
        with self._lock:
            seen = self._seen.get(name)
        if seen and seen[1:] == [stat.st_size, stat.st_mtime_ns]:
            return
        if on_condition:
            tag = self._store.write(name, path.read_bytes(), instead_of=seen and seen[0])
            if tag is None:
                raise Busy(
                    f"{self.url}/{name} was changed by another process; run the same command again"
                )
        else:
            tag = self._store.put(path, name)
        with self._lock:
            self._seen[name] = [tag, stat.st_size, stat.st_mtime_ns]

    # --- what may go -----------------------------------------------------------------------------

    def sizes(self) -> dict[Path, int]:
        """Returns the bytes of every artifact there, by its folder in the cache."""
        found: dict[Path, int] = {}
        for name, entry in self._store.list("").items():
            if artifact := ARTIFACT.fullmatch(name):
                folder = self.cache / (artifact[1] + (artifact[2] or ""))
                found[folder] = found.get(folder, 0) + entry.bytes
        return found

    def remove(self, path: Path) -> None:
        """Deletes a file or a folder there and here: pointers, then manifests, then the rest."""
        name = self._name(path)
        there = [one for one in self._store.list(name) if one == name or one.startswith(f"{name}/")]
        there = [one for one in there if not LEASES.fullmatch(one)]
        for one in sorted(there, key=lambda one: (not POINTERS.fullmatch(one), *_first(one))):
            self._store.delete(one)
            self._seen.pop(one, None)
        self._whole.discard(f"{name}/")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._remember()

    # --- leases ----------------------------------------------------------------------------------

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Returns an object and its tag; None where there is none."""
        return self._store.read(name)

    def write(self, name: str, content: bytes, *, instead_of: str | None) -> str | None:
        """Writes an object where none is, or in place of the one with that tag; returns its tag.

        Returns None where there is another one by now.
        """
        return self._store.write(name, content, instead_of=instead_of)

    def delete(self, name: str) -> None:
        """Deletes an object, there or not."""
        self._store.delete(name)

    def name(self, path: Path) -> str:
        """Returns the name of the object of which a path is the copy."""
        return self._name(path)

    # --- the cache -------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Returns the names of all objects."""
        return list(self._store.list(""))

    def _name(self, path: Path) -> str:
        name = path.relative_to(self.cache).as_posix()
        return "" if name == "." else name

    def _files(self, folder: Path | None = None) -> list[str]:
        """Returns the files in the cache by name, without links and what is half written."""
        found = []
        for home, folders, files in os.walk(folder or self.cache):
            folders[:] = [f for f in folders if not _is_unfinished(f)]
            for file in files:
                path = Path(home, file)
                if not path.is_symlink() and not _is_unfinished(file):
                    found.append(self._name(path))
        return found

    def _see(self, name: str, tag: str) -> None:
        stat = (self.cache / name).stat()
        with self._lock:
            self._seen[name] = [tag, stat.st_size, stat.st_mtime_ns]

    def _remember(self) -> None:
        with self._lock:
            artifacts.write_json(self._seen_file, self._seen)


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED) or "orbax-checkpoint-tmp" in name


def _first(name: str) -> tuple[bool, str]:
    """Sorts what says that the rest is there before the rest."""
    last, name = _last_ones_last(name)
    return not last, name


def _last_ones_last(name: str) -> tuple[bool, str]:
    """Sorts what says that the rest is there behind the rest."""
    last = name.rpartition("/")[2]
    return last in MANIFESTS or last.endswith(".manifest.json") or last == STEP_LAST, name
