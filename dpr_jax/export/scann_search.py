"""Searches the index in this folder; needs the package scann alone.

search(queries, k) takes float32 vectors [Q, D] of the question encoder beside it, and returns for
each the k best passages, best first: a list of (score, {"id", "title", "text"}).
"""

import json
import pathlib

import numpy as np
import scann

HERE = pathlib.Path(__file__).parent
SHARDS = json.loads((HERE / "scann.json").read_text())  # {folder, first, count, search, reorder}
SEARCHERS = [
    scann.scann_ops_pybind.load_searcher(str(HERE / one["folder"]), assets_backcompat_shim=False)
    for one in SHARDS
]


def passage(position):
    number, at = divmod(int(position), 65536)
    places = np.load(HERE / f"passages-{number:05d}.npy", mmap_mode="r")
    with open(HERE / f"passages-{number:05d}.jsonl", "rb") as lines:
        lines.seek(int(places[at]))
        return json.loads(lines.readline())


def find(queries, k):
    found = []
    for shard, searcher in zip(SHARDS, SEARCHERS):
        rows, scores = searcher.search_batched(
            np.ascontiguousarray(queries, np.float32),
            final_num_neighbors=min(k, shard["count"]),
            pre_reorder_num_neighbors=max(min(k, shard["count"]), shard["reorder"]),
            leaves_to_search=shard["search"],
        )
        found.append((np.where(np.isnan(scores), -np.inf, scores), rows + shard["first"]))
    scores, rows = (np.concatenate(part, axis=1) for part in zip(*found))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # the shards' hits, merged
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def search(queries, k=20):
    return [
        [(float(score), passage(row)) for score, row in zip(*pair) if np.isfinite(score)]
        for pair in zip(*find(queries, k))
    ]
