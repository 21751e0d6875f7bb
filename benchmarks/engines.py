"""Other ways to encode with the same model, for encode.py: each yields one engine per setting.

onnxruntime and OpenVINO run the graph of `dpr export model --as onnx`, on all cores the process
has. Tokens are made here, sorted by length and padded to the longest of a batch, as their users
would have it if they were engines of `dpr encode`. sentence-transformers and Representax are given
texts, as their users give them.

Representax pads every batch to one of a few lengths. It gets those of `dpr encode`, and the texts
sorted by length, as it does not sort them itself.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax.config import ModelConfig
from dpr_jax.export import model_onnx
from dpr_jax.export.model_tower import Tower
from dpr_jax.model import description, hf
from dpr_jax.model.embed import padded_length
from dpr_jax.model.tokenizer import Text, load

BATCH_TOKENS = 1024, 4096  # of a batch of onnxruntime and OpenVINO


class Engine(NamedTuple):
    """A way to encode: its name with its settings, and texts -> float32 vectors."""

    name: str
    encode: Callable[[list[Text]], np.ndarray]


def sentence_transformers(source: str, tokens: int, dtype: str) -> Iterator[Engine]:
    import sentence_transformers
    import torch

    model = sentence_transformers.SentenceTransformer(
        str(hf.resolve(source, "passage")),
        device="cpu",
        model_kwargs={"dtype": getattr(torch, dtype)},
    )
    model.max_seq_length = tokens

    def encode(texts: list[Text], batch_size: int) -> np.ndarray:
        emb_ND = model.encode(_joined(texts), batch_size=batch_size, convert_to_numpy=True)
        return emb_ND.astype(np.float32)

    for size in (8, 16, 32):
        yield Engine(
            f"sentence-transformers {dtype}, batches of {size}",
            lambda texts, size=size: encode(texts, size),
        )


def onnxruntime(source: str, tokens: int, dtype: str) -> Iterator[Engine]:
    if dtype != "float32":
        return  # it has no products in bfloat16 for x86
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    graph = _graph(source, tokens)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def compute(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(None, inputs)[0]

    name = f"onnxruntime {onnxruntime.__version__} {dtype}"
    yield from _of_graph(name, compute, source, tokens)


def openvino(source: str, tokens: int, dtype: str) -> Iterator[Engine]:
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    model = openvino.Core().compile_model(
        openvino.Core().read_model(_graph(source, tokens)),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        },
    )

    def compute(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return model(inputs)[0].copy()

    name = f"OpenVINO {openvino.__version__.split('-')[0]} {dtype}"
    yield from _of_graph(name, compute, source, tokens)


def representax(source: str, tokens: int, dtype: str) -> Iterator[Engine]:
    import jax.numpy as jnp
    from representax.integrations import load_sentence_transformer

    lengths = sorted({padded_length(one, 1 << 20) for one in range(1, tokens + 1)})
    model = load_sentence_transformer(
        str(hf.resolve(source, "passage")),
        local_files_only=True,
        parameter_dtype=jnp.dtype(dtype),  # float32 weights fail with products in bfloat16
        compute_dtype=jnp.dtype(dtype),
        sequence_length_buckets=[*(one for one in lengths if one < tokens), tokens],
    )

    def encode(texts: list[Text], batch_size: int) -> np.ndarray:
        joined = _joined(texts)
        order_N = np.argsort([-len(text) for text in joined], kind="stable")
        emb_ND = model.embed([joined[at] for at in order_N], batch_size=batch_size)
        return emb_ND[np.argsort(order_N)]

    for size in (8, 16, 32):
        yield Engine(
            f"Representax {dtype}, batches of {size}",
            lambda texts, size=size: encode(texts, size),
        )


def _joined(texts: list[Text]) -> list[str]:
    """Returns title and text of each as the packaged model's folder says."""
    return [" ".join(filter(None, text)) for text in texts]


def _graph(source: str, tokens: int) -> bytes:
    folder = hf.resolve(source, "passage")
    settings = description.read(folder, "passage", ModelConfig(max_passage_tokens=tokens))
    shape = hf.read_shape(folder)
    params = hf.read_params(folder, shape, settings.dense)
    with tempfile.TemporaryDirectory() as scratch:
        model_onnx.write(Path(scratch), "passage", Tower(folder, settings, shape, params))
        return (Path(scratch) / "model.onnx").read_bytes()


def _of_graph(
    name: str,
    compute: Callable[[dict[str, np.ndarray]], np.ndarray],
    source: str,
    tokens: int,
) -> Iterator[Engine]:
    folder = hf.resolve(source, "passage")
    settings = description.read(folder, "passage", ModelConfig(max_passage_tokens=tokens))
    tokenizer = load(folder, settings.max_tokens, settings.prompt)

    def encode(texts: list[Text], batch_tokens: int) -> np.ndarray:
        rows = tokenizer.rows(texts)
        order_N = np.argsort(-rows.lengths_N, kind="stable")
        found, done = [], 0
        while done < len(texts):
            longest = int(rows.lengths_N[order_N[done]])
            rows_B = order_N[done : done + max(1, batch_tokens // longest)]
            ids_BL, lengths_B = rows.padded(rows_B, len(rows_B), longest)
            mask_BL = np.arange(longest) < lengths_B[:, None]
            found.append(
                compute(
                    {
                        "input_ids": ids_BL.astype(np.int64),
                        "attention_mask": mask_BL.astype(np.int64),
                    }
                )
            )
            done += len(rows_B)
        return np.concatenate(found)[np.argsort(order_N)]

    for batch_tokens in BATCH_TOKENS:
        yield Engine(
            f"{name}, batches of {batch_tokens} tokens",
            lambda texts, batch_tokens=batch_tokens: encode(texts, batch_tokens),
        )


ENGINES = {
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "representax": representax,
}
