"""The index stage: engine chosen, built aside, moved, certified in a fresh process, index.json
last.
"""

from pathlib import Path

import numpy as np
import pytest

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import build, defaults, worker
from dpr_jax.index.engines import faiss_index, scann_index
from dpr_jax.index.engines.exact import ExactIndex
from dpr_jax.index.open import open_index


def _vectors(count: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 16))
    vectors_ND = centres[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, 16))
    return vectors_ND.astype(np.float16)


def _write_embeddings(workdir: WorkDir, vectors_ND: np.ndarray) -> None:
    folder = workdir.inside("embeddings")
    folder.mkdir(exist_ok=True)
    files = []
    for number, shard in enumerate(np.array_split(vectors_ND, 3)):
        files.append(folder / f"shard-{number:05d}-of-00003.npy")
        np.save(files[-1], shard)
    artifacts.write_manifest(
        folder / "manifest.json",
        artifacts.made_from("encode", {}, {}),
        files,
        count=len(vectors_ND),
        width=vectors_ND.shape[1],
        model="a model",
    )


@pytest.fixture
def workdir(tmp_path: Path) -> WorkDir:
    workdir = artifacts.open_workdir(tmp_path / "work", "test")
    _write_embeddings(workdir, _vectors())
    return workdir


def _config(kind: str, **changes: float | str) -> Config:
    return Config(index=IndexConfig(kind=kind, recall_queries=40, **changes))


