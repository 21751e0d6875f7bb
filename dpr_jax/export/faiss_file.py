"""FAISS: one index file and the ids in its order, named as Pyserini's FaissSearcher reads them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export.contract import Engine, LocalConnection, Options
from dpr_jax.export.source import ExportSource, parts
from dpr_jax.index import worker
from dpr_jax.index.engines import faiss_index
from dpr_jax.index.engines.faiss_index import FaissIndex

FILE = "index"
_LIMITS = {"leaves_to_search": "leaves", "ef_search": "count", "reorder": "count"}


def _write(source: ExportSource, folder: Path, _: Options) -> dict[str, Any]:
    """Copies the retriever's own FAISS index, or builds one in a fresh process."""
    built, done = folder / "built", folder / "faiss.json"
    if done.exists():
        return {"settings": artifacts.read_json(done)}
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    settings = own_settings(source, "faiss")
    if settings:
        say("export: the retriever's own FAISS index, as it was certified")
        index = source.retriever.current("index")
        shutil.copyfile(index / "index.faiss", built / "index.faiss")
    else:
        say("export: building a FAISS index; it is held in memory meanwhile")
        config = dataclasses.asdict(source.config.index)
        with_vectors = scratch_vectors(source, folder / "scratch", range(source.count))
        settings = worker.build("faiss", with_vectors, built, config)
        shutil.rmtree(with_vectors)
    with artifacts.atomic_file(folder / FILE) as partial:
        (built / "index.faiss").rename(partial)
    shutil.rmtree(built)
    artifacts.write_json(done, settings)
    return {"settings": settings}


def _require(_: Options) -> None:
    if not faiss_index.available():
        raise InputError("dpr export faiss needs FAISS; pip install faiss-cpu")


def own_settings(source: ExportSource, kind: str) -> dict[str, Any] | None:
    """Returns the settings of the retriever's index if its files are what an export wants.

    They are where the engine is the one, vectors have their whole width, and no passage came or
    went.
    """
    facts = source.index
    whole = "reduction" not in facts["settings"] and not facts["built"]
    return facts["settings"] if facts["kind"] == kind and whole and source.is_unchanged else None


def scratch_vectors(source: ExportSource, folder: Path, positions: range) -> Path:
    """Writes the vectors at some positions as `worker.build` reads them; returns the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = []
    for number, part in enumerate(parts(len(positions))):
        files.append(folder / f"shard-{number:05d}.npy")
        block = range(positions.start + part.start, positions.start + part.stop)
        np.save(files[-1], source.vectors(block))
    origin = artifacts.made_from("vectors of an export", {}, {})
    artifacts.write_manifest(folder / "manifest.json", origin, files)
    return folder


class _File(LocalConnection):
    """The index file, opened."""

    def __init__(self, folder: Path, facts: dict[str, Any], _: Options) -> None:
        super().__init__(folder, "FAISS")
        _require(Options())
        import faiss

        self._index = FaissIndex(faiss.read_index(str(folder / FILE)), facts["settings"])
        self.knobs = {name: value for name, value in facts["settings"].items() if name in _LIMITS}
        self.limits = {name: facts["settings"][_LIMITS[name]] for name in self.knobs}

    def rows(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Searches with the knobs as they are."""
        self._index.settings.update(self.knobs)
        return self._index.search(queries_QD, k)


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [f"dpr export check faiss --out {out}"]


ENGINE = Engine(_write, _File, _then, require=_require)
