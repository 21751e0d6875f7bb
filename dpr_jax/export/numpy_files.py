"""NumPy: vectors in .npy files, and ids in their order."""

from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax.export.contract import Engine, LocalConnection, Options
from dpr_jax.export.folder import write_parts
from dpr_jax.export.source import ExportSource
from dpr_jax.index.engines.exact import ExactIndex


def _write(source: ExportSource, folder: Path, _: Options) -> dict[str, Any]:
    """Writes vectors-00000.npy and so on, float16 [rows, D]; row i is line i of docid."""

    def write(path: Path, positions: range) -> None:
        with path.open("wb") as file:
            np.save(file, source.vectors(positions))

    return {"dtype": "float16", "vectors": write_parts(source, folder, "vectors-{:05d}.npy", write)}


class _Files(LocalConnection):
    """Exact search over the files."""

    def __init__(self, folder: Path, facts: dict[str, Any], _: Options) -> None:
        super().__init__(folder, "exact search over vectors-*.npy")
        shards = [np.load(folder / name, mmap_mode="r") for name in facts["vectors"]]
        self.rows = ExactIndex(shards).search


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [f"dpr export check numpy --out {out}"]


ENGINE = Engine(_write, _Files, _then)
