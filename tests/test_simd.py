"""ScaNN's kernels for AVX2: they run where the processor has it, find what those for SSE4 find, and
are left alone elsewhere.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpr_jax import host
from dpr_jax.config import IndexConfig
from dpr_jax.index.engines import simd
from dpr_jax.index.engines.scann_index import ScannIndex

scann = pytest.importorskip("scann")
LIBRARY = scann.scann_ops_pybind.scann_pybind.__file__
HERE = host.processor_features()
needs_avx2 = pytest.mark.skipif(not simd.NEEDED <= HERE, reason="no AVX2 here")


@pytest.fixture
def flag() -> Iterator[ctypes.c_bool]:
    """ScaNN's own; as it was after the test."""
    flag = ctypes.c_bool.in_dll(ctypes.CDLL(LIBRARY), simd.AVX2)
    before = flag.value
    yield flag
    flag.value = before


def _vectors(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(count, 64))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND.astype(np.float16)


@needs_avx2
def test_an_index_finds_the_same_with_either_kernels(tmp_path: Path, flag: ctypes.c_bool) -> None:
    config = IndexConfig(leaves=40, leaves_to_search=12, reorder=100, soar_lambda=1.5)
    vectors_ND = _vectors(4000)
    flag.value = False
    built = ScannIndex.build([vectors_ND], config)
    assert flag.value, "ScaNN would build with kernels for SSE4"
    built.save(tmp_path)
    queries_QD = vectors_ND[::20].astype(np.float32)
    found = []
    for avx2 in (True, False):
        index = ScannIndex.load(tmp_path, built.settings)
        flag.value = avx2
        found.append(index.search(queries_QD, 50))
    (scores_QK, rows_QK), (other_scores_QK, other_rows_QK) = found
    np.testing.assert_allclose(scores_QK, other_scores_QK, rtol=1e-5)
    assert (rows_QK == other_rows_QK).mean() > 0.999


def test_a_processor_without_avx2_is_not_asked_for_it(flag: ctypes.c_bool) -> None:
    flag.value = False
    assert not simd.use_avx2(LIBRARY, frozenset({"avx", "avx2"}))  # no fma
    assert not simd.use_avx2(LIBRARY, frozenset())
    assert not flag.value
    assert simd.use_avx2(LIBRARY, frozenset({"avx", "fma", "avx2"}))


def test_a_library_without_the_flag_is_left_alone() -> None:
    assert not simd.use_avx2(np.random.mtrand.__file__, simd.NEEDED)
