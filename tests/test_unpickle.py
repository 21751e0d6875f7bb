"""PyTorch's checkpoints are read without running what they say; hostile ones are refused."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model import hf, names, unpickle, weights
from dpr_jax.model.embed import load_embedder

GOLDEN = Path(__file__).parent / "golden/encoders"


class Named:
    """Pickles as a name of a module that is not here, as PyTorch's are not."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickles as a call of something by name."""

    def __init__(self, named: Named, *arguments: Any) -> None:
        self.named, self.arguments = named, arguments


class Stored:
    """Pickles as numbers that lie outside of the pickle."""

    def __init__(self, kind: str, key: str, values: np.ndarray) -> None:
        self.kind, self.key, self.values = kind, key, values


class Writer(pickle._Pickler):  # the one in Python, which can be told to write names
    """Writes what torch.save writes."""

    def persistent_id(self, value: Any) -> Any:
        """Returns what stands for numbers outside."""
        if isinstance(value, Stored):
            kind = Named("torch", value.kind)
            return ("storage", kind, value.key, "cpu", value.values.size)
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Writes names and calls as such."""
        if isinstance(obj, Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.named)
            self.save(obj.arguments)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def tensor(values: np.ndarray, key: str, **changed: Any) -> Call:
    """Returns what stands for a tensor."""
    said = {"offset": 0, "sizes": values.shape, "kind": "FloatStorage", "stored": values.size}
    said |= changed
    strides = tuple(step // values.itemsize for step in values.strides)
    stored = Stored(said["kind"], key, values.ravel())
    arguments = (stored, said["offset"], said["sizes"], strides, False, OrderedDict())
    return Call(Named("torch._utils", "_rebuild_tensor_v2"), *arguments)


def pickled(value: Any) -> bytes:
    out = io.BytesIO()
    Writer(out, protocol=2).dump(value)
    return out.getvalue()


def save(file: Path, value: Any, numbers: dict[str, bytes], *, raw: bytes | None = None) -> Path:
    """Writes a checkpoint in the form of PyTorch 1.6 and later."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value) if raw is None else raw)
        archive.writestr("archive/byteorder", "little")
        for key, data in numbers.items():
            archive.writestr(f"archive/data/{key}", data)
    return file


def test_tensors_are_rebuilt(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    turned = tensor(values.T, "0")  # a view with other strides
    turned.arguments[0].values = values.ravel()
    state = {"a": tensor(values, "0"), "b": turned, "step": 3}
    file = save(tmp_path / "x.bin", state, {"0": values.tobytes()})
    found = unpickle.load(file)
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], values.T)
    assert found["step"] == 3
    assert "a" not in unpickle.load(file, leave_out=("a",))


def test_the_older_form_is_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    file = tmp_path / "old.bin"
    header = [unpickle.LEGACY_MAGIC, 1001, {"little_endian": True}]
    parts = [*header, {"a": tensor(values, "7")}, ["7"]]
    data = b"".join(map(pickled, parts)) + struct.pack("<q", 6) + values.tobytes()
    file.write_bytes(data)
    np.testing.assert_array_equal(unpickle.load(file)["a"], values)
    file.write_bytes(data[:-4])
    with pytest.raises(InputError, match="old.bin is no checkpoint of tensors, or is damaged"):
        unpickle.load(file)


VALUES = np.arange(12, dtype=np.float32)


