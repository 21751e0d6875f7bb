"""Searches this folder with numpy, onnxruntime, scann and tokenizers; dpr_jax is not needed.

search(["which river flows through Paris?"], k=5) returns the best passages of each question:
[(score, {"id": ..., "title": ..., "text": ...}), ...], best first.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import scann
import tokenizers

HERE = Path(__file__).parent
SHARDS = json.loads((HERE / "scann.json").read_text())
PROMPT = json.loads((HERE / "question_onnx/encoder.json").read_text(encoding="utf-8"))["prompt"]
TOKENIZER = tokenizers.Tokenizer.from_file(str(HERE / "question_onnx/tokenizer.json"))
ENCODER = onnxruntime.InferenceSession(HERE / "question_onnx/model.onnx")
OPEN = scann.scann_ops_pybind.load_searcher
SEARCHERS = [OPEN(str(HERE / one["folder"]), assets_backcompat_shim=False) for one in SHARDS]
PLACES, LINES = np.load(HERE / "passages.npy", "r"), np.memmap(HERE / "passages.jsonl", mode="r")


def encode(questions):  # -> float32 [Q, D]
    rows = TOKENIZER.encode_batch([PROMPT + text.replace("’", "'") for text in questions])
    ids, mask = np.array([(row.ids, row.attention_mask) for row in rows]).transpose(1, 0, 2)
    return ENCODER.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def find(vectors, k):  # -> for each vector the k best of all shards: [(score, line), ...]
    found = [[] for _ in vectors]
    for one, searcher in zip(SHARDS, SEARCHERS):
        most = max(k, one["reorder"])
        lines, scores = searcher.search_batched(vectors, k, most, one["leaves_to_search"])
        for hits, *pair in zip(found, scores.tolist(), (lines + one["first"]).tolist()):
            hits += [hit for hit in zip(*pair) if hit[0] == hit[0]]  # a score of NaN is no hit
    return [sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k] for hits in found]


def passage(at):
    return json.loads(LINES[PLACES[at] : PLACES[at + 1]].tobytes())


def search(questions, k=5):
    return [[(score, passage(at)) for score, at in hits] for hits in find(encode(questions), k)]