@pytest.mark.parametrize("kind", ["scann", "faiss", "exact"])
def test_builds_a_movable_index_and_measures_it(workdir: WorkDir, kind: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    build.run(_config(kind), workdir)
    facts = artifacts.read_json(workdir.inside("index") / "index.json")
    assert facts["kind"] == kind and facts["count"] == 2000
    assert facts["dimension"] == 16 and facts["metric"] == "inner_product"
    assert facts["recall_at_100"] >= (0.9 if kind == "scann" else 1.0)
    assert facts["made_from"]["stage"] == "index" and facts["files"]
    assert facts["queries_per_s"] > 0
    assert facts["recall_queries"] == 40 and "corpus" in facts["recall_queries_from"]

    moved = workdir.root.parent / "elsewhere"
    workdir.inside("index").rename(moved)
    index = open_index(moved)
    queries_QD = _vectors()[::100].astype(np.float32)
    wanted_QK, _ = ExactIndex([_vectors()]).search(queries_QD, 5)
    np.testing.assert_allclose(index.search(queries_QD, 5)[0], wanted_QK, rtol=1e-5)
    assert index.passage_fingerprint == "a model" and index.count == 2000
    left = {path.name for path in workdir.root.iterdir()}
    assert left == {"workdir.json", "embeddings"}


def test_recall_is_what_a_weak_index_deserves(workdir: WorkDir) -> None:
    pytest.importorskip("scann")
    build.run(_config("scann", leaves=100, leaves_to_search=1), workdir)
    index = open_index(workdir.inside("index"))
    sample_Q = np.unique(np.linspace(0, 1999, 40).astype(int))
    queries_QD = _vectors()[sample_Q].astype(np.float32)
    found_QK = index.search(queries_QD, 100)[1]
    wanted_QK = ExactIndex([_vectors()]).search(queries_QD, 100)[1]
    both = [len(set(a) & set(b)) for a, b in zip(found_QK, wanted_QK, strict=True)]
    assert index.recall_at_100 == pytest.approx(sum(both) / wanted_QK.size, abs=1e-3)
    assert index.recall_at_100 < 0.9


def test_equal_passages_do_not_lower_recall(workdir: WorkDir) -> None:
    pytest.importorskip("scann")
    _write_embeddings(workdir, np.tile(_vectors(4), (500, 1)))
    build.run(_config("scann", leaves=2), workdir)
    assert open_index(workdir.inside("index")).recall_at_100 == 1.0


def test_fewer_passages_than_recall_looks_at(workdir: WorkDir) -> None:
    _write_embeddings(workdir, _vectors(30))
    build.run(_config("faiss"), workdir)
    index = open_index(workdir.inside("index"))
    assert index.recall_at_100 == 1.0
    scores_QK, rows_QK = index.search(_vectors(2).astype(np.float32), 40)
    assert (rows_QK[:, 30:] == -1).all() and np.isneginf(scores_QK[:, 30:]).all()


def test_a_finished_index_is_not_built_again(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.run(_config("faiss"), workdir)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "build", lambda *_: pytest.fail("built again"))
        build.run(_config("faiss"), workdir)
        # a setting of another engine is none of this one's
        build.run(_config("faiss", dimensions_per_block=7), workdir)
    _write_embeddings(workdir, _vectors(500))
    build.run(_config("faiss"), workdir)
    assert open_index(workdir.inside("index")).count == 500


def _write_questions(workdir: WorkDir, model: str = "a model") -> np.ndarray:
    questions_QD = (_vectors(2000)[::5] + _vectors(2000)[1::5]).astype(np.float16)
    folder = workdir.inside("questions")
    folder.mkdir(exist_ok=True)
    np.save(folder / "shard-00000-of-00001.npy", questions_QD)
    artifacts.write_manifest(
        folder / "manifest.json",
        artifacts.made_from("encode", {}, {}),
        [folder / "shard-00000-of-00001.npy"],
        count=len(questions_QD),
        width=16,
        model=model,
    )
    return questions_QD


def test_a_target_is_reached_with_questions_and_other_questions_certify_it(
    workdir: WorkDir,
) -> None:
    pytest.importorskip("faiss")
    _write_embeddings(workdir, _vectors(6000))
    _write_questions(workdir)
    settings = {"target_recall": 0.9, "queries": "questions", "leaves": 60}
    build.run(_config("faiss", **settings), workdir)
    folder = workdir.inside("index")
    facts = artifacts.read_json(folder / "index.json")
    assert facts["recall_queries_from"] == "question vectors in questions"
    assert facts["recall_queries"] == 40 and facts["tuning_queries"] == 360
    assert facts["target_recall"] == 0.9 and 0.87 < facts["recall_at_100"] < 1
    reached = [
        point["leaves_to_search"]
        for point in facts["tried"]
        if point["recall_at_100"] - point["standard_error"] >= 0.9
    ]
    assert facts["settings"]["leaves_to_search"] in reached
    assert facts["settings"] == artifacts.read_json(folder / "settings.json")

    # the same files and another setting at search time are another index to those who search it
    before = artifacts.fingerprint(folder / "index.json")
    build.run(_config("faiss", **settings | {"leaves_to_search": 60}), workdir)
    assert artifacts.fingerprint(folder / "index.json") != before
    assert open_index(folder).recall_at_100 == 1.0


def test_a_target_out_of_reach_leaves_the_old_index(workdir: WorkDir) -> None:
    pytest.importorskip("scann")
    build.run(_config("exact"), workdir)
    hopeless = {"target_recall": 0.99, "leaves": 100, "leaves_to_search": 1}
    with pytest.raises(InputError, match=r"no setting of scann reaches .* 0\.99"):
        build.run(_config("scann", reorder=100, dimensions_per_block=2, **hopeless), workdir)
    assert open_index(workdir.inside("index")).kind == "exact"
    left = {path.name for path in workdir.root.iterdir()}
    assert left == {"workdir.json", "embeddings", "index"}


def test_questions_of_another_model_are_refused(workdir: WorkDir) -> None:
    _write_questions(workdir, model="another")
    with pytest.raises(InputError, match="questions, whose vectors are of another model"):
        build.run(_config("exact", queries="questions"), workdir)


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_file_is_named(workdir: WorkDir) -> None:
    build.run(_config("faiss"), workdir)
    folder = workdir.inside("index")
    _flip_byte(folder / "index.faiss")
    with pytest.raises(InputError, match="index.faiss is damaged"):
        open_index(folder)
    (folder / "index.faiss").unlink()
    with pytest.raises(InputError, match="index.faiss is missing"):
        open_index(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(InputError, match="index.json is damaged"):
        open_index(folder)


def test_a_damaged_shard_is_named_and_the_old_index_stays(workdir: WorkDir) -> None:
    build.run(_config("faiss"), workdir)
    shard = workdir.inside("embeddings") / "shard-00002-of-00003.npy"
    _flip_byte(shard)
    with pytest.raises(InputError, match=f"{shard.name} is damaged"):
        build.run(_config("exact"), workdir)
    assert open_index(workdir.inside("index")).kind == "faiss"


@pytest.mark.parametrize("kind", ["scann", "faiss", "exact"])
def test_rows_that_are_not_finite_are_refused(workdir: WorkDir, kind: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    vectors_ND = _vectors()
    vectors_ND[1234, 5] = np.nan
    _write_embeddings(workdir, vectors_ND)
    with pytest.raises(InputError, match="row 1,234 of the embeddings"):
        build.run(_config(kind), workdir)
    left = {path.name for path in workdir.root.iterdir()}
    assert left == {"workdir.json", "embeddings"}


def test_an_engine_that_crashes_is_one_line(workdir: WorkDir) -> None:
    with pytest.raises(InputError, match="faiss engine failed .*--index.kind") as error:
        worker.ask("faiss", workdir.root / "nothing", {}, np.ones((1, 4)), 3)
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
        (3300, 0, 0, (57, 57)),
        (40_000, 0, 0, (200, 100)),
        (21_000_000, 0, 0, (4583, 1145)),
        (40_000, 80, 9, (80, 9)),
        (10, 80, 90, (10, 10)),
    ],
)
def test_partitions(count: int, leaves: int, to_search: int, wanted: tuple[int, int]) -> None:
    config = IndexConfig(leaves=leaves, leaves_to_search=to_search)
    filled = defaults.fill_in(config, count)
    assert (filled.leaves, filled.leaves_to_search) == wanted


def test_no_embeddings(tmp_path: Path) -> None:
    workdir = artifacts.open_workdir(tmp_path / "work", "test")
    with pytest.raises(InputError, match="manifest.json does not exist"):
        build.run(Config(), workdir)