def looped() -> list:
    """Lists that hold each other: a walk through all of them would not end."""
    found: list = [1]
    for _ in range(40):
        found = [found, found]
    return found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call(Named("os", "system"), "touch ran"), "asks for os.system"),
        (Call(Named("builtins", "eval"), "open('ran', 'w')"), "asks for builtins.eval"),
        (Call(Named("builtins", "getattr"), "x", "y"), "asks for builtins.getattr"),
        (Call(Named("torch", "load"), "x"), "asks for torch.load"),
        (Call(Named("torch._utils", "_rebuild_device_tensor_from_numpy"), 1), "asks for torch._u"),
        (Call(Named("numpy", "fromfile"), "/etc/passwd"), "asks for numpy.fromfile"),
        (Call(Named("dpr_jax.model.unpickle", "load"), "x"), "asks for dpr_jax.model.unpickle"),
        ({"a": tensor(VALUES, "0", sizes=(99,))}, "reaches beyond its storage"),
        ({"a": tensor(VALUES, "0", offset=5)}, "reaches beyond its storage"),
        ({"a": tensor(VALUES, "0", offset=-4)}, "has a tensor without a sound size"),
        ({"a": tensor(VALUES, "0", sizes=(1 << 70,))}, "reaches beyond its storage"),
        ({"a": tensor(VALUES, "0", kind="ObjectStorage")}, "asks for torch.ObjectStorage"),
        ({"a": tensor(VALUES, "1")}, "no checkpoint of tensors, or is damaged"),
        ({"a": tensor(VALUES, "../0")}, "no checkpoint of tensors, or is damaged"),
        (looped(), "holds more than 5,000,000 values"),
    ],
)
def test_hostile_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path / "x.bin", value, {"0": VALUES.tobytes()})
    with pytest.raises(InputError, match=message) as caught:
        unpickle.load(file)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "asks for os.system"),
        (b"(S'touch ran'\nios\nsystem\n.", "instruction INST at byte"),
        (b"(cos\nsystem\nS'touch ran'\no.", "instruction OBJ at byte"),
        (b"\x80\x02cos\nsystem\nX\x00\x00\x00\x00\x85\x81.", "instruction NEWOBJ at byte"),
        (b"\x80\x02\x82\x01.", "instruction EXT1 at byte"),
        (b"Pabc\n.", "instruction PERSID at byte"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER at byte"),
        (b"\x80\x02K\x01Q.", "names something else than a storage"),
        (b"\x80\x02}", "no checkpoint of tensors, or is damaged"),
        (b"", "no checkpoint of tensors, or is damaged"),
        # changes the attributes of what it was given
        (b"ccollections\nOrderedDict\nN}X\x07\x00\x00\x00__new__K\x01s\x86b.", "no checkpoint of"),
    ],
)
def test_hostile_instructions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        unpickle.load(save(tmp_path / "x.bin", None, {}, raw=raw))
    assert not Path("ran").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "packed.bin"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled({"a": tensor(VALUES, "0")}))
        archive.writestr("a/data/0", VALUES.tobytes())  # may be huge when it is unpacked
    with pytest.raises(InputError, match="is not 48 plain bytes"):
        unpickle.load(packed)
    with zipfile.ZipFile(tmp_path / "zip.bin", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(InputError, match="a zip file without one data.pkl"):
        unpickle.load(tmp_path / "zip.bin")
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(InputError, match=r"text.bin is no checkpoint"):
        unpickle.load(tmp_path / "text.bin")


def test_a_reader_is_the_same_after_a_hostile_file(tmp_path: Path) -> None:
    """An instruction that changes the function it is given changes no later reading."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    raw = rebuild + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b."
    try:
        unpickle.load(save(tmp_path / "x.bin", None, {}, raw=raw))
    except InputError:
        pass
    assert unpickle._tensor.__defaults__ is None


def checkpoint_of(params: list[tuple[str, dict]], out: Path, **others: Any) -> Path:
    """Writes what facebookresearch/DPR's training saves."""
    table, numbers = OrderedDict(), {}
    for prefix, tree in params:
        for weight in names.weights(tiny.SHAPE):
            key = str(len(numbers))
            values = weights.tensor(tree, weight)
            numbers[key] = values.tobytes()
            table[f"{prefix}.{weight.name}"] = tensor(values, key)
    state = {"model_dict": table, "optimizer_dict": {"state": {}}, "scheduler_dict": {}}
    state |= {"offset": 0, "epoch": 3, "encoder_params": {"pretrained_model_cfg": "x/y"}}
    return save(out, state | others, numbers)


def test_checkpoints_of_dpr_are_encoders(tmp_path: Path) -> None:
    init = tiny.write(tmp_path / "init")
    os.link(init / "vocab.txt", tmp_path / "vocab.txt")
    trees = [("question_model", tiny.params(seed=1)), ("ctx_model", tiny.params(seed=2))]
    file = checkpoint_of(trees, tmp_path / "dpr_biencoder.3")
    for side, (_, tree) in zip(("question", "passage"), trees, strict=True):
        folder = hf.resolve(str(file), side)
        shape = hf.read_shape(folder)
        assert (shape.num_hidden_layers, shape.hidden_size) == (2, 32)
        found = hf.read_params(folder, shape)
        kernel = found["bert"]["layer_1"]["output"]["kernel"]
        np.testing.assert_array_equal(kernel, tree["bert"]["layer_1"]["output"]["kernel"])
        emb_1D = load_embedder(str(file), side, model=ModelConfig()).encode(["a question"])
        assert emb_1D.shape == (1, 32)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "again").mkdir()
    moved = file.rename(tmp_path / "again/dpr_biencoder.3")
    with pytest.raises(InputError, match="has no tokenizer; copy vocab.txt of the BERT that it"):
        hf.resolve(str(moved), "question")
    other = save(tmp_path / "other.bin", {"weights": 1}, {})
    with pytest.raises(InputError, match="has no model_dict; it is no checkpoint of facebook"):
        hf.resolve(str(other), "question")


def test_a_folder_of_pytorch_weights_in_shards(tmp_path: Path) -> None:
    source = GOLDEN / "distilbert"
    shape = hf.read_shape(source)
    wanted = hf.read_params(source, shape)
    sides: list[Callable[[int], bool]] = [lambda i: i % 2 == 0, lambda i: i % 2 == 1]
    listed = names.weights(shape)
    table = {}
    for number, keep in enumerate(sides):
        part = [weight for i, weight in enumerate(listed) if keep(i)]
        arrays = {weight.name: weights.tensor(wanted, weight) for weight in part}
        file = f"pytorch_model-{number}.bin"
        state = {n: tensor(values, str(i)) for i, (n, values) in enumerate(arrays.items())}
        numbers = {str(i): values.tobytes() for i, values in enumerate(arrays.values())}
        save(tmp_path / file, state, numbers)
        table |= dict.fromkeys(arrays, file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(f'{{"weight_map": {table!r}}}'.replace("'", '"'))
    found = hf.read_params(tmp_path, shape)
    np.testing.assert_array_equal(
        found["bert"]["layer_2"]["output"]["kernel"], wanted["bert"]["layer_2"]["output"]["kernel"]
    )
