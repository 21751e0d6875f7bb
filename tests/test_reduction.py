"""Vectors made narrower before an index is built of them, against plain NumPy: what it keeps, and
what the certificate says that it costs.
"""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import test_changed
import test_index_build
from prepared import WordEmbedder
from test_changed import NEW, PASSAGES, write_ids, write_tsv
from test_index_build import clusters, config_of, facts_of, nothing_left_over, write_embeddings

from dpr_jax import artifacts
from dpr_jax.config import IndexConfig
from dpr_jax.config_rules import validate
from dpr_jax.errors import InputError
from dpr_jax.index import update, worker
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import built_of, open_index
from dpr_jax.index.reduction import ReducedIndex, Reduction
from dpr_jax.workdir import RetrieverDir, WorkDir

embedder, built, changed = (  # fixtures
    test_changed.embedder,
    test_changed.built,
    test_changed.workdir,
)
retriever = test_index_build.retriever


def flat(count: int = 500, rank: int = 5, width: int = 24) -> np.ndarray:
    """Float32 vectors in an affine space of `rank` dimensions, far from the origin."""
    rng = np.random.default_rng(1)
    inside = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, width))
    return (inside + 30 * rng.normal(size=width)).astype(np.float32)


def asked(width: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, width)).astype(np.float32)


def best_rows(queries_QD: np.ndarray, emb_ND: np.ndarray, k: int) -> np.ndarray:
    scores_QN = queries_QD.astype(np.float64) @ emb_ND.T.astype(np.float64)
    return np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]


def search_of(reduction: Reduction, emb_ND: np.ndarray) -> ReducedIndex:
    return ReducedIndex(ExactIndex([reduction.passages(emb_ND)]), reduction)


def test_pca_is_that_of_an_svd() -> None:
    emb_ND = clusters().astype(np.float32)
    reduction = Reduction.learn([emb_ND], "pca", 6)
    centred_ND = emb_ND.astype(np.float64) - emb_ND.mean(axis=0, dtype=np.float64)
    _, singular_D, rows_DD = np.linalg.svd(centred_ND, full_matrices=False)
    np.testing.assert_allclose(reduction.mean_D, emb_ND.mean(axis=0), atol=1e-5)
    signs_R = np.sign((reduction.matrix_DR * rows_DD[:6].T).sum(axis=0))
    np.testing.assert_allclose(reduction.matrix_DR, rows_DD[:6].T * signs_R, rtol=0, atol=1e-5)
    kept = (singular_D[:6] ** 2).sum() / (singular_D**2).sum()
    assert reduction.settings["kept"] == pytest.approx(kept, abs=1e-5)


def test_nothing_is_lost_of_passages_that_lie_in_so_many_dimensions() -> None:
    """Far from the origin: without centring the mean would take a dimension, and centred questions
    would change the order.
    """
    emb_ND, queries_QD = flat(), asked(24)
    exact_QN = queries_QD.astype(np.float64) @ emb_ND.T.astype(np.float64)

    def lost(rows_QK: np.ndarray) -> float:
        """How far below the best the true scores of these rows are, place by place."""
        found_QK = np.take_along_axis(exact_QN, rows_QK, axis=1)
        return float((-np.sort(-exact_QN)[:, :20] - found_QK).max())

    index = search_of(Reduction.learn([emb_ND], "pca", 5), emb_ND)
    scores_QK, rows_QK = index.search(queries_QD, 20)
    rounding = 1e-5 * np.abs(exact_QN).max()  # of float32 products
    assert lost(rows_QK) < rounding
    wanted_QK = np.take_along_axis(exact_QN, rows_QK, axis=1)
    np.testing.assert_allclose(scores_QK, wanted_QK, rtol=0, atol=rounding)

    uncentred = np.linalg.svd(emb_ND, full_matrices=False)[2][:5].T
    assert lost(best_rows(queries_QD @ uncentred, emb_ND @ uncentred, 20)) > 0.1
    mean_D = emb_ND.mean(axis=0)
    assert lost(best_rows(queries_QD - mean_D, emb_ND - mean_D, 20)) > 0.1


