"""Embeddings on disk: reading those of the encoding stage, and writing some of their rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError

READ_ROWS = 65536
# ScaNN's tree build aborts the process near 1e20, where a float32 square overflows; float16 shards
# end at 65,504
LARGEST_VALUE = 1e9


def open_embeddings(folder: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Opens embeddings after checking every file against the manifest.

    Args:
      folder: holds manifest.json and the shards it lists.

    Returns:
      The shards in corpus order, memory-mapped, each float16 [rows, D]; and the manifest.

    Raises:
      InputError: a shard is missing or damaged, by name, or the shards are not what the manifest
        says.
    """
    manifest = artifacts.verify(folder / "manifest.json")
    shards = open_shards(folder)
    count = sum(len(shard) for shard in shards)
    if count != manifest["count"]:
        raise InputError(
            f"{folder} holds {count:,} vectors, its manifest says {manifest['count']:,}; delete the"
            " folder and run encode again"
        )
    return shards, manifest


def open_shards(folder: Path) -> list[np.ndarray]:
    """Opens the shards that a manifest lists, memory-mapped, without computing checksums again."""
    names = sorted(artifacts.read_json(folder / "manifest.json")["files"])
    shards = [name for name in names if name.endswith(".npy")]
    return [np.load(folder / name, mmap_mode="r") for name in shards]


def read_rows(shards: list[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Reads rows start..stop-1 of the corpus, from several shards: float16 [stop - start, D]."""
    parts, offset = [shards[0][:0]], 0
    for shard in shards:
        if offset < stop and start < offset + len(shard):
            parts.append(shard[max(start - offset, 0) : stop - offset])
        offset += len(shard)
    return np.concatenate(parts)


def pick_rows(shards: list[np.ndarray], rows_R: np.ndarray) -> np.ndarray:
    """Reads single rows of the corpus, in the order of `rows_R`: float32 [R, D]."""
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    picked_RD = np.empty((len(rows_R), shards[0].shape[1]), np.float32)
    for start, shard in zip(starts, shards, strict=False):
        here_R = (rows_R >= start) & (rows_R < start + len(shard))
        picked_RD[here_R] = shard[rows_R[here_R] - start]
    return picked_RD


def checked_blocks(shards: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the vectors in corpus order, in blocks: (first row, float32 [rows, D]).

    Raises:
      InputError: a row holds NaN, infinity or a huge number: such rows crash the engines or make
        them lie.
    """
    count = sum(len(shard) for shard in shards)
    for start in range(0, count, READ_ROWS):
        block_BD = read_rows(shards, start, min(start + READ_ROWS, count))
        block_BD = block_BD.astype(np.float32)
        good_B = (np.abs(block_BD) < LARGEST_VALUE).all(axis=1)  # false for NaN
        if not good_B.all():
            row = start + int(np.argmin(good_B))
            raise InputError(
                f"row {row:,} of the embeddings holds NaN, infinity or a number beyond"
                f" {LARGEST_VALUE:.0e}; delete the embeddings and encode again with a sound model"
            )
        yield start, block_BD


def as_float32(shards: list[np.ndarray]) -> np.ndarray:
    """Reads all vectors into one float32 array [N, D], checked by `checked_blocks`."""
    count = sum(len(shard) for shard in shards)
    vectors_ND = np.empty((count, shards[0].shape[1]), np.float32)
    for start, block_BD in checked_blocks(shards):
        vectors_ND[start : start + len(block_BD)] = block_BD
    return vectors_ND


def write_without(
    gone_R: np.ndarray, shards: list[np.ndarray], folder: Path
) -> tuple[Path, list[np.ndarray]]:
    """Writes embeddings without some rows.

    Args:
      gone_R: the rows, int64, ascending; not all.
      shards: all vectors, in corpus order.
      folder: does not exist yet.

    Returns:
      (folder, its shards, memory-mapped).
    """
    folder.mkdir()
    files, start = [], 0
    for number, shard in enumerate(shards):
        here_R = gone_R[(gone_R >= start) & (gone_R < start + len(shard))] - start
        start += len(shard)
        if len(here_R) < len(shard):
            files.append(folder / f"shard-{number:05d}.npy")
            np.save(files[-1], np.delete(shard, here_R, axis=0))
    origin = artifacts.made_from("live rows", {}, {})
    artifacts.write_manifest(folder / "manifest.json", origin, files)
    return folder, open_shards(folder)
