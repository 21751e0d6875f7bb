"""The layout of a work directory: the one place that knows where everything lies.

Artifacts are folders that never change once written. Their names end in a hash of what they were
made from, so two recipes never share a folder and nothing is ever replaced. Which folder is current
is said by pointers in `config.json` (data) and in each `retrievers/NAME/retriever.json`; a pointer
moves by one rename. Folders that no pointer names stay until `dpr gc`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_jax import artifacts, console
from dpr_jax.artifacts import COMMAND
from dpr_jax.errors import InputError
from dpr_jax.remote import Remote

FORMAT = 2  # of config.json and retriever.json
HASH_LENGTH = 8
SEEN_S = 30.0  # in which other processes have to see what process 0 wrote
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED_ENDINGS = (".manifest", ".partial", ".trec", ".json")
OWN = ("config.json", "lease.json", "data-", "retrievers", "sets")  # begins of our names


class Pointers:
    """A folder of artifacts and the JSON file that says which of them are current.

    Attributes:
      root: the work directory.
      home: where new artifacts go.
      file: the JSON file with the pointers.
      remote: the object storage of which the root is the cache, if it is one.
    """

    root: Path
    home: Path
    file: Path
    remote: Remote | None

    def read(self) -> dict[str, Any]:
        """Returns what the JSON file holds; an empty dict where there is none."""
        return artifacts.read_json(self.file) if self.file.exists() else {}

    def update(self, **facts: Any) -> None:
        """Changes entries of the JSON file by one rename; equal facts write nothing."""
        self._change(lambda _: facts)

    def _change(self, facts_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Changes entries as a function of what the file holds, one writer at a time.

        Stages of two retrievers run side by side, and both change config.json.
        """
        with artifacts.folder_lock(self.home):
            before = self.read()
            after = {"format": FORMAT} | before | artifacts.plain(facts_of(before))
            if after != before:
                artifacts.write_json(self.file, after)

    def place(self, stage: str, origin: dict[str, Any]) -> Path:
        """Returns the folder of the artifact that a stage makes from these settings and inputs."""
        folder = self.home / f"{stage}-{digest(origin)}"
        if self.remote:  # to know whether it is there, and what is small
            self.remote.fetch(folder, manifest_only=stage in ("embeddings", "index"))
        return folder

    def find(self, stage: str) -> Path | None:
        """Returns the current folder of a stage, None where there is none yet."""
        named = self.read().get("current", {}).get(stage)
        if named and self.remote:
            self.remote.fetch(self.root / named)
        return self.root / named if named else None

    def current(self, stage: str) -> Path:
        """Returns the current folder of a stage.

        Raises:
          InputError: there is none yet; names the command that makes it.
        """
        folder = self.find(stage)
        if folder is None or not folder.exists():
            raise InputError(self._missing(stage))
        return folder

    def point(self, stage: str, folder: Path) -> None:
        """Makes a finished folder the current one of its stage, and links to it for people."""
        named = folder.relative_to(self.root).as_posix()
        if self.read().get("current", {}).get(stage) == named:
            return
        self._change(lambda held: {"current": held.get("current", {}) | {stage: named}})
        self._link(stage, folder)

    def _link(self, stage: str, folder: Path) -> None:
        """Links home/STAGE to the folder for people; no code reads it, some disks have no links."""
        link = self.home / stage
        aside = link.with_name(link.name + ".link")
        with contextlib.suppress(OSError):
            if link.exists() and not link.is_symlink():
                return
            link.parent.mkdir(parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            aside.symlink_to(os.path.relpath(folder, link.parent))
            aside.replace(link)

    def _missing(self, stage: str) -> str:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WorkDir(Pointers):
    """A work directory: data, retrievers, runs and metrics.

    Attributes:
      root: its folder; the cache, where it lies on object storage.
      remote: that storage.
    """

    root: Path
    remote: Remote | None = None

    @property
    def address(self) -> str:
        """Returns the folder or the URL that it is opened by."""
        return self.remote.url if self.remote else str(self.root)

    @property
    def flag(self) -> str:
        """Returns the flag that names it, as a shell takes it."""
        return f"--workdir {artifacts.quoted(self.address)}"

    def check_begun(self) -> None:
        """Raises InputError where nothing was prepared yet, which only two commands do."""
        if not self.file.exists():
            raise InputError(
                f"{self.address} is not a work directory (no config.json); give the --workdir of a"
                f" run, or begin one: `dpr prepare CONFIG.py {self.flag}`"
            )

    def _missing(self, stage: str) -> str:
        return f"{self.address} has no {stage} yet; run `dpr {COMMAND[stage]} {self.flag}`"

    def exchange(self) -> None:
        """Shows what process 0 has written to all processes.

        Raises:
          InputError: another process does not see it: they have no disk in common.
        """
        import numpy as np

        from dpr_jax import parallel  # imports JAX, which reads the environment

        if self.remote and parallel.is_main():
            self.remote.push()
        wanted = int(parallel.of_main(np.uint32(self._pointers())))
        if self.remote and not parallel.is_main():
            self.remote.pull(pointers_only=True)
        end_s = time.monotonic() + SEEN_S
        while self._pointers() != wanted:
            if time.monotonic() > end_s:
                raise InputError(
                    f"this process does not see in {self.root} what process 0 wrote there; give"
                    " --workdir a folder that all processes share, s3:// or gs://"
                )
            time.sleep(0.5)  # NFS shows a renamed file late
        parallel.barrier("work directory seen")  # before process 0 changes it again

    def _pointers(self) -> int:
        """Returns a checksum of all pointers."""
        files = [self.file, *(one.file for one in self.retrievers())]
        content = [
            (str(file.relative_to(self.root)), file.read_bytes()) for file in files if file.exists()
        ]
        return zlib.crc32(repr(content).encode())

    @property
    def home(self) -> Path:
        return self.root

    @property
    def file(self) -> Path:
        return self.root / "config.json"

    @property
    def data(self) -> Path:
        """Returns the folder of the prepared corpus and questions."""
        return self.current("data")

    @property
    def changes(self) -> Path:
        """Additions to the corpus and removals from it, one folder per change."""
        return self.root / "changes"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    def runs(self, question_set: str) -> Path:
        """Returns the folder of the runs over one set of questions: `RETRIEVER.trec` and its
        companions."""
        return self.root / "runs" / question_set

    def imported_runs(self, question_set: str) -> Path:
        """Returns the runs of other tools over the same questions, `NAME.trec`."""
        return self.runs(question_set) / "imported"

    def question_set(self, name: str) -> "WorkDir":
        """Returns the work directory of a test set that has a corpus of its own, there or not."""
        return open_workdir(f"{self.address}/sets/{name}")

    @property
    def set_name(self) -> str:
        """Returns the name of that test set; "" where this is no such work directory."""
        *_, parent, name = ("", *self.address.split("/"))
        return name if parent == "sets" else ""

    def retriever(self, name: str) -> "RetrieverDir":
        """Returns the folder of a retriever, there or not.

        Raises:
          InputError: the name cannot name files.
        """
        if not is_name(name):
            raise InputError(
                f"retriever name {name!r} names files: it must begin with a letter or digit, hold"
                " only letters, digits, '.', '_' and '-', and not end in"
                f" {', '.join(RESERVED_ENDINGS)}"
            )
        return RetrieverDir(self, name)

    def model_source(self, source: str) -> str:
        """Returns where an encoder comes from; `retriever:NAME` is the model trained as NAME.

        Raises:
          InputError: that retriever has no model yet.
        """
        prefix, _, name = source.partition(":")
        if prefix != "retriever":
            return source
        return str(self.retriever(name).current("model"))

    def retrievers(self) -> list["RetrieverDir"]:
        """Returns the retrievers that are there, by name."""
        found = sorted(self.root.glob("retrievers/*/retriever.json"))
        return [RetrieverDir(self, file.parent.name) for file in found]


@dataclasses.dataclass(frozen=True)
class RetrieverDir(Pointers):
    """One retriever's folder: its recipe and its artifacts.

    `retriever.json` holds `kind` (dense, bm25 or hybrid), `source` (an encoder used as it comes;
    null for one that is trained here), `recipe` (settings by part), `current` (stage -> folder) and
    `dev` (figures on the dev questions).

    Attributes:
      workdir: where it lies.
      name: its name.
    """

    workdir: WorkDir
    name: str

    @property
    def root(self) -> Path:
        return self.workdir.root

    @property
    def remote(self) -> Remote | None:
        return self.workdir.remote

    @property
    def home(self) -> Path:
        return self.root / "retrievers" / self.name

    @property
    def file(self) -> Path:
        return self.home / "retriever.json"

    @property
    def kind(self) -> str:
        """Returns dense, bm25 or hybrid."""
        return self.read().get("kind") or kind_by_name(self.name)

    @property
    def source(self) -> str | None:
        """Returns the encoder that is used as it comes; None where the retriever trains its own."""
        return self.read().get("source")

    @property
    def encoder(self) -> str:
        """Returns the encoder of this retriever, as `load_embedder` takes it.

        Raises:
          InputError: it is trained here, and was not yet.
        """
        if self.source:
            return self.workdir.model_source(self.source)
        return str(self.current("model"))

    def _missing(self, stage: str) -> str:
        command = COMMAND.get(stage) or f"encode --encode.questions {stage.partition('/')[2]}"
        what = "mined hard negatives" if stage == "mined" else stage
        return f"retriever {self.name} has no {what} yet; run `dpr {command} {self.flags}`"

    @property
    def flags(self) -> str:
        """Returns the flags that name it, as a shell takes them."""
        return f"--retriever {self.name} {self.workdir.flag}"


def is_name(name: str) -> bool:
    """Returns whether a retriever can have this name, of which those of files are made."""
    return bool(NAME.fullmatch(name)) and not name.endswith(RESERVED_ENDINGS)


def kind_by_name(name: str) -> str:
    """Returns the kind that a retriever has unless told otherwise: bm25 and hybrid by name."""
    return name if name in ("bm25", "hybrid") else "dense"


def digest(origin: dict[str, Any]) -> str:
    """Returns the hash in the name of an artifact's folder, hexadecimal."""
    text = json.dumps(artifacts.plain(origin), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def open_workdir(path: str | Path, *, new: bool = True) -> WorkDir:
    """Opens a work directory; writes nothing.

    Args:
      path: its folder, where `~` is the home folder; or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX.
      new: whether it may be one that does not exist yet.

    Raises:
      InputError: it is a file, a folder of something else, of an older version, or missing.
    """
    remote = Remote(str(path)) if "://" in str(path) else None
    root = remote.cache if remote else Path(path).expanduser().absolute()
    workdir = WorkDir(root, remote)
    if remote:
        console.set_alias(str(root), remote.url)
        if not new and "config.json" not in remote.names():
            raise InputError(f"{remote.url} is not a work directory (no config.json)")
        remote.pull()
    if workdir.file.exists():
        found = workdir.read()
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            form = found.get("format") if isinstance(found, dict) else None
            raise InputError(
                f"{workdir.file} is of format {form}, this version of dpr_jax reads {FORMAT}; give"
                " another --workdir"
            )
        return workdir
    if (root / "workdir.json").exists():
        raise InputError(
            f"{root} is a work directory of an older version, and stays as it is; its model is"
            f" kept by `dpr encode --retriever NAME --from {root / 'model'} --workdir NEW`"
        )
    if root.exists() and not root.is_dir():
        raise InputError(f"--workdir {root} is a file; give a folder")
    if not new:
        workdir.check_begun()
    # a run that was killed before its first pointer leaves these alone; where there are retrievers,
    # it is config.json that was lost
    entries = [entry.name for entry in root.iterdir()] if root.exists() else []
    if "retrievers" not in entries and any(not name.startswith(OWN) for name in entries):
        raise InputError(
            f"--workdir {root} is not empty and not a work directory (no config.json); give a new"
            " folder"
        )
    return workdir
