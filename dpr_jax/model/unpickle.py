"""Reads the tensors of a PyTorch checkpoint (pytorch_model.bin) without running what it says.

A pickle is a program: it may name any function of this machine and call it. This reader follows
the few steps that tensors in dictionaries need, and refuses every other name and instruction.
"""

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dpr_jax.errors import InputError

STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# instructions that build numbers, texts, tuples, lists, dictionaries and what find_class allows
ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND"),
    *("APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
}
MOST_INSTRUCTIONS = 5_000_000
BROKEN = (  # what a damaged or hostile file can raise
    *(OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError),
    *(RecursionError, MemoryError, ImportError, NotImplementedError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """The numbers that tensors share, by key."""

    dtype: Any
    key: str
    count: int

    @property
    def size_bytes(self) -> int:
        """Its size in the file."""
        return self.count * np.dtype(self.dtype).itemsize


class Tensor(NamedTuple):
    """A tensor that is still to be read."""

    storage: Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def load(file: Path, *, leave_out: tuple[str, ...] = ()) -> Any:
    """Returns what a checkpoint holds, each tensor as a NumPy array.

    Args:
      file: in either form of PyTorch, a zip file or (before 1.6) several pickles.
      leave_out: keys of the outermost dictionary that are not wanted.

    Raises:
      InputError: the file is damaged, or asks for anything but tensors.
    """
    try:
        with file.open("rb") as opened:
            if zipfile.is_zipfile(opened):
                return _from_zip(file, opened, leave_out)
            opened.seek(0)
            return _from_legacy(file, opened, leave_out)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; fetch the model folder again") from None
    except BROKEN as error:
        raise InputError(
            f"{file} is no checkpoint of tensors, or is damaged ({type(error).__name__}: {error});"
            " save it as safetensors (transformers: save_pretrained)"
        ) from None


def _from_zip(file: Path, opened: BinaryIO, leave_out: tuple[str, ...]) -> Any:
    with zipfile.ZipFile(opened) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(f"{file} is a zip file without one data.pkl; it is no checkpoint")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
            raise InputError(f"{file} was written on a big-endian machine; save it as safetensors")
        found = _unpickled(file, archive.read(pickles[0]))

        def numbers(storage: Storage) -> np.ndarray:
            about = archive.getinfo(f"{prefix}data/{storage.key}")
            if about.file_size != storage.size_bytes or about.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{file}: its part {about.filename} is not {storage.size_bytes:,} plain bytes"
                )
            return np.frombuffer(archive.read(about), storage.dtype)

        return _Arrays(file, numbers).outermost(found, leave_out)


def _from_legacy(file: Path, opened: BinaryIO, leave_out: tuple[str, ...]) -> Any:
    """Reads the form of PyTorch before 1.6: several pickles, then the numbers."""
    parts = [_next_pickle(file, opened) for _ in range(3)]
    if parts[0] != LEGACY_MAGIC:
        raise InputError(f"{file} is no checkpoint of PyTorch; give safetensors")
    found, keys = _next_pickle(file, opened), _next_pickle(file, opened)
    places: dict[str, int] = {}
    storages = {one.key: one for one in _Arrays(file).storages(found)}
    for key in keys:
        (count,) = struct.unpack("<q", opened.read(8))
        if key not in storages or storages[key].count != count:
            raise InputError(f"{file} is damaged: its storage {key!r} is not as announced")
        places[key] = opened.tell()
        opened.seek(storages[key].size_bytes, io.SEEK_CUR)

    def numbers(storage: Storage) -> np.ndarray:
        opened.seek(places[storage.key])
        return np.frombuffer(opened.read(storage.size_bytes), storage.dtype, storage.count)

    return _Arrays(file, numbers).outermost(found, leave_out)


def _next_pickle(file: Path, opened: BinaryIO) -> Any:
    start = opened.tell()
    for number, _ in enumerate(pickletools.genops(opened)):
        if number > MOST_INSTRUCTIONS:
            raise InputError(f"{file} has more than {MOST_INSTRUCTIONS:,} instructions")
    end = opened.tell()
    opened.seek(start)
    return _unpickled(file, opened.read(end - start))


def _unpickled(file: Path, data: bytes) -> Any:
    for number, (opcode, _, at) in enumerate(pickletools.genops(data)):
        if opcode.name not in ALLOWED or number > MOST_INSTRUCTIONS:
            raise InputError(
                f"{file} asks for the instruction {opcode.name} at byte {at}, which tensors do not"
                " need; it is refused, as it may run code: save it as safetensors"
            )
    return _Reader(file, data).load()


class _Reader(pickle.Unpickler):
    """Rebuilds tensors alone: every name that it does not know is refused."""

    def __init__(self, file: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """Returns a stand-in of our own for a name that tensors need."""
        # made anew for each call: an instruction could change what it gets
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: _tensor(*parts),
            ("torch._utils", "_rebuild_tensor"): lambda *parts: _tensor(*parts),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *_: None,
            # facebookresearch/DPR's state before it became a dictionary
            ("dpr.utils.model_utils", "CheckpointState"): lambda *parts: parts,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        raise InputError(
            f"{self._file} asks for {module}.{name}, which tensors do not need; it is refused, as"
            " it may run code: save it as safetensors"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that a tensor names."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise InputError(f"{self._file} names something else than a storage; it is refused")
        _, dtype, key, _, count, *view = pid
        if dtype not in STORAGES or (view and view[0] is not None):
            raise InputError(f"{self._file} has a storage of an unknown kind; save as safetensors")
        if type(count) is not int or count < 0:
            raise InputError(f"{self._file} has a storage of {count!r} numbers; it is damaged")
        return Storage(STORAGES[dtype], str(key), count)


def _tensor(
    storage: Storage, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    return Tensor(storage, offset, tuple(sizes), tuple(strides))


class _Arrays:
    """Puts arrays in the place of tensors; each storage is read once."""

    def __init__(self, file: Path, numbers: Callable[[Storage], np.ndarray] | None = None) -> None:
        self._file, self._numbers = file, numbers
        self._read: dict[str, np.ndarray] = {}
        self._seen = 0

    def outermost(self, found: Any, leave_out: tuple[str, ...]) -> Any:
        """Returns the whole content, less some keys of the outermost dictionary."""
        if isinstance(found, dict):
            found = {key: value for key, value in found.items() if key not in leave_out}
        return self._replaced(found)

    def storages(self, found: Any) -> Iterator[Storage]:
        """Yields what the tensors of a checkpoint lie in."""
        self._count()
        if isinstance(found, Tensor | Storage):
            yield found.storage if isinstance(found, Tensor) else found
        elif isinstance(found, dict | list | tuple):
            for value in found.values() if isinstance(found, dict) else found:
                yield from self.storages(value)

    def _replaced(self, value: Any) -> Any:
        self._count()
        if isinstance(value, Tensor):
            return self._array(value)
        if isinstance(value, dict):
            return {key: self._replaced(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(one) for one in value]
        return value

    def _count(self) -> None:
        """A few lists that hold each other could be walked through for ever."""
        self._seen += 1
        if self._seen > MOST_INSTRUCTIONS:
            raise InputError(f"{self._file} holds more than {MOST_INSTRUCTIONS:,} values")

    def _array(self, tensor: Tensor) -> np.ndarray:
        storage, offset, sizes, strides = tensor
        whole = all(type(n) is int and n >= 0 for n in (*sizes, *strides, offset))
        if not isinstance(storage, Storage) or not whole or len(sizes) != len(strides):
            raise InputError(f"{self._file} has a tensor without a sound size; it is damaged")
        if storage.key not in self._read:
            self._read[storage.key] = self._numbers(storage)
        flat = self._read[storage.key]
        last = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
        if 0 not in sizes and last >= len(flat):
            raise InputError(f"{self._file} has a tensor that reaches beyond its storage")
        if 0 in sizes:
            return np.empty(sizes, flat.dtype)
        steps = tuple(step * flat.dtype.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(flat[offset:], sizes, steps, writeable=False)
