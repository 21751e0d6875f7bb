"""FAISS against exact search."""

from pathlib import Path

import numpy as np
import pytest

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.engines.faiss_index import FaissIndex

pytest.importorskip("faiss")


def _vectors(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 16)).astype(np.float16)


@pytest.mark.parametrize("count", [1, 900, 6000])
def test_agrees_with_exact_search(count: int, tmp_path: Path) -> None:
    vectors_ND = _vectors(count)
    queries_QD = vectors_ND[:30].astype(np.float32)
    built = FaissIndex.build([vectors_ND], IndexConfig(leaves=40, leaves_to_search=40))
    built.save(tmp_path)
    index = FaissIndex.load(tmp_path, built.settings)
    scores_QK, rows_QK = index.search(queries_QD, 10)
    wanted_QK, wanted_rows_QK = ExactIndex([vectors_ND]).search(queries_QD, 10)
    np.testing.assert_array_equal(rows_QK, wanted_rows_QK)
    np.testing.assert_allclose(scores_QK, wanted_QK, rtol=1e-5, atol=1e-5)


def test_missing_hits_are_said_to_be_missing(tmp_path: Path) -> None:
    config = IndexConfig(leaves=100, leaves_to_search=1)
    built = FaissIndex.build([_vectors(6000)], config)
    built.save(tmp_path)
    index = FaissIndex.load(tmp_path, built.settings)
    scores_QK, rows_QK = index.search(_vectors(3).astype(np.float32), 1000)
    missing_QK = rows_QK == -1
    assert missing_QK.any(axis=1).all() and not missing_QK[:, 0].any()
    assert np.isneginf(scores_QK[missing_QK]).all()
    assert np.isfinite(scores_QK[~missing_QK]).all()


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("flat", {}),
        ("ivf_flat", {"leaves_to_search": 20}),
        ("ivf_pq", {"leaves_to_search": 20, "reorder": 1000}),
        ("hnsw", {"ef_search": 400}),
        ("PCA8,IVF10,Flat", {"leaves_to_search": 10}),
    ],
)
def test_named_and_own_factories(name: str, knobs: dict[str, int], tmp_path: Path) -> None:
    vectors_ND = _vectors(2000)
    config = IndexConfig(faiss=name, leaves=20, **knobs)
    built = FaissIndex.build([vectors_ND[:700], vectors_ND[700:]], config)
    assert knobs.items() <= built.settings.items()
    assert set(built.settings) - {"count", "dimension", "factory", "leaves"} == set(knobs)
    built.save(tmp_path)
    index = FaissIndex.load(tmp_path, built.settings)
    queries_QD = vectors_ND[:40].astype(np.float32)
    wanted_QK = ExactIndex([vectors_ND]).search(queries_QD, 10)[1]

    def found() -> float:
        rows_QK = index.search(queries_QD, 10)[1]
        pairs = zip(rows_QK, wanted_QK, strict=True)
        return sum(len(set(a) & set(b)) for a, b in pairs) / wanted_QK.size

    assert found() >= (0.3 if name.startswith("PCA") else 0.97)
    if "leaves_to_search" in knobs:  # holds for the next search
        most = found()
        index.settings["leaves_to_search"] = 1
        assert found() < most


@pytest.mark.parametrize("name", ["IVFx", "PQ7", "IVF{lists},Flat", "PCA99,Flat"])
def test_a_factory_that_makes_nothing_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="index.faiss is .* of width 16") as error:
        FaissIndex.build([_vectors(500)], IndexConfig(faiss=name))
    assert "\n" not in str(error.value)


def test_unsound_rows_are_refused() -> None:
    vectors_ND = _vectors(100)
    vectors_ND[60] = np.nan
    with pytest.raises(InputError, match="row 60 "):
        FaissIndex.build([vectors_ND[:50], vectors_ND[50:]], IndexConfig())
