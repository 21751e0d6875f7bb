"""An encoder as an ONNX graph of our own: token ids and their mask in, vectors out.

Rows and lengths are free; pooling, Dense layers and scaling are inside. The tokenizer goes along,
and `encoder.json` says where texts are cut and which prompt stands before them.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.export.model_tower import Tower
from dpr_jax.model import hf
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Side
from dpr_jax.model.modernbert import ModernBertShape
from dpr_jax.model.relative import bucket

OPSET = 17  # the first with LayerNormalization
UNSEEN = -1e9
EMBEDDING = "sentence_embedding"  # name of the result, as in sentence-transformers


def write(folder: Path, side: Side, tower: Tower) -> None:
    """Writes model.onnx, the tokenizer's files and encoder.json.

    Args:
      folder: existing, empty.
      side: which tower.
      tower: its content.

    Raises:
      InputError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError:
        raise InputError(
            'an export to ONNX needs the package onnx; pip install "dpr_jax[onnx]"'
        ) from None
    graph = _Graph()
    _encoder(graph, tower)
    made = onnx.helper.make_model(
        graph.build(onnx.helper, onnx.TensorProto),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="dpr_jax",
        ir_version=8,
    )
    onnx.checker.check_model(made)
    with artifacts.atomic_file(folder / "model.onnx") as partial:
        partial.write_bytes(made.SerializeToString())
    for name in (*hf.TOKENIZER_FILES, "config.json"):
        if (tower.folder / name).exists():
            shutil.copyfile(tower.folder / name, folder / name)
    own = tower.settings
    said = {
        "side": side,
        "opset": OPSET,
        "inputs": {"input_ids": "int64 [rows, tokens]", "attention_mask": "int64 [rows, tokens]"},
        "output": f"{EMBEDDING}: float32 [rows, {graph.width}]",
        "max_tokens": own.max_tokens,
        "prompt": own.prompt,
        "title_and_text": own.title_and_text,
        "unit_length": own.normalize,
    }
    artifacts.write_json(folder / "encoder.json", said)


