"""ScaNN: a folder that needs the package scann alone, in one index or in shards."""

import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export import checking
from dpr_jax.export.contract import Connection, Engine, Hit, Options
from dpr_jax.export.faiss_file import own_settings, scratch_vectors
from dpr_jax.export.numpy_files import read_ids, to_hits
from dpr_jax.export.source import Source
from dpr_jax.index import certificate, worker
from dpr_jax.index.embeddings import open_shards
from dpr_jax.index.engines import scann_index
from dpr_jax.index.open import Parts
from dpr_jax.index.sample import NOTHING

LOADER = "search.py"
_OUR_LOADER = Path(__file__).with_name("scann_search.py")
_NOT_OF_SCANN = ("index.json", "parts.json")
FACTS = "scann.json"


def _write(source: Source, folder: Path, options: Options) -> dict[str, Any]:
    """Writes the shards, each certified, and the loader; then certifies what the loader finds."""
    ends = np.linspace(0, source.count, options.shards + 1).astype(int).tolist()
    listed = []
    for number, (first, end) in enumerate(itertools.pairwise(ends)):
        name = f"shard-{number:03d}"
        done = folder / f"{name}.json"
        if not done.exists():
            whole = options.shards == 1
            artifacts.write_json(done, _shard(source, folder / name, range(first, end), whole))
        listed.append(artifacts.read_json(done) | {"folder": name, "first": first})
        say(
            f"export: {name}, {end - first:,} passages, recall@100"
            f" {listed[-1]['recall_at_100']:.4f}"
        )
    artifacts.write_json(folder / FACTS, listed)
    shutil.copyfile(_OUR_LOADER, folder / LOADER)
    merged = certify(folder)
    say(f"export: recall@100 of the folder, by {LOADER} in a fresh process: {merged:.4f}")
    return {"shards": len(listed), "recall_at_100": round(merged, 6)}


def _shard(source: Source, folder: Path, positions: range, whole: bool) -> dict[str, Any]:
    """Writes one index and returns what the loader should know of it, with its certificate."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scratch = scratch_vectors(source, folder.with_name("scratch"), positions)
    settings = own_settings(source, "scann") if whole else None
    if settings:
        say("export: the retriever's own ScaNN index")
        index = source.retriever.current("index")
        for path in index.iterdir():
            if path.is_file() and path.name not in _NOT_OF_SCANN:
                shutil.copyfile(path, folder / path.name)
    else:
        say(f"export: building ScaNN over {len(positions):,} passages, in memory meanwhile")
        settings = worker.build("scann", scratch, folder, _config(source, len(positions)))
    shards, asked = open_shards(scratch), checking.questions(source)

    def measure(queries_QD: np.ndarray) -> tuple[float, float]:
        return certificate.measure(
            folder, Parts("scann", settings), shards, queries_QD, gone_R=NOTHING
        )

    target = source.index.get("target_recall")
    if not whole and target and settings.get("leaves"):
        while measure(asked.tuning_QD)[0] < target and (more := _more(settings)) != settings:
            settings = more
    recall, queries_per_s = measure(asked.certificate_QD)
    shutil.rmtree(scratch)
    return {
        "count": len(positions),
        "search": settings.get("leaves_to_search"),
        "reorder": settings.get("reorder", 0),
        "leaves": settings.get("leaves"),
        "recall_at_100": round(recall, 6),
        "queries_per_s": queries_per_s,
    }


def _more(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings that find more: half as many leaves and candidates again."""
    most = {"leaves_to_search": settings["leaves"], "reorder": settings["count"]}
    more = {name: min(-(-3 * settings[name] // 2), most[name]) for name in most}
    return settings | more


def _config(source: Source, count: int) -> dict[str, Any]:
    """Returns the settings of one index: the tuned ones, with leaves in proportion to its rows."""
    config, tuned = source.config.index, source.index["settings"]
    config = dataclasses.replace(config, kind="scann")
    if source.index["kind"] == "scann" and "leaves" in tuned:
        share = count / source.count
        names = ("reorder", "dimensions_per_block", "soar_lambda", "reorder_dtype")
        config = dataclasses.replace(
            config,
            leaves=max(round(tuned["leaves"] * share), 1),
            leaves_to_search=max(round(tuned["leaves_to_search"] * share), 1),
            **{name: tuned[name] for name in names},
        )
    return dataclasses.asdict(config)


def certify(folder: Path) -> float:
    """Returns the recall of what the folder's own loader finds, in a process without dpr_jax."""
    _, k, right = checking.load(folder)
    code = (
        "import sys, numpy as np; sys.path.insert(0, '.'); import search;"
        "np.save(sys.argv[2], search.find(np.load(sys.argv[1]), int(sys.argv[3]))[1])"
    )
    with tempfile.TemporaryDirectory(prefix="dpr-export-") as name:
        rows = Path(name) / "rows.npy"
        questions = folder / checking.FOLDER / "questions.npy"
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, questions, rows, str(k)],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-1:])
            raise InputError(f"{folder / LOADER} failed in a fresh process: {last[:300]}")
        hits = to_hits(np.zeros(np.load(rows).shape), np.load(rows), read_ids(folder))
    return checking.recall([[hit.id for hit in one] for one in hits], right, k)


class _Folder(Connection):
    """The folder, searched by its own loader."""

    def __init__(self, folder: Path, facts: dict[str, Any], _: Options) -> None:
        super().__init__(folder, "ScaNN, by the loader of the folder")
        _require()
        self._loader = _loader(folder)
        self._exported = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if trees := [one for one in self._exported if one["leaves"]]:
            most = {"search": "leaves", "reorder": "count"}
            self.knobs = {name: max(one[name] for one in trees) for name in most}
            self.limits = {name: max(one[of] for one in trees) for name, of in most.items()}
        self._first = dict(self.knobs)
        self._ids = read_ids(folder)

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[Hit]]:
        """Searches; the knobs are the largest of the shards', and raise all in proportion."""
        for shard, exported in zip(self._loader.SHARDS, self._exported, strict=True):
            if exported["leaves"]:
                for name, value in self.knobs.items():
                    shard[name] = round(exported[name] * value / self._first[name])
                shard["search"] = min(shard["search"], exported["leaves"])
        scores_QK, rows_QK = self._loader.find(queries_QD, k)
        rows_QK = rows_QK.astype(np.int64)  # ScaNN's are uint32
        return to_hits(scores_QK, np.where(np.isneginf(scores_QK), -1, rows_QK), self._ids)


def _loader(folder: Path) -> ModuleType:
    """Imports the folder's search.py, if that is the one we write: no other code is run."""
    if (folder / LOADER).read_bytes() != _OUR_LOADER.read_bytes():
        raise InputError(f"{folder / LOADER} is of another version of dpr_jax; export again")
    spec = importlib.util.spec_from_file_location("exported_search", folder / LOADER)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the folder stays as it is
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def _require() -> None:
    if not scann_index.available():
        raise InputError("dpr export scann needs ScaNN; pip install scann (Linux on x86)")


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [
        f"dpr export check scann --out {out}",
        f"in Python, with scann alone: sys.path.insert(0, {str(out)!r}); import search",
    ]


ENGINE = Engine(_write, _Folder, _then, require=lambda _: _require())
