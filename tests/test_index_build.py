"""The index stage: engine chosen, built aside, moved, certified in a fresh process, index.json
last.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest
from prepared import prepare
from vectors import names_in, new_retriever, with_recipe, write_vectors

from dpr_jax import artifacts
from dpr_jax.config import Config, IndexConfig, ModelConfig
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError
from dpr_jax.index import build, defaults, update, worker
from dpr_jax.index.engines import faiss_index, scann_index
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import MANIFEST, Parts, built_of, open_index
from dpr_jax.model.embed import load_embedder
from dpr_jax.workdir import RetrieverDir

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = "packaged:all-MiniLM-L6-v2"


def clusters(count: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 16))
    vectors_ND = centres[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, 16))
    return vectors_ND.astype(np.float16)


def write_embeddings(retriever: RetrieverDir, vectors_ND: np.ndarray) -> Path:
    return write_vectors(retriever, np.array_split(vectors_ND, 3))


@pytest.fixture
def retriever(tmp_path: Path) -> RetrieverDir:
    retriever = new_retriever(tmp_path / "work")
    write_embeddings(retriever, clusters())
    return retriever


def config_of(kind: str, **changes: float | str | None) -> Config:
    return Config(index=IndexConfig(kind=kind, recall_queries=40, **changes))


def facts_of(retriever: RetrieverDir) -> dict:
    return artifacts.read_json(retriever.current("index") / MANIFEST)


def nothing_left_over(retriever: RetrieverDir) -> bool:
    return all(
        name == "retriever.json" or name.count("-") == 1 and "." not in name
        for name in names_in(retriever.home)
    )


@pytest.mark.parametrize("kind", ["scann", "faiss", "exact"])
def test_builds_a_movable_index_and_measures_it(retriever: RetrieverDir, kind: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    update.run(config_of(kind), retriever)
    facts = facts_of(retriever)
    assert facts["kind"] == kind and facts["count"] == 2000
    assert facts["dimension"] == 16 and facts["metric"] == "inner_product"
    assert facts["recall_at_100"] >= (0.9 if kind == "scann" else 1.0)
    assert facts["made_from"]["stage"] == "index" and facts["files"]
    assert facts["queries_per_s"] > 0
    assert facts["recall_queries"] == 40 and "corpus" in facts["recall_queries_from"]

    moved = retriever.root.parent / "elsewhere"
    retriever.current("index").rename(moved)
    index = open_index(moved)
    queries_QD = clusters()[::100].astype(np.float32)
    wanted_QK, _ = ExactIndex([clusters()]).search(queries_QD, 5)
    np.testing.assert_allclose(index.search(queries_QD, 5)[0], wanted_QK, rtol=1e-5)
    assert index.passage_fingerprint == "a model" and index.count == 2000
    assert nothing_left_over(retriever)


def test_recall_is_what_a_weak_index_deserves(retriever: RetrieverDir) -> None:
    pytest.importorskip("scann")
    update.run(config_of("scann", leaves=100, leaves_to_search=1), retriever)
    index = open_index(retriever.current("index"))
    sample_Q = np.unique(np.linspace(0, 1999, 40).astype(int))
    queries_QD = clusters()[sample_Q].astype(np.float32)
    found_QK = index.search(queries_QD, 100)[1]
    wanted_QK = ExactIndex([clusters()]).search(queries_QD, 100)[1]
    both = [len(set(a) & set(b)) for a, b in zip(found_QK, wanted_QK, strict=True)]
    assert index.recall_at_100 == pytest.approx(sum(both) / wanted_QK.size, abs=1e-3)
    assert index.recall_at_100 < 0.9


def test_equal_passages_do_not_lower_recall(retriever: RetrieverDir) -> None:
    pytest.importorskip("scann")
    write_embeddings(retriever, np.tile(clusters(4), (500, 1)))
    update.run(config_of("scann", leaves=2), retriever)
    assert open_index(retriever.current("index")).recall_at_100 == 1.0


def test_fewer_passages_than_recall_looks_at(retriever: RetrieverDir) -> None:
    write_embeddings(retriever, clusters(30))
    update.run(config_of("faiss"), retriever)
    index = open_index(retriever.current("index"))
    assert index.recall_at_100 == 1.0
    scores_QK, rows_QK = index.search(clusters(2).astype(np.float32), 40)
    assert (rows_QK[:, 30:] == -1).all() and np.isneginf(scores_QK[:, 30:]).all()


def test_a_finished_index_is_not_built_again(
    retriever: RetrieverDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    update.run(config_of("faiss"), retriever)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "build", lambda *_: pytest.fail("built again"))
        update.run(config_of("faiss"), retriever)
        # a setting of another engine is none of this one's
        update.run(config_of("faiss", dimensions_per_block=7), retriever)
    write_embeddings(retriever, clusters(500))
    update.run(config_of("faiss"), retriever)
    assert open_index(retriever.current("index")).count == 500


def write_questions(retriever: RetrieverDir, model: str = "a model") -> None:
    questions_QD = (clusters(2000)[::5] + clusters(2000)[1::5]).astype(np.float16)
    write_vectors(retriever, [questions_QD], stage="questions/dev", model=model)


def test_a_target_is_reached_with_questions_and_other_questions_certify_it(
    retriever: RetrieverDir,
) -> None:
    pytest.importorskip("faiss")
    write_embeddings(retriever, clusters(6000))
    write_questions(retriever)
    settings = {"target_recall": 0.9, "queries": "dev", "leaves": 60}
    update.run(config_of("faiss", **settings), retriever)
    folder = retriever.current("index")
    facts = artifacts.read_json(folder / "index.json")
    assert facts["recall_queries_from"] == "question vectors of dev"
    assert facts["recall_queries"] == 40 and facts["tuning_queries"] == 360
    assert facts["target_recall"] == 0.9 and 0.87 < facts["recall_at_100"] < 1
    reached = [
        point["leaves_to_search"]
        for point in facts["tried"]
        if point["recall_at_100"] - point["standard_error"] >= 0.9
    ]
    assert facts["settings"]["leaves_to_search"] in reached
    assert facts["settings"] == artifacts.read_json(folder / "parts.json")["settings"]

    # the same files and another setting at search time are another index to those who search it
    before = artifacts.fingerprint(folder / "index.json")
    update.run(config_of("faiss", **settings | {"leaves_to_search": 60}), retriever)
    assert artifacts.fingerprint(retriever.current("index") / "index.json") != before
    assert open_index(retriever.current("index")).recall_at_100 == 1.0
    assert artifacts.fingerprint(folder / "index.json") == before


def test_a_target_out_of_reach_leaves_the_old_index(retriever: RetrieverDir) -> None:
    pytest.importorskip("scann")
    update.run(config_of("exact"), retriever)
    hopeless = {"target_recall": 0.99, "leaves": 100, "leaves_to_search": 1}
    with pytest.raises(InputError, match=r"no setting of scann reaches .* 0\.99"):
        update.run(config_of("scann", reorder=100, dimensions_per_block=2, **hopeless), retriever)
    assert open_index(retriever.current("index")).kind == "exact"
    assert nothing_left_over(retriever)


def test_questions_of_another_model_are_refused(retriever: RetrieverDir) -> None:
    write_questions(retriever, model="another")
    with pytest.raises(InputError, match="vectors of another model than that of the passages"):
        update.run(config_of("exact", queries="dev"), retriever)


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_file_is_named(retriever: RetrieverDir) -> None:
    update.run(config_of("faiss"), retriever)
    folder = retriever.current("index")
    _flip_byte(folder / "index.faiss")
    with pytest.raises(InputError, match="index.faiss is damaged"):
        open_index(folder)
    (folder / "index.faiss").unlink()
    with pytest.raises(InputError, match="index.faiss is missing"):
        open_index(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(InputError, match="index.json is damaged"):
        open_index(folder)


def test_a_damaged_shard_is_named_and_the_old_index_stays(retriever: RetrieverDir) -> None:
    update.run(config_of("faiss"), retriever)
    shard = retriever.current("embeddings") / "shard-00002-of-00003.npy"
    _flip_byte(shard)
    with pytest.raises(InputError, match=f"{shard.name} is damaged"):
        update.run(config_of("exact"), retriever)
    assert open_index(retriever.current("index")).kind == "faiss"


@pytest.mark.parametrize("kind", ["scann", "faiss", "exact"])
def test_rows_that_are_not_finite_are_refused(retriever: RetrieverDir, kind: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    vectors_ND = clusters()
    vectors_ND[1234, 5] = np.nan
    write_embeddings(retriever, vectors_ND)
    with pytest.raises(InputError, match="row 1,234 of the embeddings"):
        update.run(config_of(kind), retriever)
    assert nothing_left_over(retriever)


def test_an_engine_that_crashes_is_one_line(retriever: RetrieverDir) -> None:
    with pytest.raises(InputError, match="faiss engine failed .*--index.kind") as error:
        worker.search_fresh(retriever.root / "nothing", Parts("faiss", {}), np.ones((1, 4)), 3)
    assert "\n" not in str(error.value)


def test_the_choice_of_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scann_index, "available", lambda: True)
    assert build.choose_kind("auto", 5000)[0] == "scann"
    assert build.choose_kind("auto", 4999)[0] == "exact"
    assert build.choose_kind("faiss", 4999)[0] == "faiss"
    monkeypatch.setattr(scann_index, "available", lambda: False)
    kind, why = build.choose_kind("auto", 10**6)
    assert kind == "faiss" and "scann is not installed" in why
    monkeypatch.setattr(faiss_index, "available", lambda: False)
    kind, why = build.choose_kind("auto", 10**6)
    assert kind == "exact" and "nor is faiss" in why
    with pytest.raises(InputError, match="pip install scann"):
        build.choose_kind("scann", 10**6)


@pytest.mark.parametrize(
    ("count", "leaves", "to_search", "wanted"),
    [
        (3300, None, None, (57, 57)),
        (40_000, None, None, (200, 100)),
        (21_000_000, None, None, (4583, 1145)),
        (40_000, 80, 9, (80, 9)),
        (10, 80, 90, (10, 10)),
    ],
)
def test_partitions(
    count: int, leaves: int | None, to_search: int | None, wanted: tuple[int, int]
) -> None:
    config = IndexConfig(leaves=leaves, leaves_to_search=to_search)
    filled = defaults.fill_in(config, count)
    assert (filled.leaves, filled.leaves_to_search) == wanted


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    retriever = new_retriever(tmp_path / "work")
    with pytest.raises(InputError, match="no embeddings yet; run `dpr encode"):
        update.run(Config(), retriever)
    write_embeddings(retriever, clusters(30))
    with pytest.raises(
        InputError, match=r"not encoded; run `dpr encode .* --encode.questions dev`"
    ):
        update.run(config_of("exact", queries="dev"), retriever)


def test_other_settings_are_another_folder_and_the_way_back_is_a_pointer(
    retriever: RetrieverDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    update.run(config_of("exact"), retriever)
    exact = retriever.current("index")
    update.run(config_of("faiss"), retriever)
    assert open_index(exact).kind == "exact" and built_of(exact) == []
    assert open_index(retriever.current("index")).kind == "faiss"
    monkeypatch.setattr(worker, "build", lambda *_: pytest.fail("built again"))
    update.run(config_of("exact"), retriever)
    assert retriever.current("index") == exact


def test_a_hybrid_has_no_index(retriever: RetrieverDir, capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = with_recipe(retriever.workdir, "hybrid", "hybrid")
    update.run(Config(), hybrid)
    assert "hybrid" in capsys.readouterr().err
    assert hybrid.find("index") is None


def test_a_real_encoder_and_real_passages_in_scann(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged encoder over the first passages of the quickstart, against brute force."""
    pytest.importorskip("scann")
    monkeypatch.setattr(scann_index, "TREE_FROM_ROWS", 100)
    verbs = {"build": worker._build, "ask": worker._ask}  # in this process, which has the patch
    monkeypatch.setattr(worker, "_run", lambda job: verbs[job["verb"]](job))
    with gzip.open(ROOT / "data/quickstart/passages.tsv.gz", "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:501]
    passages = [Passage(id_, title, text) for id_, text, title in rows]
    retriever = with_recipe(prepare(tmp_path / "work", passages))
    embedder = load_embedder(PACKAGED, "passage", model=ModelConfig(max_passage_tokens=32))
    emb_ND = embedder.encode([(one.title, one.text) for one in passages]).astype(np.float16)
    write_vectors(retriever, [emb_ND[:300], emb_ND[300:]], model=embedder.passage_fingerprint)
    exact_ND = emb_ND.astype(np.float32)

    def overlap(rows_QK: np.ndarray, queries_QD: np.ndarray) -> float:
        wanted_QK = np.argsort(-queries_QD @ exact_ND.T, axis=1)[:, : rows_QK.shape[1]]
        pairs = zip(rows_QK, wanted_QK, strict=True)
        return sum(len({*a} & {*b}) for a, b in pairs) / wanted_QK.size

    queries_QD = embedder.encode([f"what is {one.title}?" for one in passages[::6]])
    sampled_Q = np.unique(np.linspace(0, len(passages) - 1, 40).astype(int))
    for settings, least in (({}, 0.97), ({"leaves_to_search": 6}, 0.5)):
        update.run(config_of("scann", **settings), retriever)
        index = open_index(retriever.current("index"))
        found_QK = index.search(queries_QD, 10)[1]
        assert overlap(found_QK, queries_QD) > least
        # the certificate is that of brute force
        rows_QK = index.search(exact_ND[sampled_Q], 100)[1]
        right = overlap(rows_QK, exact_ND[sampled_Q])
        assert index.recall_at_100 == pytest.approx(right, abs=2e-3)
        assert right > 0.95 or settings
    # most questions for a title are answered by a passage with that title
    best = [passages[row].title for row in found_QK[:, 0]]
    assert np.mean([a == one.title for a, one in zip(best, passages[::6], strict=True)]) > 0.7
