"""Exact search: every score computed, on the accelerators of one process or of several, block by
block.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import embeddings, hits
from dpr_jax.parallel import platform_of

# Vectors on a device at once: on a CPU a block's scores should stay in the cache, elsewhere few
# large steps are best.
BLOCK_ROWS = {"cpu": 8192}
BLOCK_ROWS_ACCELERATOR = 131072
QUERIES_AT_ONCE = 1024
GROUP = 128  # scores of which a TPU or GPU takes the largest first
SPLIT, WHOLE = PartitionSpec("rows"), PartitionSpec()


class ExactIndex:
    """All vectors, compared with every query: inner product in float32.

    Blocks of vectors are split over the devices; each device finds its own best k, and these are
    gathered and merged. Blocks stay on the devices when half of the free memory there holds them
    all; otherwise each search streams them from the memory-mapped files.

    With the devices of several processes, each process reads only the rows of its own devices, and
    `search` is a collective: all call it with the same queries and get the same answer.
    """

    def __init__(
        self,
        shards: list[np.ndarray],
        *,
        devices: list[jax.Device] | None = None,
        block_rows: int = 0,
    ) -> None:
        """Takes float16 or float32 shards [rows, D].

        Args:
          devices: None takes those of this process; `jax.devices()` those of all processes.
          block_rows: a device's share of a block; 0 chooses by platform.
        """
        devices = jax.local_devices() if devices is None else devices
        self.count = sum(len(shard) for shard in shards)
        if not 0 < self.count < 2**31:
            raise InputError(f"exact search holds 1 to {2**31 - 1:,} vectors, not {self.count:,}")
        self.dimension = shards[0].shape[1]
        self.settings: dict[str, Any] = {}
        default = default_block_rows(platform_of(devices))
        self._share_rows = min(block_rows or default, -(-self.count // len(devices)))
        self._shards = shards
        self._block_rows = self._share_rows * len(devices)
        self._mesh = Mesh(np.array(devices), ("rows",))
        self._stays = _fits(self._shards, devices)
        self._blocks: dict[int, jax.Array] = {}

    @classmethod
    def build(cls, shards: list[np.ndarray], config: IndexConfig) -> "ExactIndex":
        """Checks the vectors; there is nothing to compute ahead.

        Raises:
          InputError: a vector is not finite.
        """
        for _ in embeddings.checked_blocks(shards):
            pass
        return cls(shards)

    def save(self, folder: Path) -> None:
        """Copies the vectors into `folder`."""
        for number, shard in enumerate(self._shards):
            np.save(folder / f"vectors-{number:05d}.npy", shard)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> "ExactIndex":
        """Memory-maps what `save` wrote; `everywhere` in the settings is for all processes."""
        files = sorted(folder.glob("vectors-*.npy"))
        devices = jax.devices() if settings.get("everywhere") else None
        return cls([np.load(file, mmap_mode="r") for file in files], devices=devices)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k vectors of largest inner product; of equal ones the lower row is first.

        Args:
          queries_QD: float32.
          k: hits per query.

        Returns:
          (scores float32 [Q, k], rows int64 [Q, k]); where the corpus has fewer than k rows, score
          -inf and row -1.

        Raises:
          InputError: queries of another width, or not finite.
        """
        queries_QD = hits.check_queries(queries_QD, self.dimension)
        found = [
            self._search(queries_QD[start : start + QUERIES_AT_ONCE], k)
            for start in range(0, len(queries_QD), QUERIES_AT_ONCE)
        ]
        if not found:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, rows = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(rows).astype(np.int64)

    def _search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(queries_QD)
        # padded to a power of two, so that few shapes are compiled
        padding = (1 << (count - 1).bit_length()) - count
        queries = self._everywhere(np.pad(queries_QD, ((0, padding), (0, 0))))
        shape = (count + padding, k)
        best = (
            self._everywhere(np.full(shape, -np.inf, np.float32)),
            self._everywhere(np.full(shape, -1, np.int32)),
        )
        for start in range(0, self.count, self._block_rows):
            previous = best
            best = _merge_block(
                best,
                queries,
                self._block(start),
                start,
                self.count,
                mesh=self._mesh,
                **self.settings,
            )
            jax.block_until_ready(previous)  # or transfers run far ahead and fill memory
        scores_QK, rows_QK = jax.device_get(best)
        return scores_QK[:count], rows_QK[:count]

    def _everywhere(self, values: np.ndarray) -> jax.Array:
        whole = NamedSharding(self._mesh, WHOLE)
        return jax.make_array_from_callback(values.shape, whole, lambda at: values[at])

    def _block(self, start: int) -> jax.Array:
        if start in self._blocks:
            return self._blocks[start]

        def share(at: tuple[slice, slice]) -> np.ndarray:
            first = min(start + (at[0].start or 0), self.count)
            stop = min(first + self._share_rows, self.count)
            rows_BD = embeddings.read_rows(self._shards, first, stop)
            return np.pad(rows_BD, ((0, self._share_rows - len(rows_BD)), (0, 0)))

        # asks for the shares of this process's devices alone
        block = jax.make_array_from_callback(
            (self._block_rows, self.dimension),
            NamedSharding(self._mesh, SPLIT),
            share,
        )
        if self._stays:
            self._blocks[start] = block
        return block


