"""NumPy: vectors in .npy files, and ids in their order."""

from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import progress
from dpr_jax.export.contract import Connection, Engine, Hit, Options
from dpr_jax.export.source import Source, parts
from dpr_jax.index.engines.exact import ExactIndex


def write_vectors(source: Source, folder: Path) -> list[Path]:
    """Writes vectors-00000.npy and so on, float16 [rows, D]; row i is line i of docid."""
    files = []
    with progress("export vectors", source.count, "vectors") as advance:
        for number, positions in enumerate(parts(source.count)):
            files.append(folder / f"vectors-{number:05d}.npy")
            if not files[-1].exists():
                with artifacts.atomic_file(files[-1]) as partial, partial.open("wb") as opened:
                    np.save(opened, source.vectors(positions))
            advance(len(positions))
    return files


def _write(source: Source, folder: Path, _: Options) -> dict[str, Any]:
    write_vectors(source, folder)
    return {"dtype": "float16"}


class _Files(Connection):
    """Exact search over the files."""

    def __init__(self, folder: Path, facts: dict[str, Any], _: Options) -> None:
        super().__init__(folder, "exact search over vectors-*.npy")
        files = sorted(name for name in facts["files"] if name.startswith("vectors-"))
        self._index = ExactIndex([np.load(folder / name, mmap_mode="r") for name in files])
        self._ids = read_ids(folder)

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[Hit]]:
        return to_hits(*self._index.search(queries_QD, k), self._ids)


def read_ids(folder: Path) -> list[str]:
    """Returns the ids of an export, in the order of its vectors."""
    return (folder / "docid").read_text(encoding="utf-8").split("\n")[:-1]


def to_hits(scores_QK: np.ndarray, rows_QK: np.ndarray, ids: list[str]) -> list[list[Hit]]:
    """Returns hits by id; row -1 is none."""
    return [
        [Hit(ids[row], score) for score, row in zip(scores_K, rows_K, strict=True) if row >= 0]
        for scores_K, rows_K in zip(scores_QK.tolist(), rows_QK.tolist(), strict=True)
    ]


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [f"dpr export check numpy --out {out}"]


ENGINE = Engine(_write, _Files, _then)