class _Graph:
    """The nodes and constants of a graph; every method returns the name of a result."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, np.ndarray] = {}
        self.width = 0

    def __call__(self, kind: str, *inputs: "str | np.ndarray | float", **attributes: Any) -> str:
        """Adds an operation; numbers and arrays among its inputs become constants."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append((kind, names, name, attributes))
        return name

    def constant(self, value: np.ndarray | float) -> str:
        """Adds a constant: float32, or int64 where it is of whole numbers."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def build(self, helper: Any, types: Any) -> Any:
        """Returns the graph of onnx; the last node gives the result."""
        kind, inputs, _, attributes = self.nodes.pop()
        self.nodes.append((kind, inputs, EMBEDDING, attributes))
        sizes = ["rows", "tokens"]
        return helper.make_graph(
            [helper.make_node(kind, ins, [out], **said) for kind, ins, out, said in self.nodes],
            "encoder",
            [
                helper.make_tensor_value_info(name, types.INT64, sizes)
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info(EMBEDDING, types.FLOAT, ["rows", self.width])],
            [_tensor(helper, types, name, value) for name, value in self.constants.items()],
        )


def _tensor(helper: Any, types: Any, name: str, value: np.ndarray) -> Any:
    kind = types.INT64 if value.dtype == np.int64 else types.FLOAT
    return helper.make_tensor(name, kind, value.shape, value.tobytes(), raw=True)


def _encoder(graph: _Graph, tower: Tower) -> None:
    shape, params = tower.shape, tower.params["bert"]
    length = graph("Gather", graph("Shape", "input_ids"), np.int64(1))
    range_L = graph("Range", np.int64(0), length, np.int64(1))
    mask_BL = graph("Cast", "attention_mask", to=1)
    hidden_B11L = graph("Unsqueeze", graph("Sub", 1.0, mask_BL), np.array([1, 2]))
    hidden_B11L = graph("Mul", hidden_B11L, UNSEEN)
    apart_LL = graph(
        "Sub",
        graph("Unsqueeze", range_L, np.array([0])),
        graph("Unsqueeze", range_L, np.array([1])),
    )
    if isinstance(shape, ModernBertShape):
        states = _modernbert(graph, shape, params, hidden_B11L, apart_LL, range_L)
    else:
        states = _bert(graph, shape, params, hidden_B11L, apart_LL, range_L)
    pooled = _pooled(graph, tower.settings.pooling, states, mask_BL, range_L)
    width = shape.hidden_size
    for number, layer in enumerate(tower.settings.dense):
        pooled = _activated(graph, layer.activation, _linear(graph, tower.params, number, pooled))
        width = layer.outputs
    graph.width = min(tower.settings.width or width, width)
    pooled = graph("Slice", pooled, np.array([0]), np.array([graph.width]), np.array([1]))
    graph("LpNormalization" if tower.settings.normalize else "Identity", pooled)
    if tower.settings.normalize:
        graph.nodes[-1][3].update(axis=1, p=2)


def _linear(graph: _Graph, params: dict[str, Any], number: int, x: str) -> str:
    return _product(graph, params[f"dense_{number}"], x)


def _product(graph: _Graph, part: dict[str, Any], x: str) -> str:
    y = graph("MatMul", x, np.asarray(part["kernel"]))
    return graph("Add", y, np.asarray(part["bias"])) if "bias" in part else y


def _norm(graph: _Graph, part: dict[str, Any], epsilon: float, x: str) -> str:
    bias = np.asarray(part.get("bias", np.zeros_like(part["scale"])))
    return graph("LayerNormalization", x, np.asarray(part["scale"]), bias, epsilon=epsilon)


def _heads(graph: _Graph, x: str, heads: int, width: int) -> str:
    split = graph("Reshape", x, np.array([0, 0, heads, width // heads]))
    return graph("Transpose", split, perm=[0, 2, 1, 3])


def _attention(
    graph: _Graph, q: str, k: str, v: str, hidden: list[str], heads: int, width: int
) -> str:
    """Returns [rows, tokens, width]; all of `hidden` is added to the scores."""
    turned = graph("Transpose", k, perm=[0, 1, 3, 2])
    scores = graph("Mul", graph("MatMul", q, turned), (width // heads) ** -0.5)
    for one in hidden:
        scores = graph("Add", scores, one)
    y = graph("MatMul", graph("Softmax", scores, axis=-1), v)
    y = graph("Transpose", y, perm=[0, 2, 1, 3])
    return graph("Reshape", y, np.array([0, 0, width]))


def _bert(
    graph: _Graph, shape: BertShape, params: dict, hidden: str, apart_LL: str, range_L: str
) -> str:
    tables = {name: part for name, part in params["embeddings"].items() if name != "LayerNorm"}
    tables = {name: np.asarray(part["embedding"]) for name, part in tables.items()}
    places = range_L
    if shape.position_offset:  # padding tokens are not counted, and have the row before the first
        is_word = graph("Not", graph("Equal", "input_ids", np.int64(shape.position_offset - 1)))
        is_word = graph("Cast", is_word, to=7)
        counted = graph("Mul", graph("CumSum", is_word, np.int64(1)), is_word)
        places = graph("Add", counted, np.int64(shape.position_offset - 1))
    x = graph("Gather", tables["word_embeddings"], "input_ids")
    x = graph("Add", x, graph("Gather", tables["position_embeddings"], places))
    if "token_type_embeddings" in tables:
        x = graph("Add", x, tables["token_type_embeddings"][0])
    epsilon, heads, width = shape.layer_norm_eps, shape.num_attention_heads, shape.hidden_size
    x = _norm(graph, params["embeddings"]["LayerNorm"], epsilon, x)
    biases = [hidden]
    if shape.relative_bias:
        most = shape.max_position_embeddings
        table_NH = np.asarray(params["relative_attention_bias"]["embedding"])
        by_distance = table_NH[np.asarray(bucket(np.arange(-most, most + 1)))]
        chosen = graph("Gather", by_distance, graph("Add", apart_LL, np.int64(most)))
        biases.append(graph("Transpose", chosen, perm=[2, 0, 1]))
    for i in range(shape.num_hidden_layers):
        part = params[f"layer_{i}"]
        q, k, v = (
            _heads(graph, _product(graph, part[f"attention_{name}"], x), heads, width)
            for name in ("query", "key", "value")
        )
        y = _attention(graph, q, k, v, biases, heads, width)
        y = graph("Add", x, _product(graph, part["attention_output"], y))
        x = _norm(graph, part["attention_LayerNorm"], epsilon, y)
        y = _activated(graph, shape.hidden_act, _product(graph, part["intermediate"], x))
        y = graph("Add", x, _product(graph, part["output"], y))
        x = _norm(graph, part["output_LayerNorm"], epsilon, y)
    return x


def _modernbert(
    graph: _Graph, shape: ModernBertShape, params: dict, hidden: str, apart_LL: str, range_L: str
) -> str:
    epsilon, heads, width = shape.layer_norm_eps, shape.num_attention_heads, shape.hidden_size
    words = np.asarray(params["embeddings"]["word_embeddings"]["embedding"])
    x = _norm(
        graph, params["embeddings"]["LayerNorm"], epsilon, graph("Gather", words, "input_ids")
    )
    far = graph("Greater", graph("Abs", apart_LL), np.int64(shape.window))
    far = graph("Mul", graph("Cast", far, to=1), UNSEEN)
    at_L1 = graph("Unsqueeze", graph("Cast", range_L, to=1), np.array([1]))
    angles = {}
    for is_local, theta in ((True, shape.local_theta), (False, shape.global_theta)):
        size = width // heads
        rates = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
        turned = graph("Mul", at_L1, rates[None])
        angles[is_local] = graph("Cos", turned), graph("Sin", turned)
    for i in range(shape.num_hidden_layers):
        part, is_local = params[f"layer_{i}"], shape.is_local[i]
        h = _norm(graph, part["attention_norm"], epsilon, x) if i else x
        qkv = _product(graph, part["attention_qkv"], h)
        q, k, v = (
            _heads(graph, _sliced(graph, qkv, n * width, width, 2), heads, width) for n in range(3)
        )
        q, k = (_rotated(graph, one, *angles[is_local], width // heads) for one in (q, k))
        y = _attention(graph, q, k, v, [hidden, far] if is_local else [hidden], heads, width)
        x = graph("Add", x, _product(graph, part["attention_output"], y))
        h = _product(graph, part["intermediate"], _norm(graph, part["mlp_norm"], epsilon, x))
        inner = shape.intermediate_size
        y = _activated(graph, shape.hidden_act, _sliced(graph, h, 0, inner, 2))
        y = graph("Mul", y, _sliced(graph, h, inner, inner, 2))
        x = graph("Add", x, _product(graph, part["output"], y))
    return _norm(graph, params["final_norm"], epsilon, x)


def _sliced(graph: _Graph, x: str, start: int, size: int, axis: int) -> str:
    return graph("Slice", x, np.array([start]), np.array([start + size]), np.array([axis]))


def _rotated(graph: _Graph, x: str, cos: str, sin: str, size: int) -> str:
    first, second = (_sliced(graph, x, start, size // 2, 3) for start in (0, size // 2))
    left = graph("Sub", graph("Mul", first, cos), graph("Mul", second, sin))
    right = graph("Add", graph("Mul", second, cos), graph("Mul", first, sin))
    return graph("Concat", left, right, axis=3)


def _activated(graph: _Graph, name: str, x: str) -> str:
    def gelu() -> str:
        erf = graph("Erf", graph("Mul", x, math.sqrt(0.5)))
        return graph("Mul", graph("Mul", x, 0.5), graph("Add", erf, 1.0))

    def gelu_of_tanh() -> str:
        cube = graph("Mul", graph("Mul", x, x), graph("Mul", x, 0.044715))
        inner = graph("Mul", graph("Add", x, cube), math.sqrt(2 / math.pi))
        return graph("Mul", graph("Mul", x, 0.5), graph("Add", graph("Tanh", inner), 1.0))

    kinds: dict[str, Callable[[], str]] = {
        "gelu": gelu,
        "gelu_new": gelu_of_tanh,
        "gelu_pytorch_tanh": gelu_of_tanh,
        "relu": lambda: graph("Relu", x),
        "tanh": lambda: graph("Tanh", x),
        "sigmoid": lambda: graph("Sigmoid", x),
        "silu": lambda: graph("Mul", x, graph("Sigmoid", x)),
        "identity": lambda: x,
    }
    return kinds[name]()


def _pooled(graph: _Graph, pooling: str, states: str, mask_BL: str, range_L: str) -> str:
    if pooling == "cls":
        return graph("Gather", states, np.int64(0), axis=1)
    mask_BL1 = graph("Unsqueeze", mask_BL, np.array([2]))
    at_L = graph("Add", graph("Cast", range_L, to=1), 1.0)
    if pooling == "max":
        hidden = graph("Mul", graph("Sub", 1.0, mask_BL1), UNSEEN)
        return graph("ReduceMax", graph("Add", states, hidden), axes=[1], keepdims=0)
    if pooling == "lasttoken":
        count_B1 = graph("ReduceSum", mask_BL, np.array([1]), keepdims=1)
        mask_BL1 = graph("Cast", graph("Equal", at_L, count_B1), to=1)
        mask_BL1 = graph("Unsqueeze", mask_BL1, np.array([2]))
    if pooling == "weightedmean":
        mask_BL1 = graph("Mul", mask_BL1, graph("Unsqueeze", at_L, np.array([1])))
    total = graph("ReduceSum", graph("Mul", states, mask_BL1), np.array([1]), keepdims=0)
    count = graph("ReduceSum", mask_BL1, np.array([1]), keepdims=0)
    count = graph("Sqrt", count) if pooling == "mean_sqrt_len_tokens" else count
    return graph("Div", total, count)
