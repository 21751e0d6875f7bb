"""Object storage: objects below a URL, some of them written on a condition."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from dpr_jax.errors import InputError

EXTRAS = {"s3": "s3", "gs": "gcs"}  # scheme -> the extra that brings its library


class Entry(NamedTuple):
    """An object: what tells this content from another, and its size."""

    tag: str
    bytes: int


class S3:
    """Objects below a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        import s3fs

        self._fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        self._root = url.partition("://")[2]
        self._bucket, _, self._prefix = self._root.partition("/")

    def list(self, prefix: str) -> dict[str, Entry]:
        found = self._fs.find(f"{self._root}/{prefix}", detail=True)
        start = len(self._root) + 1
        return {
            name[start:]: Entry(one["ETag"], one["size"])
            for name, one in found.items()
            if len(name) > start
        }

    def get(self, name: str, path: Path) -> None:
        self._fs.get_file(f"{self._root}/{name}", str(path))

    def put(self, path: Path, name: str) -> str:
        self._fs.put_file(str(path), f"{self._root}/{name}")
        return self._fs.info(f"{self._root}/{name}")["ETag"]

    def copy(self, source: str, name: str) -> str:
        self._fs.cp_file(f"{self._root}/{source}", f"{self._root}/{name}")
        return self._fs.info(f"{self._root}/{name}")["ETag"]

    def delete(self, name: str) -> None:
        self._fs.call_s3("delete_object", Bucket=self._bucket, Key=self._key(name))

    def read(self, name: str) -> tuple[bytes, str] | None:
        path = f"{self._root}/{name}"
        try:
            while True:  # content and tag of the same moment
                tag, content = self._fs.info(path)["ETag"], self._fs.cat_file(path)
                if self._fs.info(path)["ETag"] == tag:
                    return content, tag
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, *, instead_of: str | None) -> str | None:
        condition = {"IfMatch": instead_of} if instead_of else {"IfNoneMatch": "*"}
        try:
            done = self._fs.call_s3(
                "put_object",
                Bucket=self._bucket,
                Key=self._key(name),
                Body=content,
                **condition,
            )
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                return None
            raise
        return done["ETag"]

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


class Gcs:
    """Objects below a prefix of a bucket; no bucket was at hand to try it."""

    def __init__(self, url: str) -> None:
        import gcsfs

        self._fs = gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
        self._root = url.partition("://")[2]
        self._bucket, _, self._prefix = self._root.partition("/")

    def list(self, prefix: str) -> dict[str, Entry]:
        found = self._fs.find(f"{self._root}/{prefix}", detail=True)
        start = len(self._root) + 1
        return {
            name[start:]: Entry(str(one["generation"]), int(one["size"]))
            for name, one in found.items()
            if len(name) > start
        }

    def get(self, name: str, path: Path) -> None:
        self._fs.get_file(f"{self._root}/{name}", str(path))

    def put(self, path: Path, name: str) -> str:
        self._fs.put_file(str(path), f"{self._root}/{name}")
        return self._tag(name)

    def copy(self, source: str, name: str) -> str:
        self._fs.cp_file(f"{self._root}/{source}", f"{self._root}/{name}")
        return self._tag(name)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def read(self, name: str) -> tuple[bytes, str] | None:
        try:
            while True:
                tag, content = self._tag(name), self._fs.cat_file(f"{self._root}/{name}")
                if self._tag(name) == tag:
                    return content, tag
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, *, instead_of: str | None) -> str | None:
        try:
            done = self._fs.call(
                "POST",
                f"https://storage.googleapis.com/upload/storage/v1/b/{self._bucket}/o",
                uploadType="media",
                name=f"{self._prefix}/{name}" if self._prefix else name,
                ifGenerationMatch=instead_of or "0",
                data=content,
                json_out=True,
            )
        except Exception as error:
            if str(getattr(error, "code", "")) in ("412", "409"):
                return None
            raise
        return str(done["generation"])

    def _tag(self, name: str) -> str:
        return str(self._fs.info(f"{self._root}/{name}")["generation"])


def connect(url: str) -> S3 | Gcs:
    """Returns the store below a URL.

    Raises:
      InputError: another scheme, its library is not installed, or the bucket cannot be read.
    """
    scheme = url.partition("://")[0]
    if scheme not in EXTRAS:
        raise InputError(
            f"--workdir {url}: a work directory is a folder, s3:// or gs://; other storage does not"
            " write on a condition"
        )
    try:
        store = (S3 if scheme == "s3" else Gcs)(url)
    except ImportError as error:
        raise InputError(
            f"--workdir {url} needs {error.name}, which is not installed: pip install"
            f" 'dpr_jax[{EXTRAS[scheme]}]'"
        ) from None
    try:
        store.list("")
    except Exception as error:  # of many libraries: no rights, no network, no bucket
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--workdir {url} cannot be read: {reason}") from error
    return store
