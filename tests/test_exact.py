"""Exact search against NumPy, on one device and on eight."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import hits
from dpr_jax.index.engines import exact
from dpr_jax.index.engines.exact import ExactIndex

ROOT = Path(__file__).parents[1]
# what each of several processes runs: every one asks, and keeps the answer and how many rows it
# read
SEARCH = """
import sys
from pathlib import Path
import jax
import numpy as np
from dpr_jax import joining
from dpr_jax.index import embeddings
from dpr_jax.index.engines.exact import ExactIndex

joining.initialize()
folder, read = Path(sys.argv[1]), embeddings.read_rows
rows_read = 0

def count_rows(shards, start, stop):
    global rows_read
    rows_read += stop - start
    return read(shards, start, stop)

embeddings.read_rows = count_rows
shards = [np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(3)]
index = ExactIndex(shards, devices=jax.devices(), block_rows=64)
scores_QK, rows_QK = index.search(np.load(folder / "queries.npy"), 50)
np.savez(folder / f"found-{jax.process_index()}", scores_QK, rows_QK, rows_read)
"""


def _brute_force(
    vectors_ND: np.ndarray, queries_QD: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    scores_QN = queries_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    rows_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, rows_QK, axis=1), rows_QK


def _vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)).astype(np.float16)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("block_rows", [7, 64, 4096])
def test_finds_what_numpy_finds(devices: int, block_rows: int) -> None:
    vectors_ND = _vectors(1003, 24)
    queries_QD = _vectors(9, 24, seed=1).astype(np.float32)
    index = ExactIndex(
        np.array_split(vectors_ND, 4),
        devices=jax.local_devices()[:devices],
        block_rows=block_rows,
    )
    scores_QK, rows_QK = index.search(queries_QD, 50)
    wanted_scores_QK, wanted_rows_QK = _brute_force(vectors_ND, queries_QD, 50)
    assert scores_QK.dtype == np.float32 and rows_QK.dtype == np.int64
    np.testing.assert_array_equal(rows_QK, wanted_rows_QK)
    np.testing.assert_allclose(scores_QK, wanted_scores_QK, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_scores_come_by_row(devices: int) -> None:
    # small whole numbers: many scores are equal, and all are exact
    vectors_ND = np.random.default_rng(0).integers(-1, 2, (500, 4)).astype(np.float16)
    queries_QD = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    index = ExactIndex([vectors_ND], devices=jax.local_devices()[:devices], block_rows=32)
    scores_QK, rows_QK = index.search(queries_QD, 120)
    wanted_scores_QK, wanted_rows_QK = _brute_force(vectors_ND, queries_QD, 120)
    np.testing.assert_array_equal(rows_QK, wanted_rows_QK)
    np.testing.assert_array_equal(scores_QK, wanted_scores_QK)


def test_two_processes_hold_half_the_rows_each_and_both_get_the_answer(
    tmp_path: Path,
) -> None:
    vectors_ND = _vectors(1003, 24)
    vectors_ND[700:900] = vectors_ND[:200]  # equal scores on both sides
    queries_QD = _vectors(9, 24, seed=1).astype(np.float32)
    for number, shard in enumerate(np.array_split(vectors_ND, 3)):
        np.save(tmp_path / f"{number}.npy", shard)
    np.save(tmp_path / "queries.npy", queries_QD)
    command = [str(ROOT / "launch" / "local.sh"), "-n", "2", "--cpu-devices", "2"]
    command += ["--log-dir", str(tmp_path / "logs"), "--"]
    result = subprocess.run(
        [*command, sys.executable, "-c", SEARCH, str(tmp_path)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    alone = ExactIndex([vectors_ND], devices=jax.local_devices()[:1], block_rows=64).search(
        queries_QD, 50
    )
    np.testing.assert_array_equal(alone[1], _brute_force(vectors_ND, queries_QD, 50)[1])
    rows_read = 0
    for number in range(2):
        with np.load(tmp_path / f"found-{number}.npz") as found:
            np.testing.assert_array_equal(found["arr_0"], alone[0])
            np.testing.assert_array_equal(found["arr_1"], alone[1])
            assert found["arr_2"] < 600  # about half of them
            rows_read += int(found["arr_2"])
    assert rows_read == len(vectors_ND)


def test_fewer_rows_than_k() -> None:
    scores_QK, rows_QK = ExactIndex([_vectors(3, 4)]).search(np.ones((2, 4)), 5)
    assert (rows_QK[:, 3:] == -1).all() and np.isneginf(scores_QK[:, 3:]).all()
    assert sorted(rows_QK[0, :3]) == [0, 1, 2]


def test_blocks_kept_on_the_device_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors_ND, queries_QD = _vectors(300, 8), _vectors(5, 8, seed=1)
    streamed = ExactIndex([vectors_ND], block_rows=16).search(queries_QD, 10)
    monkeypatch.setattr(exact, "_fits", lambda shards, devices: True)
    index = ExactIndex([vectors_ND], block_rows=16)
    for _ in range(2):  # the second search reads no file
        np.testing.assert_array_equal(index.search(queries_QD, 10)[1], streamed[1])


def test_many_queries_are_cut_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND, queries_QD = _vectors(100, 8), _vectors(21, 8, seed=1)
    monkeypatch.setattr(exact, "QUERIES_AT_ONCE", 8)
    rows_QK = ExactIndex([vectors_ND]).search(queries_QD, 3)[1]
    np.testing.assert_array_equal(rows_QK, _brute_force(vectors_ND, queries_QD, 3)[1])
    assert ExactIndex([vectors_ND]).search(queries_QD[:0], 3)[1].shape == (0, 3)


def test_unsound_input_is_refused() -> None:
    vectors_ND = _vectors(20, 4)
    index = ExactIndex([vectors_ND])
    with pytest.raises(InputError, match="width 4"):
        index.search(np.ones((1, 5)), 1)
    with pytest.raises(InputError, match="vector 1 holds NaN"):
        index.search(np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]), 1)
    vectors_ND[17, 2] = np.inf
    with pytest.raises(InputError, match="row 17 "):
        ExactIndex.build([vectors_ND[:10], vectors_ND[10:]], IndexConfig())
    with pytest.raises(InputError, match="not 0"):
        ExactIndex([vectors_ND[:0]])


def test_hits_in_order() -> None:
    scores_QK, rows_QK = hits.in_order(
        np.array([[1.0, np.nan, 2.0, 1.0]]),
        np.array([[9, 0, 4, 3]], np.uint32),
        np.array([[False, True, False, False]]),
    )
    assert rows_QK.tolist() == [[4, 3, 9, -1]]
    assert scores_QK.tolist() == [[2.0, 1.0, 1.0, -np.inf]]


@pytest.mark.parametrize("columns", [1024, 1000, 256])
def test_the_best_of_groups_are_those_of_all(columns: int) -> None:
    """Also among equals, of which the first stand first, and below minus infinity."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, (5, columns)).astype(np.float32)
    scores[1] = -np.inf
    scores[2, 7:] = -np.inf
    for k in (1, 5):
        found = jax.jit(exact.top_k_by_groups, static_argnums=1)(scores, k)
        for one, other in zip(found, jax.lax.top_k(scores, k), strict=True):
            np.testing.assert_array_equal(one, other)
