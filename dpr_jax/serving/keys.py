"""API keys of a file, which is read again when it changes; compared in constant time."""

import hashlib
import hmac
import time
from pathlib import Path
from typing import NamedTuple

from dpr_jax.console import say
from dpr_jax.errors import InputError

LEAST_CHARS = 16
LOOK_EVERY_S = 1.0


class Key(NamedTuple):
    """The owner of a key and the hash of the key.

    Attributes:
      name: for the access log.
      digest: sha256 of the key.
      admin: whether it may call /v1/admin.
    """

    name: str
    digest: bytes
    admin: bool


class Keys:
    """The keys of a file with one per line: NAME KEY, or NAME KEY admin; # begins a comment."""

    def __init__(self, file: Path) -> None:
        """Reads the file.

        Raises:
          InputError: it cannot be read, holds no key, or a line is wrong.
        """
        self._file = file
        self._looked_s, self._stamp = time.monotonic(), self._read_stamp()
        self._keys = self._read()

    def find(self, given: str) -> Key | None:
        """Returns the entry of a key, or None; takes the same time for every key."""
        self._look()
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _look(self) -> None:
        """Reads the file again if it changed; if it is broken, the keys stay as they were."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except InputError as error:
            say(f"serve: the keys stay as they were: {error}")
        else:
            say(f"serve: {len(self._keys)} keys read from {self._file}")

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> list[Key]:
        rule = "a line is NAME KEY, or NAME KEY admin"
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--keys {self._file} cannot be read: {error}; {rule}") from None
        found = []
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            where = f"{self._file}:{number}"
            if len(words) not in (2, 3) or words[2:] not in ([], ["admin"]):
                raise InputError(f"{where}: {rule}; this one has {len(words)} words")
            if len(words[1]) < LEAST_CHARS:
                raise InputError(
                    f"{where}: the key of {words[0]} has fewer than {LEAST_CHARS} characters; make"
                    " one with `openssl rand -hex 32`"
                )
            digest = hashlib.sha256(words[1].encode()).digest()
            found.append(Key(words[0], digest, len(words) == 3))
        if not found:
            raise InputError(f"--keys {self._file} holds no key; {rule}")
        return found