@pytest.mark.parametrize("unit", [True, False])
def test_cut_vectors_are_those_of_matryoshka_training(unit: bool) -> None:
    emb_ND = clusters().astype(np.float32)
    if unit:
        emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    stored_ND = emb_ND.astype(np.float16)  # which moves lengths a little
    reduction = Reduction.learn([stored_ND], "truncate", 4)
    assert reduction.settings["unit"] is unit
    queries_QD, cut_ND = asked(16), stored_ND[:, :4].astype(np.float32)
    cut_QD = queries_QD[:, :4]
    if unit:
        cut_ND = cut_ND / np.linalg.norm(cut_ND, axis=1, keepdims=True)
        cut_QD = cut_QD / np.linalg.norm(cut_QD, axis=1, keepdims=True)
    scores_QK, rows_QK = search_of(reduction, stored_ND.astype(np.float32)).search(queries_QD, 10)
    wanted = np.take_along_axis(cut_QD @ cut_ND.T, rows_QK, axis=1)
    np.testing.assert_allclose(scores_QK, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        scores_QK, -np.sort(-(cut_QD @ cut_ND.T))[:, :10], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["pca", "truncate"])
def test_shards_do_not_show_and_it_comes_back_from_disk(kind: str, tmp_path: Path) -> None:
    emb_ND = clusters()
    one = Reduction.learn([emb_ND], kind, 7)
    one.write(np.array_split(emb_ND, 4), tmp_path)
    written_NR = np.load(tmp_path / "shard-00000-of-00001.npy")
    wanted_NR = one.passages(emb_ND.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(written_NR, wanted_NR)
    again = Reduction.load(tmp_path, one.settings)
    for before, after in zip(one[1:], again[1:], strict=True):
        np.testing.assert_array_equal(before, after)
    split = Reduction.learn(np.array_split(emb_ND, 4), kind, 7)
    np.testing.assert_array_equal(split.matrix_DR, one.matrix_DR)


def test_memory_is_that_of_a_block_and_not_of_the_corpus(tmp_path: Path) -> None:
    count, width = 500_000, 32
    file = tmp_path / "vectors.npy"
    shard = np.lib.format.open_memmap(file, "w+", np.float16, (count, width))
    shard[:] = 1
    shard[:, 0] = np.arange(count) % 7
    tracemalloc.start()
    reduction = Reduction.learn([shard], "pca", 16)
    reduction.write([shard], tmp_path / "reduced")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 4 * count * width  # half of one float32 copy


@pytest.mark.parametrize(
    ("kind", "reduction"),
    [("scann", "pca"), ("faiss", "truncate"), ("exact", "pca"), ("exact", "truncate")],
)
def test_the_certificate_is_against_exact_search_on_wholeclusters(
    retriever: RetrieverDir, kind: str, reduction: str
) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    config = config_of(kind, dimensions=10, reduction=reduction)
    validate(config)
    update.run(config, retriever)
    moved = retriever.root.parent / "elsewhere"
    retriever.current("index").rename(moved)
    facts = artifacts.read_json(moved / "index.json")
    assert facts["dimension"] == 16 and facts["settings"]["reduction"]["width"] == 16
    assert facts["settings"]["reduction"]["dimensions"] == 10
    has_matrix = {"projection.npy", "mean.npy"} <= {*facts["files"]}
    assert has_matrix == (reduction == "pca")

    index = open_index(moved)
    queries_QD = np.unique(np.linspace(0, 1999, 40).astype(int))
    queries_QD = clusters()[queries_QD].astype(np.float32)
    scores_QK, rows_QK = index.search(queries_QD, 100)
    wanted_QK = best_rows(queries_QD, clusters().astype(np.float32), 100)
    both = [len({*a} & {*b}) for a, b in zip(rows_QK, wanted_QK, strict=True)]
    assert facts["recall_at_100"] == pytest.approx(sum(both) / wanted_QK.size, abs=2e-3)
    assert 0.3 < facts["recall_at_100"] < 0.999
    if reduction == "pca":  # scores are those of whole vectors, but for what lies outside
        matrix_DR, mean_D = (np.load(moved / name) for name in ("projection.npy", "mean.npy"))
        emb_ND = clusters().astype(np.float32)
        out_ND, out_QD = (
            np.linalg.norm(part - part @ matrix_DR @ matrix_DR.T, axis=1)
            for part in (emb_ND - mean_D, queries_QD)
        )
        off_QK = scores_QK - np.take_along_axis(queries_QD @ emb_ND.T, rows_QK, axis=1)
        rounding = 2e-3 * np.abs(scores_QK).max()  # of float16
        assert (np.abs(off_QK) <= out_QD[:, None] * out_ND[rows_QK] + rounding).all()
    assert nothing_left_over(retriever)

    if has_matrix:
        content = bytearray((moved / "mean.npy").read_bytes())
        content[-1] ^= 1
        (moved / "mean.npy").write_bytes(content)
        with pytest.raises(InputError, match="mean.npy is damaged"):
            open_index(moved)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines at work in this process, which is faster."""
    verbs = {"build": worker._build, "ask": worker._ask, "sweep": worker._sweep}
    monkeypatch.setattr(worker, "_run", lambda job: verbs[job["verb"]](job))


def test_fewer_dimensions_cost_more(retriever: RetrieverDir, in_process: None) -> None:
    recalls = []
    for dimensions in (4, 8, 12, 15, None):
        update.run(config_of("exact", dimensions=dimensions), retriever)
        recalls.append(open_index(retriever.current("index")).recall_at_100)
    assert recalls == sorted(recalls) and recalls[-1] == 1.0
    assert recalls[0] < recalls[2]


def test_the_tuner_measures_on_wholeclusters(retriever: RetrieverDir, in_process: None) -> None:
    pytest.importorskip("faiss")
    write_embeddings(retriever, clusters(6000))
    settings = {"leaves": 60, "dimensions": 14}
    update.run(config_of("faiss", target_recall=0.6, **settings), retriever)
    facts = facts_of(retriever)
    assert 0.55 < facts["recall_at_100"] < 1
    assert facts["settings"]["leaves_to_search"] < 60
    # with all partitions searched, what is left is what the reduction costs
    with pytest.raises(InputError, match=r"reaches .* 0\.9999 .*index.dimensions"):
        update.run(config_of("faiss", target_recall=0.9999, **settings), retriever)
    assert nothing_left_over(retriever)


def test_settings_are_known_and_others_build_nothing_anew(
    retriever: RetrieverDir, in_process: None
) -> None:
    update.run(config_of("exact"), retriever)
    whole = retriever.current("index")
    assert "dimensions" not in facts_of(retriever)["made_from"]["settings"]
    update.run(config_of("exact", reduction="truncate"), retriever)  # of all dimensions
    assert retriever.current("index") == whole
    folders = {whole}
    for settings in ({"dimensions": 8}, {"dimensions": 8, "reduction": "truncate"}):
        update.run(config_of("exact", **settings), retriever)
        folders.add(retriever.current("index"))
    assert len(folders) == 3
    for wrong in (16, 17):
        with pytest.raises(InputError, match=f"dimensions is {wrong}; .* is 16, or None"):
            update.run(config_of("exact", dimensions=wrong), retriever)
    with pytest.raises(InputError, match="index.dimensions is 0"):
        validate(config_of("exact", dimensions=0))


@pytest.mark.parametrize("reduction", ["pca", "truncate"])
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_a_corpus_that_changes(changed: WorkDir, tmp_path: Path, kind: str, reduction: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    retriever = changed.retriever("trained")
    config = test_changed.store_recipe(
        retriever,
        index=IndexConfig(kind=kind, recall_queries=20, dimensions=30, reduction=reduction),
    )
    update.run(config, retriever)
    update.add(config, changed, write_tsv(tmp_path / "new.tsv", NEW))
    update.remove(config, changed, write_ids(tmp_path / "ids", "p0", "n1"))
    folder, facts = retriever.current("index"), facts_of(retriever)
    assert facts["settings"]["reduction"]["dimensions"] == 30 and facts["dimension"] == 64

    # what was added is made narrower by the projection that the others were made narrower by, and
    # all scores compare
    emb_ND = WordEmbedder().encode([(one.title, one.text) for one in PASSAGES + NEW])
    used = Reduction.load(built_of(folder)[0], facts["settings"]["reduction"])
    narrow_NR = used.passages(emb_ND.astype(np.float16).astype(np.float32))
    queries_QD = WordEmbedder().encode([one.text for one in NEW + PASSAGES])
    asked_QR, constant_Q = used.questions(queries_QD)
    all_QN = asked_QR @ narrow_NR.T + constant_Q[:, None]
    all_QN[:, [0, 41]] = -np.inf
    scores_QK, rows_QK = open_index(folder).search(queries_QD, 43)
    assert {*rows_QK[0].tolist()} == {*range(1, 41), 42, -1}
    np.testing.assert_allclose(scores_QK[:, :41], -np.sort(-all_QN)[:, :41], rtol=2e-2, atol=5e-3)

    update.rebalance(config, retriever)
    assert built_of(retriever.current("index")) == []
    update.add(config, changed, write_tsv(tmp_path / "more.tsv", [NEW[1]]))
    again = Path(shutil.move(changed.root, tmp_path / "elsewhere"))
    folder = WorkDir(again).retriever("trained").current("index")
    rows_QK = open_index(folder).search(queries_QD, 44)[1]
    assert rows_QK[1, 0] == 43 and not {0, 41} & {*rows_QK.ravel().tolist()}
