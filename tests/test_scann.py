"""ScaNN against exact search, and what would crash it or make it lie."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.engines.scann_index import ScannIndex

pytest.importorskip("scann")


def _clustered(count: int, width: int = 32) -> np.ndarray:
    """Unit vectors around a few dozen centres, as passages lie around subjects."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, width))
    vectors_ND = centres[rng.integers(0, 40, count)] + 0.6 * rng.normal(size=(count, width))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND.astype(np.float16)


@pytest.mark.parametrize("count", [1, 15, 700, 3000])
def test_agrees_with_exact_search(count: int) -> None:
    vectors_ND = _clustered(count)
    queries_QD = vectors_ND[:: max(1, count // 50)].astype(np.float32)
    index = ScannIndex.build([vectors_ND], IndexConfig())
    scores_QK, rows_QK = index.search(queries_QD, 10)
    wanted_QK, wanted_rows_QK = ExactIndex([vectors_ND]).search(queries_QD, 10)
    found = [len(set(a) & set(b)) for a, b in zip(rows_QK, wanted_rows_QK, strict=True)]
    assert np.mean(found) >= 0.95 * len(set(wanted_rows_QK[0]))
    np.testing.assert_allclose(scores_QK[:, 0], wanted_QK[:, 0], rtol=1e-5)
    assert (np.diff(scores_QK[:, : min(count, 10)], axis=1) <= 0).all()


def test_missing_hits_are_said_to_be_missing() -> None:
    config = IndexConfig(leaves=50, leaves_to_search=1)
    index = ScannIndex.build([_clustered(1200)], config)
    scores_QK, rows_QK = index.search(_clustered(3).astype(np.float32), 1500)
    missing_QK = rows_QK == -1
    assert rows_QK.shape == (3, 1500) and missing_QK.any(axis=1).all()
    assert np.isneginf(scores_QK[missing_QK]).all()
    assert np.isfinite(scores_QK[~missing_QK]).all()
    for rows_K in rows_QK:
        found = rows_K[rows_K >= 0]
        assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ({"soar_lambda": 1.5}, 1e-5),
        ({"reorder_dtype": "bfloat16"}, 0.01),
        ({"reorder_dtype": "int8"}, 0.02),
        ({"dimensions_per_block": 3}, 1e-5),
    ],
)
def test_options_keep_the_contract(options: dict[str, Any], rounding: float) -> None:
    vectors_ND = _clustered(2000)
    config = IndexConfig(leaves=30, leaves_to_search=20, **options)
    index = ScannIndex.build([vectors_ND], config)
    assert options.items() <= index.settings.items()
    queries_QD = vectors_ND[::50].astype(np.float32)
    scores_QK, rows_QK = index.search(queries_QD, 1900)
    wanted_QK, _ = ExactIndex([vectors_ND]).search(queries_QD, 20)
    np.testing.assert_allclose(scores_QK[:, :20], wanted_QK, atol=rounding)
    assert (rows_QK == -1).any()  # 20 leaves of 30 do not hold so many
    for rows_K in rows_QK:
        found = rows_K[rows_K >= 0]
        assert len(set(found)) == len(found)


def test_the_same_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    prints = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ScannIndex.build([_clustered(2000)], IndexConfig()).save(tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        prints.append([(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])
    assert prints[0] == prints[1]


def test_a_moved_folder_loads(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    index = ScannIndex.build([_clustered(1500)], IndexConfig(leaves=9))
    index.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = ScannIndex.load(tmp_path / "b", index.settings)
    queries_QD = _clustered(4).astype(np.float32)
    for got, wanted in zip(moved.search(queries_QD, 20), index.search(queries_QD, 20), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    index = ScannIndex.build([_clustered(50)], IndexConfig())
    index.save(tmp_path)
    (tmp_path / "scann_docids.pkl").write_bytes(b"")
    with pytest.raises(InputError, match="pickle"):
        ScannIndex.load(tmp_path, index.settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_rows_that_crash_it_are_refused(value: float) -> None:
    vectors_ND = _clustered(1200).astype(np.float32)
    vectors_ND[1100, 3] = value
    with pytest.raises(InputError, match="row 1,100 "):
        ScannIndex.build([vectors_ND], IndexConfig())


def test_queries_that_it_cannot_answer_are_refused() -> None:
    index = ScannIndex.build([_clustered(40)], IndexConfig())
    with pytest.raises(InputError, match="width 32"):
        index.search(np.ones((2, 31), np.float32), 3)
    with pytest.raises(InputError, match="NaN"):
        index.search(np.full((2, 32), np.nan, np.float32), 3)
    assert index.search(np.ones((0, 32), np.float32), 3)[1].shape == (0, 3)


@pytest.mark.parametrize("vectors_ND", [np.zeros((1200, 8)), np.ones((1200, 1))])
def test_equal_rows_do_no_harm(vectors_ND: np.ndarray) -> None:
    config = IndexConfig(leaves=2000, leaves_to_search=9999, dimensions_per_block=16)
    index = ScannIndex.build([vectors_ND.astype(np.float16)], config)
    scores_QK, rows_QK = index.search(vectors_ND[:2], 5)
    assert (rows_QK >= 0).all() and np.isfinite(scores_QK).all()
