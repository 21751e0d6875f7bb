"""Opens raw files, here or at URLs, as bytes of UTF-8: unpacked by what they hold, recoded.

gzip, bzip2, xz and zstd are known by their first bytes, whatever the file is called. A zip or tar
archive may hold one file.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from dpr_jax.data.readers.pieces import Piece
from dpr_jax.data.readers.urls import UrlPath
from dpr_jax.errors import InputError

OnRead = Callable[[int], None]  # told how many bytes were just read from disk

PACKED = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz")
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
MARKS = {  # byte order marks; those of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CHUNK_BYTES = 1 << 16
TAR_MAGIC = slice(257, 262)


@contextlib.contextmanager
def opened(path: Path, on_read: OnRead | None = None) -> Iterator[BinaryIO]:
    """Opens a file as bytes of UTF-8.

    Args:
      path: the file, or a piece of one, which is unpacked already.
      on_read: told the bytes read from disk.

    Raises:
      InputError: it cannot be read, is damaged, or is an archive of several files.
    """
    if isinstance(path, Piece):
        yield io.BytesIO(path.content)
        return
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(io.BufferedReader(_raw(path, on_read)))
            yield _recoded(_unpacked(path, file, stack), path)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise _damaged(path, error) from None
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        if error.errno is None:  # what bz2 and zstd raise for bytes that they did not write
            raise _damaged(path, error) from None
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def inner_name(path: Path) -> str:
    """Returns the name of a file without the endings of packing; of an archive, its file's.

    Raises:
      InputError: an archive cannot be read, or holds several files.
    """
    name = path.name
    while PurePath(name).suffix.lower() in PACKED:
        name = PurePath(name).stem
    if PurePath(name).suffix.lower() in ARCHIVES and path.is_file():
        with opened(path) as file:
            inside = getattr(file, "inner_name", "")
        return inside or PurePath(name).stem
    return name


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns what the system refuses of a path into an InputError of one line.

    Raises:
      InputError: it did.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: truncated or damaged {path.suffix} ({error}); copy or download it again"
    )


def _unpacked(path: Path, file: Any, stack: contextlib.ExitStack) -> Any:
    """Returns the bytes within a packed file or archive; of a plain file, its own."""
    begin = file.peek(8)[:8]
    if begin.startswith(b"PK\x03\x04") and path.suffix.lower() == ".zip":
        return _only_of_zip(path, stack.enter_context(zipfile.ZipFile(file)), stack)
    kind = next((kind for magic, kind in MAGIC.items() if begin.startswith(magic)), "")
    named = path.suffix.lower()
    if not kind and begin and named in (*PACKED, ".zip", ".tgz"):
        raise InputError(
            f"{path}: truncated or damaged {path.suffix} (its bytes are not of that kind); rename"
            " it if it is not packed, or download it again"
        )
    if kind == ".gz":
        file = stack.enter_context(gzip.GzipFile(fileobj=file))
    elif kind == ".bz2":
        file = stack.enter_context(bz2.BZ2File(file))
    elif kind == ".xz":
        file = stack.enter_context(lzma.LZMAFile(file))  # noqa: SIM115
    elif kind == ".zst":
        file = stack.enter_context(_zstd(path, file))
    if kind:
        file = stack.enter_context(io.BufferedReader(file))
    if file.peek(TAR_MAGIC.stop)[TAR_MAGIC] == b"ustar":
        archive = stack.enter_context(tarfile.open(fileobj=file, mode="r|"))  # noqa: SIM115
        inside = _OnlyOfTar(path, archive)
        return stack.enter_context(_Named(inside, inside.inner_name))
    return file


def _zstd(path: Path, file: BinaryIO) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise InputError(
            f"{path}: reading zstd needs pyarrow; install it with: pip install 'dpr_jax[parquet]',"
            " or unpack the file with: unzstd"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


def _only_of_zip(path: Path, archive: zipfile.ZipFile, stack: contextlib.ExitStack) -> Any:
    inside = [one for one in archive.infolist() if not one.is_dir() and _counts(one.filename)]
    if len(inside) != 1:
        raise _several(path, [one.filename for one in inside])
    if inside[0].flag_bits & 1:
        raise InputError(f"{path} is encrypted; unpack it and name the file in it")
    file = stack.enter_context(archive.open(inside[0]))
    return stack.enter_context(_Named(file, PurePath(inside[0].filename).name))


def _counts(name: str) -> bool:
    """Returns whether a member of an archive is not what macOS adds."""
    return not name.startswith("__MACOSX/") and not PurePath(name).name.startswith("._")


def _several(path: Path, names: list[str]) -> InputError:
    held = f"{len(names)} files ({', '.join(names[:3])})" if names else "no file"
    return InputError(f"{path} holds {held}; unpack it and name the one to read")


class _Named(io.BufferedReader):
    """The file of an archive, which knows its name."""

    def __init__(self, raw: Any, inner_name: str) -> None:
        super().__init__(raw)
        self.inner_name = inner_name


class _OnlyOfTar(io.RawIOBase):
    """The bytes of the only file of a tar archive that is read as a stream."""

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self._path, self._archive = path, archive
        self._member = self._next()
        if self._member is None:
            raise _several(path, [])
        self._file = archive.extractfile(self._member)

    @property
    def inner_name(self) -> str:
        return PurePath(self._member.name).name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        if not data and (second := self._next()) is not None:
            raise _several(self._path, [self._member.name, second.name])
        buffer[: len(data)] = data
        return len(data)

    def _next(self) -> tarfile.TarInfo | None:
        while (member := self._archive.next()) is not None:
            if member.isfile() and _counts(member.name):
                return member
        return None


def _recoded(file: Any, path: Path) -> Any:
    """Returns the bytes as UTF-8 where they begin with a byte order mark of UTF-16 or UTF-32."""
    begin = file.peek(4)[:4]
    encoding = next((name for mark, name in MARKS.items() if begin.startswith(mark)), "")
    if not encoding:
        return file
    return io.BufferedReader(_Recoded(file, encoding, path))


class _Recoded(io.RawIOBase):
    """A file of another encoding as bytes of UTF-8."""

    def __init__(self, file: Any, encoding: str, path: Path) -> None:
        self._file, self._path, self._encoding = file, path, encoding
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            data = self._file.read(CHUNK_BYTES)
            try:
                self._left = self._decode(data, final=not data).encode("utf-8")
            except UnicodeError as error:
                raise InputError(
                    f"{self._path}: not {self._encoding.upper()}, as its byte order mark says"
                    f" ({getattr(error, 'reason', error)}); save the file as UTF-8"
                ) from None
            if not data:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _raw(path: Path, on_read: OnRead | None) -> io.RawIOBase:
    if isinstance(path, UrlPath):
        return path.raw(on_read, seekable=path.suffix.lower() == ".zip")
    return _Counted(path, on_read)


class _Counted(io.FileIO):
    """A file that says how many bytes are read of it."""

    def __init__(self, path: Path, on_read: OnRead | None) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if self._on_read is not None and count:
            self._on_read(count)
        return count
