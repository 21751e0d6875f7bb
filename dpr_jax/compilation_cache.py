"""A cache of compiled programs on disk, from which a later command starts faster.

JAX has such a cache, but writes entries in place: a process that is killed while it writes leaves a
truncated one, and every later process warns of it and compiles again. So here each process gives
JAX a folder of its own. It starts with hard links to the entries of a store that all processes
share. When the process ends, its new entries are linked into the store: whole or not at all. An
entry's name in the store begins with the checksum of its content, and a damaged one is deleted.

The store lies outside of work directories, in $XDG_CACHE_HOME/dpr_jax or ~/.cache/dpr_jax, with one
folder per kind of processor. JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Where
JAX_COMPILATION_CACHE_DIR is set, that folder is used instead, as JAX does it.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

from dpr_jax import host

MOST_BYTES = 256 << 20  # of the entries of a store
LEAST_COMPILE_S = 0.1  # programs that compile faster are not kept
_CHECKSUM_LENGTH = 16
_ENTRY, _USED = "-cache", "-atime"  # endings of JAX's files
_OWN = "process-"  # begins the name of a process's folder


def enable() -> None:
    """Lets JAX keep what it compiles in this process, and take what earlier processes compiled.

    Does nothing where the user has chosen, or where the folder cannot be had. Not for runs of
    several processes: some of them might find a program that others have to compile together.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    store = shared_folder()
    ours = chosen.startswith(f"{store}{os.sep}")  # set by the process that started this one
    if (chosen and not ours) or _is_off():
        return
    with contextlib.suppress(OSError):
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        _delete_abandoned(store)
        own = Path(tempfile.mkdtemp(prefix=_OWN, dir=store))
        lock = os.open(own, os.O_RDONLY)  # held until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        take_from(store, own)
        atexit.register(_leave, own, store)
        _set(str(own))


def _is_off() -> bool:
    return os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "f", "false")


def shared_folder() -> Path:
    """Returns the folder of the store for this processor.

    XLA compiles for the instructions and the number of cores of the machine it is on.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.machine(), str(cores), *sorted(host.processor_features())]
    kind = hashlib.sha256(" ".join(facts).encode()).hexdigest()[:_CHECKSUM_LENGTH]
    return Path(root) / "dpr_jax" / kind


def _set(folder: str) -> None:
    """Names the folder to JAX, imported already or not."""
    values = {
        "jax_compilation_cache_dir": folder,
        "jax_compilation_cache_max_size": MOST_BYTES,  # with a bound JAX notes what it uses
        "jax_persistent_cache_min_compile_time_secs": LEAST_COMPILE_S,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in values.items():
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)


def take_from(store: Path, own: Path) -> None:
    """Links all whole entries of the store into a process's folder; deletes damaged ones."""
    for entry in store.glob(f"*{_ENTRY}"):
        with contextlib.suppress(OSError):  # another process may delete it
            checksum, _, name = entry.name.partition("-")
            if _checksum(entry.read_bytes()) != checksum:
                entry.unlink(missing_ok=True)
                continue
            os.link(entry, own / name)
            used_ns = entry.stat().st_mtime_ns
            (own / f"{name.removesuffix(_ENTRY)}{_USED}").write_bytes(used_ns.to_bytes(8, "little"))


def give_to(store: Path, own: Path) -> None:
    """Links the new entries of a process's folder into the store, and notes those it used.

    Beyond MOST_BYTES the entries that were not used for longest are deleted.
    """
    known = {entry.name.partition("-")[2]: entry for entry in store.glob(f"*{_ENTRY}")}
    for file in own.glob(f"*{_ENTRY}"):
        with contextlib.suppress(OSError):
            if file.name not in known:
                content = file.read_bytes()
                if not is_whole(content):
                    continue
                known[file.name] = store / f"{_checksum(content)}-{file.name}"
                os.link(file, known[file.name])
            used = own / f"{file.name.removesuffix(_ENTRY)}{_USED}"
            used_ns = int.from_bytes(used.read_bytes(), "little")
            os.utime(known[file.name], ns=(used_ns, used_ns))
    total = 0
    for entry in sorted(known.values(), key=_last_use_ns, reverse=True):
        with contextlib.suppress(OSError):
            total += entry.stat().st_size
            if total > MOST_BYTES:
                entry.unlink()


def is_whole(content: bytes) -> bool:
    """Returns whether an entry ends where its compression says; a write may have been cut off."""
    try:
        if content[:1] == b"\x78":
            stream = zlib.decompressobj()
            stream.decompress(content)
            return stream.eof
        import zstandard  # which JAX takes where it is installed

        zstandard.ZstdDecompressor().decompress(content)
    except Exception:  # noqa: BLE001 - what cannot be checked is not kept
        return False
    return True


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_CHECKSUM_LENGTH]


def _last_use_ns(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return entry.stat().st_mtime_ns
    return 0


def _leave(own: Path, store: Path) -> None:
    with contextlib.suppress(OSError):
        give_to(store, own)
    shutil.rmtree(own, ignore_errors=True)


def _delete_abandoned(store: Path) -> None:
    """Deletes the folders of processes that were killed; those of living ones are locked."""
    for folder in store.glob(f"{_OWN}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - folder.stat().st_mtime > 1:  # else it may not be locked yet
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
