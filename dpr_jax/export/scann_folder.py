"""ScaNN: a folder that is searched without dpr_jax, in one index or in shards."""

import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export import checking, tower
from dpr_jax.export.contract import Engine, LocalConnection, Options
from dpr_jax.export.faiss_file import own_settings, scratch_vectors
from dpr_jax.export.folder import read_ids
from dpr_jax.export.source import ExportSource
from dpr_jax.index import certificate, hits, worker
from dpr_jax.index.embeddings import open_shards
from dpr_jax.index.engines import scann_index
from dpr_jax.index.open import Parts
from dpr_jax.index.sample import NOTHING

LOADER = "search.py"
_OUR_LOADER = Path(__file__).with_name("scann_search.py")
_NOT_OF_SCANN = ("index.json", "parts.json")
FACTS = "scann.json"
_LIMITS = {"leaves_to_search": "leaves", "reorder": "count"}  # of each setting, its largest


def _write(source: ExportSource, folder: Path, options: Options) -> dict[str, Any]:
    """Writes the shards, each certified, and the loader; then certifies what the loader finds."""
    tower.write_onnx(source, folder)
    ends = np.linspace(0, source.count, options.shards + 1).astype(int).tolist()
    listed = []
    for number, (first, end) in enumerate(itertools.pairwise(ends)):
        name = f"shard-{number:03d}"
        done = folder / f"{name}.json"
        if not done.exists():
            whole = options.shards == 1
            facts = _shard(source, folder / name, range(first, end), whole)
            artifacts.write_json(done, {"folder": name, "first": first} | facts)
        listed.append(artifacts.read_json(done))
        say(
            f"export: {name}, {end - first:,} passages, recall@100"
            f" {listed[-1]['recall_at_100']:.4f}"
        )
    artifacts.write_json(folder / FACTS, listed)
    shutil.copyfile(_OUR_LOADER, folder / LOADER)
    merged = certify(folder)
    say(f"export: recall@100 of the folder, by {LOADER} in a fresh process: {merged:.4f}")
    return {"shards": len(listed), "recall_at_100": round(merged, 6)}


def _shard(source: ExportSource, folder: Path, positions: range, whole: bool) -> dict[str, Any]:
    """Writes one index; returns its settings and its certificate."""
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
        **{name: settings.get(name) for name in ("leaves", "leaves_to_search")},
        "reorder": settings.get("reorder", 0),
        "recall_at_100": round(recall, 6),
        "queries_per_s": queries_per_s,
    }


def _more(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings that find more: half as many leaves and candidates again."""
    most = {"leaves_to_search": settings["leaves"], "reorder": settings["count"]}
    more = {name: min(-(-3 * settings[name] // 2), most[name]) for name in most}
    return settings | more


def _config(source: ExportSource, count: int) -> dict[str, Any]:
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
    """Returns the recall of what the folder's own loader finds, in a fresh process.

    Raises:
      InputError: the loader fails; its last line of output is in the message.
    """
    _, k, right = checking.load(folder)
    code = (
        "import json, sys, numpy as np; sys.path.insert(0, '.'); import search;"
        "print(json.dumps([[at for _, at in one] for one in search.find(np.load(sys.argv[1]),"
        " int(sys.argv[2]))]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, folder / checking.FOLDER / "questions.npy", str(k)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise InputError(f"{folder / LOADER} failed in a fresh process: {last[:300]}")
    ids = read_ids(folder)
    found = [[ids[at] for at in one] for one in json.loads(done.stdout.splitlines()[-1])]
    return checking.recall(found, right, k)


class _Folder(LocalConnection):
    """The shards, searched together."""

    def __init__(self, folder: Path, facts: dict[str, Any], _: Options) -> None:
        super().__init__(folder, "ScaNN")
        _require(Options())
        self._exported = artifacts.read_json(folder / FACTS)
        self._shards = [
            scann_index.ScannIndex.load(
                folder / one["folder"], {**one, "dimension": facts["width"]}
            )
            for one in self._exported
        ]
        if trees := [one for one in self._exported if one["leaves"]]:
            self.knobs = {name: max(one[name] for one in trees) for name in _LIMITS}
            self.limits = {name: max(one[of] for one in trees) for name, of in _LIMITS.items()}
        self._first = dict(self.knobs)

    def rows(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Searches; the knobs are the largest of the shards', and raise all in proportion."""
        found = []
        for shard, exported in zip(self._shards, self._exported, strict=True):
            if exported["leaves"]:
                for name, value in self.knobs.items():
                    wanted = round(exported[name] * value / self._first[name])
                    shard.settings[name] = min(wanted, exported[_LIMITS[name]])
            scores_QK, rows_QK = shard.search(queries_QD, k)
            found.append((scores_QK, np.where(rows_QK < 0, -1, rows_QK + exported["first"])))
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
        scores_QK, rows_QK = hits.in_order(scores, rows, rows < 0)
        return scores_QK[:, :k], rows_QK[:, :k]


def _require(_: Options) -> None:
    if not scann_index.available():
        raise InputError("dpr export scann needs ScaNN; pip install scann (Linux on x86)")
    for package in ("onnx", "onnxruntime"):  # for the question tower
        if importlib.util.find_spec(package) is None:
            raise InputError(f'dpr export scann needs {package}; pip install "dpr_jax[onnx]"')


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [
        f"dpr export check scann --out {out}",
        f"in Python: sys.path.insert(0, {str(out)!r}); import search; search.search(QUESTIONS)",
    ]


ENGINE = Engine(_write, _Folder, _then, require=_require)
