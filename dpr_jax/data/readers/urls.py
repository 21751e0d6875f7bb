"""Reads raw files at URLs: s3://, gs://, https:// and whatever else fsspec opens.

A `UrlPath` has the part of pathlib.Path that the readers use, so they need not know where a file
lies. Bytes are streamed and never kept on disk.
"""

import fnmatch
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec

from dpr_jax.errors import Busy, InputError

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 1 << 24  # of one request to an object store
CONNECT_S, SILENT_S = 30, 120  # to connect, and without a byte
AGAIN = (408, 429)  # of the 4xx, those that pass

T = TypeVar("T")


def located(name: str) -> "Path | UrlPath":
    """Returns the path that a setting names: a URL, or a file or folder of this machine."""
    return UrlPath(name) if "://" in name else Path(name).expanduser()


@functools.total_ordering
class UrlPath:
    """A file or folder at a URL.

    Attributes:
      url: whole, with its query.
    """

    def __init__(self, url: str, entry: dict[str, Any] | None = None) -> None:
        """Takes a URL, and what a listing says of it, if there was one. Opens nothing."""
        self.url, self._entry = url.rstrip("/"), entry

    def __str__(self) -> str:
        """Returns the URL without its query, which may hold a signature."""
        return self.url.partition("?")[0] if self._is_http else self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and self.url == other.url

    def __lt__(self, other: "UrlPath") -> bool:
        return PurePosixPath(self.url) < PurePosixPath(other.url)

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> "UrlPath":
        return UrlPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(unquote(urlsplit(str(self)).path)).name or str(self)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "UrlPath":
        return UrlPath(str(self).rpartition("/")[0])

    def relative_to(self, folder: "UrlPath") -> PurePosixPath:
        return PurePosixPath(str(self)).relative_to(PurePosixPath(str(folder)))

    # --- what is there

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Returns whether something lies below it; a web server does not list what it has."""
        return not self._is_http and (self._info() or {}).get("type") == "directory"

    def exists(self) -> bool:
        return self._info() is not None

    def stat(self) -> SimpleNamespace:
        """Returns its size, 0 where the server does not say."""
        return SimpleNamespace(st_size=(self._info() or {}).get("size") or 0)

    def tag(self) -> str:
        """Returns what tells this content from another: ETag and size; "" where there is none."""
        info = self._info() or {}
        tag = info.get("ETag") or info.get("etag") or info.get("generation")
        return f"{tag} {info['size']}" if tag and info.get("size") else ""

    def glob(self, pattern: str) -> Iterator["UrlPath"]:
        """Yields what lies in this folder under a name of the pattern."""
        if self.is_dir():
            listed = self._asked(lambda: self._fs.ls(self._inside, detail=True))
            for entry in listed:
                if fnmatch.fnmatch(PurePosixPath(entry["name"]).name, pattern):
                    yield UrlPath(self._fs.unstrip_protocol(entry["name"]), entry)

    def rglob(self, pattern: str) -> Iterator["UrlPath"]:
        """Yields the files anywhere below this folder under a name of the pattern."""
        for name, entry in self._asked(lambda: self._fs.find(self._inside, detail=True)).items():
            if fnmatch.fnmatch(PurePosixPath(name).name, pattern):
                yield UrlPath(self._fs.unstrip_protocol(name), entry)

    def _info(self) -> dict[str, Any] | None:
        if self._entry is None:
            try:
                self._entry = self._asked(lambda: self._fs.info(self._inside))
            except FileNotFoundError:
                return None
        return self._entry

    # --- its bytes

    def open(self, mode: str = "rb", *, seekable: bool = False) -> io.BufferedReader:
        """Opens the file; `seekable` where it is not read from begin to end (Parquet, zip)."""
        assert mode == "rb", mode
        return io.BufferedReader(self.raw(seekable=seekable), BUFFER_BYTES)

    def raw(
        self, on_read: Callable[[int], None] | None = None, *, seekable: bool = False
    ) -> io.RawIOBase:
        """Opens the file without a buffer; `on_read` is told the bytes read."""
        block_bytes = 0 if self._is_http and not seekable else BLOCK_BYTES  # 0: as a stream
        try:
            file = self._asked(lambda: self._fs.open(self._inside, "rb", block_size=block_bytes))
        except FileNotFoundError:
            raise InputError(f"{self} does not exist") from None
        if seekable and not file.seekable():
            raise InputError(
                f"{self}: its server gives files only from begin to end, and a {self.suffix} is"
                " read in parts; copy the file and name the copy"
            )
        return _Bytes(self, file, on_read)

    def read_text(self, encoding: str = "utf-8") -> str:
        with self.open() as file:
            return file.read().decode(encoding)

    @property
    def _is_http(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    @functools.cached_property
    def _fs(self) -> Any:
        scheme = self.url.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}
        try:
            if self._is_http:
                import aiohttp

                # aiohttp's own limit is five minutes for a whole file
                timeout = aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=SILENT_S
                )
                headers = {"Accept-Encoding": "identity"}
                options |= {"client_kwargs": {"timeout": timeout}, "headers": headers}
            return fsspec.filesystem(scheme, **options)
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            how = f"pip install 'dpr_jax[{extra}]'" if extra else str(error)
            raise InputError(f"{self}: reading {scheme}:// needs another package: {how}") from None
        except ValueError:
            raise InputError(
                f"{self}: no storage is known as {scheme}://; docs/data.md lists those that are"
            ) from None

    @property
    def _inside(self) -> str:
        """Returns the name by which the file system knows it."""
        return self._fs._strip_protocol(self.url)

    def _asked(self, ask: Callable[[], T], *, again: bool = False) -> T:
        """Returns an answer of the storage; where it fails, the error is one line.

        Raises:
          FileNotFoundError: there is nothing.
          InputError: it refuses, or cannot be reached.
          Busy: the same, with `again` and where it may pass.
        """
        try:
            return ask()
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - of many libraries
            missing = isinstance(error, FileNotFoundError)
            cause = (missing and error.__cause__) or error  # fsspec calls much a missing file
            found = getattr(cause, "status", None) or getattr(cause, "code", None)
            status = found if isinstance(found, int) else 0
            reached = cause is error or status or not isinstance(cause, OSError)
            if missing and status in (0, 404) and reached:
                raise FileNotFoundError(str(self)) from None
            line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            reason = line.replace(self.url, str(self))
            if isinstance(error, PermissionError) or status in (401, 403):
                reason = f"access is refused ({reason}); check the credentials"
                raise InputError(f"{self} cannot be read: {reason}") from None
            passes = status == 0 or status >= 500 or status in AGAIN
            if again and passes and not isinstance(error, ValueError):
                raise Busy(
                    f"{self}: the connection broke ({reason}); run the same command again"
                ) from None
            raise InputError(f"{self} cannot be read: {reason}") from None


class _Bytes(io.RawIOBase):
    """The bytes of a file at a URL; says how many are read."""

    def __init__(self, path: UrlPath, file: Any, on_read: Callable[[int], None] | None) -> None:
        self._path, self._file, self._on_read = path, file, on_read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._path._asked(lambda: self._file.read(len(buffer)), again=True)
        buffer[: len(data)] = data
        if self._on_read is not None and data:
            self._on_read(len(data))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
