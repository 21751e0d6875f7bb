"""Artifacts that stages leave on disk for each other: written whole or not at all, and checked.

Every artifact has a JSON manifest, written last. It holds `made_from` (the settings and the inputs'
fingerprints that produced the artifact) and `files` (sha256 and size of each file). A stage whose
`made_from` is unchanged is not run again; a file whose checksum is not the manifest's is refused by
name.
"""

import contextlib
import contextvars
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_jax.errors import InputError

# The command that makes each artifact
COMMAND = {
    "data": "prepare",
    "mined": "mine",
    "checkpoints": "train",
    "model": "train",
    "embeddings": "encode",
    "index": "index",
    "weight": "retrieve",
    "bm25": "index --retriever bm25",
}

# --- JSON, checksums, atomic writes


def write_json(path: Path, value: Any) -> None:
    """Writes JSON aside and renames it, so that a reader sees the old or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file that a stage wrote.

    Raises:
      InputError: missing, or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy_for(path)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy_for(path)}") from None


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes of this host out of the same block, for the moment of a small change.

    Without a lock where the file system has none, or nothing can be written anyway.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)  # which also unlocks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remedy_for(path: Path, delete: str = "its folder") -> str:
    """Returns how to get a file of an artifact again, or one of those that name the artifacts."""
    command = _command_for(path)
    if command and path.exists():
        return f"delete {delete} and run {command} again"
    if command:
        return f"run {command} first"
    if path.name not in ("config.json", "retriever.json"):
        return "run the stage again that makes it"
    root = path.parent if path.name == "config.json" else path.parent.parent.parent
    return (
        "restore it from a copy; or move it away and run `dpr pipeline CONFIG.py --workdir"
        f" {quoted(root)}`, which finds the artifacts that are there"
    )


def quoted(path: Path | str) -> str:
    """Returns a path as a shell takes it, for commands that a message proposes."""
    return shlex.quote(str(path))


def _command_for(path: Path) -> str:
    """Returns the command that makes the artifact in whose folder a file lies; empty for none."""
    for folder in path.parents:
        stage, owner = folder.name.rpartition("-")[0], folder.parent
        if owner.name == "questions":
            command, owner = f"encode --encode.questions {stage}", owner.parent
        elif stage in COMMAND:
            command = COMMAND[stage]
        else:
            continue
        if owner.parent.name == "retrievers":
            root = quoted(owner.parent.parent)
            return f"`dpr {command} --retriever {owner.name} --workdir {root}`"
        return f"`dpr {command} --workdir {quoted(owner)}`"
    return ""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it takes the final name only when the block ends well.

    The partial file has one fixed name, so what a killed run left is overwritten, not piled up.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # some libraries let nobody else read what they write
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    """Returns the rights that new files of this process lack, without changing them on the way."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it takes the name `path` only when the block ends well."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_dir(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_dir(finished: Path, path: Path) -> None:
    """Gives a finished folder its final name; a broken one of that name is deleted."""
    shutil.rmtree(path, ignore_errors=True)
    finished.rename(path)


def checksum(path: Path) -> str:
    """Returns the sha256 of a file, hexadecimal.

    Raises:
      InputError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


# --- manifests


def made_from(
    stage: str, settings: dict[str, Any], inputs: dict[str, str], *, form: int = 1
) -> dict[str, Any]:
    """Returns what an artifact depends on: stage, settings, and fingerprints of its inputs.

    Args:
      form: of what the stage writes, counted up when the same settings and inputs come to give
        something else: what an older version made is then made anew. The first form is not named.
    """
    origin = {"stage": stage, "settings": settings, "inputs": inputs}
    return origin if form == 1 else origin | {"form": form}


def form_of(facts: dict[str, Any]) -> int:
    """Returns the form of an artifact, from its manifest."""
    return facts["made_from"].get("form", 1)


def is_fresh(manifest: Path, origin: dict[str, Any]) -> bool:
    """Returns whether `manifest` exists and was made from just these settings and inputs."""
    if not manifest.exists():
        return False
    return read_json(manifest).get("made_from") == plain(origin)


def plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: lists for tuples, text for the keys of dicts."""
    return json.loads(json.dumps(value))


def write_manifest(manifest: Path, origin: dict[str, Any], files: list[Path], **facts: Any) -> None:
    """Writes the manifest of an artifact whose files are all in place (below the manifest's
    folder).
    """
    listed = {
        file.relative_to(manifest.parent).as_posix(): {
            "sha256": checksum(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(files)
    }
    value = {**facts, "made_from": origin, "files": listed, "versions": versions()}
    write_json(manifest, {**value, "checksum": _checksum_of_value(value)})


def restate(manifest: Path, **facts: Any) -> None:
    """Changes what a manifest says besides its files and what they were made from."""
    value = read_json(manifest) | facts
    value.pop("checksum", None)
    write_json(manifest, {**value, "checksum": _checksum_of_value(value)})


def _checksum_of_value(value: dict[str, Any]) -> str:
    """Returns the sha256 of a JSON value, however it is laid out; floats survive the way to a file
    and back."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def fingerprint(manifest: Path, within: str = "") -> str:
    """Returns one hash of the content of an artifact: of its files' names and checksums.

    The fields of passages are left out: only searches read them, as they are now.

    Args:
      manifest: the artifact's manifest.
      within: only files whose path begins so, such as "corpus/".

    Raises:
      InputError: the artifact is missing or its manifest damaged.
    """
    listed = read_json(manifest).get("files", {})
    files = {
        name: listed[name]
        for name in listed
        if name.startswith(within) and not name.startswith("fields/")
    }
    if not files:
        raise InputError(f"{manifest} lists no files; {remedy_for(manifest)}")
    lines = [f"{name} {entry['sha256']}" for name, entry in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_hash_later: contextvars.ContextVar[list[Path] | None] = contextvars.ContextVar(
    "hash_later", default=None
)


@contextlib.contextmanager
def hash_later() -> Iterator[list[Path]]:
    """Within the block `verify` compares sizes alone, so that a server starts fast.

    Yields:
      The manifests whose files are still to be hashed, by `verify` outside of the block.
    """
    manifests: list[Path] = []
    token = _hash_later.set(manifests)
    try:
        yield manifests
    finally:
        _hash_later.reset(token)


def verify(manifest: Path, remedy: str = "") -> dict[str, Any]:
    """Checks every file of an artifact against its manifest, and returns the manifest.

    Within `hash_later` only sizes are compared.

    Args:
      manifest: the artifact's manifest.
      remedy: what to do about a damaged file; empty: to make the artifact again.

    Raises:
      InputError: a file is missing or differs, by name, or the manifest is none.
    """
    facts = read_json(manifest)
    remedy = remedy or remedy_for(manifest, delete=str(manifest))
    if not _is_manifest(facts):
        raise InputError(
            f"{manifest} is damaged: it does not list files with their checksums; {remedy}"
        )
    wanted = facts.pop("checksum", None)  # older manifests have none
    if wanted not in (None, _checksum_of_value(facts)):
        raise InputError(f"{manifest} is damaged: its checksum is another; {remedy}")
    later = _hash_later.get()
    if later is not None:
        later.append(manifest)
    for name, entry in facts["files"].items():
        path = manifest.parent / name
        if not path.exists():
            raise InputError(f"{path} is missing, though {manifest.name} lists it; {remedy}")
        sized = path.stat().st_size == entry["bytes"]
        if not sized or (later is None and checksum(path) != entry["sha256"]):
            raise InputError(
                f"{path} is damaged: its checksum is not the one in {manifest.name}; {remedy}"
            )
    return facts


def _is_manifest(facts: Any) -> bool:
    """Returns whether a JSON value has what `verify` reads."""
    files = facts.get("files") if isinstance(facts, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys() for entry in files.values()
    )


def versions() -> dict[str, str]:
    """Versions of the packages that shape results, for manifests and reports."""
    names = (
        "dpr_jax",
        "jax",
        "flax",
        "optax",
        "numpy",
        "tokenizers",
        "scann",
        "faiss-cpu",
        "bm25s",
    )
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