def lower(
    devices: Sequence[jax.Device],
    *,
    queries: int,
    count: int,
    dimension: int,
    k: int,
) -> tuple[jax.stages.Lowered, int]:
    """Lowers the search of one block of float16 vectors, also over devices that are not here.

    Args:
      devices: of one platform, that all vectors are split over.
      queries: asked at once.
      count: vectors in all.
      dimension: of a vector.
      k: hits per query.

    Returns:
      The program, and how many blocks a search goes through.
    """
    mesh = Mesh(np.array(devices), ("rows",))
    share = min(default_block_rows(platform_of(devices)), -(-count // len(devices)))
    block = share * len(devices)

    def placed(dtype: type, spec: PartitionSpec, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    queries = 1 << (queries - 1).bit_length()
    lowered = _merge_block.lower(
        (placed(np.float32, WHOLE, queries, k), placed(np.int32, WHOLE, queries, k)),
        placed(np.float32, WHOLE, queries, dimension),
        placed(np.float16, SPLIT, block, dimension),
        0,
        count,
        mesh=mesh,
    )
    return lowered, -(-count // block)


def default_block_rows(platform: str) -> int:
    """Returns the default rows of a block per device."""
    return BLOCK_ROWS.get(platform, BLOCK_ROWS_ACCELERATOR)


@functools.partial(jax.jit, static_argnames="mesh")
def _merge_block(
    best: tuple[jax.Array, jax.Array],
    queries_QD: jax.Array,
    block_BD: jax.Array,
    start: int,
    count: int,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Merges the best k of earlier rows with the block that begins at row `start`.

    lax.top_k puts the lower index first among equals, and candidates stand in the order of their
    rows, so ties need no more care.
    """
    k = best[0].shape[1]
    on_cpu = platform_of(mesh.devices.reshape(-1)) == "cpu"
    top_k = jax.lax.top_k if on_cpu else top_k_by_groups

    def top_of_share(queries_QD: jax.Array, share_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = share_BD.shape[0]
        scores_QB = jnp.einsum(
            "qd,bd->qb",
            queries_QD,
            share_BD.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        first = start + jax.lax.axis_index("rows") * rows
        scores_QB = jnp.where(first + jnp.arange(rows) < count, scores_QB, -jnp.inf)
        top_QK, at_QK = top_k(scores_QB, min(k, rows))
        return top_QK, jnp.where(jnp.isneginf(top_QK), -1, first + at_QK)

    columns = PartitionSpec(None, "rows")
    top, rows = jax.shard_map(
        top_of_share, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=(columns, columns)
    )(queries_QD, block_BD)
    # each device needs every candidate now, and they are few
    candidates = [
        jax.lax.with_sharding_constraint(part, NamedSharding(mesh, WHOLE)) for part in (top, rows)
    ]
    scores = jnp.concatenate([best[0], candidates[0]], axis=1)
    rows = jnp.concatenate([best[1], candidates[1]], axis=1)
    best_QK, at_QK = jax.lax.top_k(scores, k)
    return best_QK, jnp.take_along_axis(rows, at_QK, axis=1)


def top_k_by_groups(scores_QB: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` that looks at the largest score of each group of columns first.

    The best k are in the k groups with the largest ones: each group before that of any other score
    has one as large, and stands before it where they are equal. So two searches of a few thousand
    take the place of one of a hundred thousand, which TPUs do by sorting.
    """
    queries, columns = scores_QB.shape
    groups = columns // GROUP
    if columns % GROUP or groups <= k:
        return jax.lax.top_k(scores_QB, k)
    scores_QGN = scores_QB.reshape(queries, groups, GROUP)
    _, best_QK = jax.lax.top_k(scores_QGN.max(axis=-1), k)
    best_QK = jnp.sort(best_QK, axis=1)  # candidates stay in the order of their rows
    candidates_QKN = jnp.take_along_axis(scores_QGN, best_QK[..., None], axis=1)
    rows_QKN = best_QK[..., None] * GROUP + jnp.arange(GROUP)
    top_QK, at_QK = jax.lax.top_k(candidates_QKN.reshape(queries, -1), k)
    return top_QK, jnp.take_along_axis(rows_QKN.reshape(queries, -1), at_QK, axis=1)


def _fits(shards: list[np.ndarray], devices: list[jax.Device]) -> bool:
    """Returns whether half of the free memory of the devices holds all vectors; never on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    free_bytes = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    return sum(shard.nbytes for shard in shards) / len(devices) < free_bytes / 2
