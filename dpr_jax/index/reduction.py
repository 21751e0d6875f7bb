"""Reduces vectors before an index is built of them.

Either by a projection learned on the corpus (PCA), or by taking the first numbers alone.

An index puts passages in the order of q·x, so only that order has to survive. With the corpus' mean
m and orthonormal columns P,

  q·x = q·m + q·(x - m)   is about   q·m + (Pᵀq)·(Pᵀ(x - m))

Passages are centred and questions are not: q·m is the same for every passage of a question, so no
dimension is spent on it, and adding it again gives back the scale of the scores. Centring the
questions as well would take m·(x - m) away, another number for every passage, and so change the
order. With all dimensions nothing changes but rounding; with fewer, P holds the directions in
which passages differ most (Jolliffe, 2002, Principal Component Analysis). Lengths are left alone:
what a projection loses of a unit vector is lost, not made up for.

Cut vectors are those of Matryoshka training (Kusupati et al., 2022, arXiv 2205.13147), which scales
them to unit length again where whole ones have it; so does this.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.index import embeddings, hits

Kind = Literal["pca", "truncate"]

LEARNED_FROM_ROWS = 100_000
LEARNED_ROWS_AT_ONCE = 16384
UNIT_WITHIN = 2e-3  # float16 moves the length of a unit vector by less
_FILES = ("projection.npy", "mean.npy")


class Reduction(NamedTuple):
    """Reduces the vectors of passages and questions from width D to width R.

    Attributes:
      settings: what `load` needs again, to be kept by the caller: JSON values. kind; width, that is
        D; dimensions, that is R; kept, of PCA, the share of the corpus' variance; unit, of cut
        vectors, whether they are scaled to unit length.
      matrix_DR: float32, orthonormal columns; empty where vectors are cut.
      mean_D: float32, of the passages; empty where vectors are cut.
    """

    settings: dict[str, Any]
    matrix_DR: np.ndarray
    mean_D: np.ndarray

    @classmethod
    def learn(cls, shards: list[np.ndarray], kind: Kind, dimensions: int) -> "Reduction":
        """Learns on passages evenly spaced over the corpus, at most 100,000, a part of them in
        memory at a time.

        Args:
          shards: the vectors in corpus order, float16 or float32 [rows, D].
          kind: pca, or truncate.
          dimensions: R, from 1 to D - 1.

        Raises:
          InputError: there are not so many dimensions, or a vector is not finite.
        """
        count, width = sum(map(len, shards)), shards[0].shape[1]
        if not 0 < dimensions < width:
            raise InputError(
                f"index.dimensions is {dimensions}; it must be smaller than the width of the"
                f" vectors, which is {width}, or None for all"
            )
        for _ in embeddings.checked_blocks(shards):
            pass
        rows_S = np.unique(
            np.linspace(0, count - 1, min(count, LEARNED_FROM_ROWS)).astype(np.int64)
        )
        settings: dict[str, Any] = {"kind": kind, "width": width}
        settings["dimensions"] = dimensions
        if kind == "truncate":
            settings["unit"] = _all_unit(shards, rows_S)
            nothing = np.zeros(0, np.float32)
            return cls(settings, nothing, nothing)
        mean_D, covariance_DD = _moments(shards, rows_S)
        variance_D, directions_DD = np.linalg.eigh(covariance_DD)  # ascending
        matrix_DR = directions_DD[:, : -dimensions - 1 : -1]
        # a direction has two signs, of which LAPACKs give either
        largest_R = np.abs(matrix_DR).argmax(axis=0)
        matrix_DR = matrix_DR * np.sign(matrix_DR[largest_R, np.arange(dimensions)])
        whole = max(variance_D.sum(), np.finfo(np.float64).tiny)
        settings["kept"] = round(float(variance_D[-dimensions:].sum() / whole), 6)
        return cls(settings, matrix_DR.astype(np.float32), mean_D.astype(np.float32))

    @property
    def dimensions(self) -> int:
        """Returns R, the width of the reduced vectors."""
        return self.settings["dimensions"]

    def describe(self) -> str:
        """Describes the reduction in words."""
        of = f"{self.dimensions} of {self.settings['width']} dimensions"
        if self.settings["kind"] == "pca":
            return f"{of} by PCA, which hold {self.settings['kept']:.1%} of the variance"
        scaled = ", scaled to unit length" if self.settings["unit"] else ""
        return f"the first {of}{scaled}"

    def passages(self, emb_BD: np.ndarray) -> np.ndarray:
        """Reduces passages: float32 [B, D] -> float32 [B, R]."""
        if self.settings["kind"] == "pca":
            return (emb_BD - self.mean_D) @ self.matrix_DR
        return self._cut(emb_BD)

    def questions(self, queries_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reduces questions: float32 [Q, D] -> (float32 [Q, R], float32 [Q] to be added to every
        score of a question)."""
        if self.settings["kind"] == "pca":
            return queries_QD @ self.matrix_DR, queries_QD @ self.mean_D
        return self._cut(queries_QD), np.zeros(len(queries_QD), np.float32)

    def _cut(self, emb_BD: np.ndarray) -> np.ndarray:
        cut_BR = np.ascontiguousarray(emb_BD[:, : self.dimensions])
        if not self.settings["unit"]:
            return cut_BR
        length_B1 = np.linalg.norm(cut_BR, axis=1, keepdims=True)
        return cut_BR / np.maximum(length_B1, 1e-12)

    def save(self, folder: Path) -> None:
        """Writes projection.npy and mean.npy; vectors that are only cut need neither."""
        if self.settings["kind"] == "pca":
            for name, array in zip(_FILES, self[1:], strict=True):
                np.save(folder / name, array)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "Reduction":
        """Opens what `save` wrote."""
        if settings["kind"] == "truncate":
            nothing = np.zeros(0, np.float32)
            return cls(settings, nothing, nothing)
        return cls(settings, *(np.load(folder / name) for name in _FILES))

    def write(self, shards: list[np.ndarray], folder: Path) -> None:
        """Writes the passages' vectors, made narrower, as embeddings in a folder of their own.

        The reduction lies with them, for `carry`. Blocks pass one at a time: float16 [rows, R].

        Raises:
          InputError: a vector is not finite, or is too large for float16 when it is narrower.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "shard-00000-of-00001.npy"
        shape = (sum(map(len, shards)), self.dimensions)
        emb_NR = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        for start, block_BD in embeddings.checked_blocks(shards):
            narrow_BR = self.passages(block_BD)
            if np.abs(narrow_BR).max(initial=0) > np.finfo(np.float16).max:
                raise InputError(
                    f"row {start} or one of the {len(block_BD) - 1} after it has a number beyond"
                    f" float16's {np.finfo(np.float16).max} in {self.dimensions} dimensions; set"
                    " index.dimensions to None"
                )
            emb_NR[start : start + len(block_BD)] = narrow_BR
        emb_NR.flush()
        self.save(folder)
        artifacts.write_manifest(
            folder / "manifest.json",
            artifacts.made_from("reduced vectors", {}, {}),
            [file],
            count=len(emb_NR),
            width=self.dimensions,
            reduction=self.settings,
        )


def carry(vectors: Path, folder: Path) -> dict[str, Any]:
    """Copies the reduction of embeddings, if any, to the index that was built of them.

    Returns:
      What belongs into the settings of the index: {"reduction": its settings}, or nothing.
    """
    settings = artifacts.read_json(vectors / "manifest.json").get("reduction")
    if settings is None:
        return {}
    for name in _FILES:
        if (vectors / name).exists():
            shutil.copyfile(vectors / name, folder / name)
    return {"reduction": settings}


class ReducedIndex:
    """An index of narrower vectors that is asked with whole ones.

    Attributes:
      settings: those of the index behind it; what changes in them holds for the next search.
    """

    def __init__(self, index: Any, reduction: Reduction) -> None:
        self.settings = index.settings
        self.count, self.dimension = index.count, reduction.settings["width"]
        self._index, self._reduction = index, reduction

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best hits; see `ExactIndex.search`.

        Scores are about those of whole vectors; of cut ones, those that training computed.
        """
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        queries_QR, constant_Q = self._reduction.questions(queries_QD)
        scores_QK, rows_QK = self._index.search(queries_QR, k)
        return scores_QK + constant_Q[:, None], rows_QK


def _all_unit(shards: list[np.ndarray], rows_S: np.ndarray) -> bool:
    return all(
        (np.abs(np.linalg.norm(part_BD, axis=1) - 1) < UNIT_WITHIN).all()
        for part_BD in _parts(shards, rows_S)
    )


def _moments(shards: list[np.ndarray], rows_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean [D] and covariance [D, D] of the rows, in float64."""
    width = shards[0].shape[1]
    sum_D, square_DD = np.zeros(width), np.zeros((width, width))
    for part_BD in _parts(shards, rows_S):
        part_BD = part_BD.astype(np.float64)
        sum_D += part_BD.sum(axis=0)
        square_DD += part_BD.T @ part_BD
    mean_D = sum_D / len(rows_S)
    return mean_D, square_DD / len(rows_S) - np.outer(mean_D, mean_D)


def _parts(shards: list[np.ndarray], rows_S: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows in parts: float32."""
    for start in range(0, len(rows_S), LEARNED_ROWS_AT_ONCE):
        at_B = rows_S[start : start + LEARNED_ROWS_AT_ONCE]
        yield embeddings.pick_rows(shards, at_B)
