"""One writer per retriever: a lease on its folder, also between hosts that share a disk.

The lease is a file that its holder touches every few seconds. One that was not touched for a
minute, or whose process is gone from this host, is taken over: a killed run needs no cleaning up.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpr_jax import joining, parallel
from dpr_jax.errors import RUN_AGAIN, Busy
from dpr_jax.remote import Remote

FILE = "lease.json"
RENEW_S = 10.0
STALE_S = 60.0
POLL_S = 0.5


@contextlib.contextmanager
def held(folder: Path, remote: Remote | None = None) -> Iterator[None]:
    """Holds the lease on a folder while the block runs; process 0 does so for all processes.

    A second writer waits until it has seen the first one touch its lease, or until that is stale.

    Args:
      folder: of a retriever, or a work directory; made if missing.
      remote: the object storage of which the folder is a copy; the lease is held there too.

    Raises:
      Busy: another process is writing there; names it.
    """
    leases: list[_Lease | _RemoteLease] = [_Lease(folder)]
    if remote:
        leases.append(_RemoteLease(remote, folder))
    with contextlib.ExitStack() as stack:
        for lease in leases:
            stack.callback(lease.release)
            parallel.on_main(lease.acquire)
        yield


class _Lease:
    """The lease of this process on one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._made_folder = False

    def acquire(self) -> None:
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        began_s, first_seen = time.monotonic(), None
        while not self._create():
            holder, touched_s, idle_s = self._look()
            if holder is None:
                continue  # it has just ended
            first_seen = first_seen or touched_s
            renewed, watched_s = touched_s != first_seen, time.monotonic() - began_s
            # where the disk takes the time of a touch from the host that does it, two clocks may
            # differ: a living holder is seen to renew its lease all the same
            stale = idle_s > STALE_S and watched_s > 2 * RENEW_S
            if _is_gone(holder) or (not renewed and (stale or watched_s > STALE_S)):
                self._take_from(holder)
                began_s, first_seen = time.monotonic(), None
                continue
            if renewed:
                raise Busy(
                    f"{self._path.parent} is being written by process {holder.get('process')} on"
                    f" {holder.get('host')} since {holder.get('since')}; run this again when that"
                    " has ended"
                )
            time.sleep(POLL_S)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        if (self._read() or {}).get("token") == self._token:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if self._made_folder:
                    self._path.parent.rmdir()  # nothing came of it

    def _create(self) -> bool:
        """Writes the lease whole under another name and links it into place: one writer wins."""
        aside = self._path.with_name(f"{FILE}.{self._token}")
        aside.write_text(json.dumps(_this_process() | {"token": self._token}), encoding="utf-8")
        try:
            os.link(aside, self._path)
        except FileExistsError:
            return False
        except OSError:  # a disk without links
            with contextlib.suppress(FileExistsError), self._path.open("x") as file:
                file.write(aside.read_text(encoding="utf-8"))
            return (self._read() or {}).get("token") == self._token
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _look(self) -> tuple[dict[str, Any] | None, float, float]:
        """Returns the holder, when its lease was touched, and for how long it was not.

        Both times are the disk's, so that the clocks of two hosts need not agree.
        """
        holder = self._read()
        probe = self._path.with_name(f"{FILE}.{self._token}")
        try:
            touched_s = self._path.stat().st_mtime
            probe.touch()
            return holder, touched_s, probe.stat().st_mtime - touched_s
        except FileNotFoundError:
            return None, 0.0, 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _take_from(self, holder: dict[str, Any]) -> None:
        """Moves a lease that nobody holds aside; puts it back where it is another one by now."""
        aside = self._path.with_name(f"{FILE}.{self._token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        moved = json.loads(aside.read_text(encoding="utf-8"))
        if moved.get("token") != holder.get("token"):
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            holder = self._read()
            if holder and holder.get("token") != self._token:
                joining.end(
                    RUN_AGAIN,
                    f"process {holder.get('process')} on {holder.get('host')} took the lease"
                    f" {self._path}, not renewed for a minute; run the same command again",
                )
            with contextlib.suppress(OSError):
                os.utime(self._path)


class _RemoteLease:
    """The lease of this process on a folder on object storage: an object, rewritten by its holder.

    A lease that stays the same for a minute is taken over. Who then finds its own lease to be
    another's ends, before it writes anything more.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote = remote
        self._name = remote.name(folder / FILE)
        self._content = _this_process() | {"token": uuid.uuid4().hex}
        self._tag: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        began_s, first_seen, since_s = time.monotonic(), None, time.monotonic()
        seen = None
        while (tag := self._write(instead_of=None)) is None:
            found = self._remote.read(self._name)
            if found is None:
                continue  # it has just ended
            if found[1] != seen:
                seen, since_s = found[1], time.monotonic()
            first_seen = first_seen or seen
            holder = json.loads(found[0])
            if _is_gone(holder) or time.monotonic() - since_s > STALE_S:
                if (tag := self._write(instead_of=found[1])) is not None:
                    break
                continue
            if seen != first_seen or time.monotonic() - began_s > STALE_S + RENEW_S:
                raise Busy(
                    f"{self._remote.url}/{self._name.removesuffix(FILE)} is being written by"
                    f" process {holder.get('process')} on {holder.get('host')} since"
                    f" {holder.get('since')}; run this again when that has ended"
                )
            time.sleep(POLL_S)
        self._tag = tag
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        found = self._remote.read(self._name)
        if found and found[1] == self._tag:
            self._remote.delete(self._name)

    def _write(self, *, instead_of: str | None) -> str | None:
        content = self._content | {"renewed": time.time_ns()}  # each is another object
        return self._remote.write(self._name, json.dumps(content).encode(), instead_of=instead_of)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                tag = self._write(instead_of=self._tag)
            except OSError:
                continue  # the network; tried again
            if tag is None:
                joining.end(
                    RUN_AGAIN,
                    f"another process took the lease on {self._remote.url}/{self._name}, which was"
                    " not renewed for a minute; run the same command again",
                )
            self._tag = tag


def _this_process() -> dict[str, Any]:
    """Returns who this is, for people and for `_is_gone`."""
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "boot": _boot(),
        "started": _started(os.getpid()),
    }


def _is_gone(holder: dict[str, Any]) -> bool:
    """Returns whether the holder ran on this host, since it was started, and does not run any
    more.
    """
    if holder.get("boot") != _boot() or not holder.get("boot"):
        return False
    return _started(holder["process"]) != holder["started"]


def _boot() -> str:
    """Returns what tells this start of this host, and this container, from all others."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(process: int) -> str:
    """Returns when a process was started, in ticks since the start of the host; "" for none."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[19]
    return ""
