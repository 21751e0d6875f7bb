"""A corpus that changes after its index was built: what is found, what training still sees, and
what is refused.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from prepared import WordEmbedder, prepare

from dpr_jax import artifacts, pipeline
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import (
    Bm25Config,
    Config,
    DataConfig,
    EncodeConfig,
    EvaluateConfig,
    IndexConfig,
    RetrieveConfig,
)
from dpr_jax.data import changes, store
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Question
from dpr_jax.encoding import added, encode
from dpr_jax.errors import InputError
from dpr_jax.evaluation import judged
from dpr_jax.index import build, refresh, worker
from dpr_jax.index.open import open_index
from dpr_jax.mining import sources
from dpr_jax.retrieval import retrieve, search
from dpr_jax.retrieval.retriever import Retriever

PASSAGES = [Passage(f"p{i}", f"title {i % 7}", f"text number {i}") for i in range(40)]
NEW = [
    Passage("n0", "Seine", "the Seine flows through Paris"),
    Passage("n1", "Rhone", "the Rhone flows through Lyon"),
    Passage("n2", "Loire", "the Loire flows through Nantes"),
]
QUESTIONS = [
    Question("q0", "which river flows through Paris?", ("Seine",), (3,), (), ()),
    Question("q1", "text number 18", ("number 18",), (18,), (), ()),
]
CONFIG = Config(
    encode=EncodeConfig(rows_per_shard=16, dtype="float32"),
    index=IndexConfig(kind="faiss", recall_queries=20),
    retrieve=RetrieveConfig(top_k=5),
    evaluate=EvaluateConfig(bootstrap_samples=10, examples=1),
)


def write_tsv(path: Path, passages: list[Passage]) -> str:
    lines = [f"{one.id}\t{one.text}\t{one.title}\n" for one in passages]
    path.write_text("id\ttext\ttitle\n" + "".join(lines), encoding="utf-8")
    return str(path)


def write_ids(path: Path, *ids: str) -> str:
    path.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    workdir = prepare(tmp_path_factory.mktemp("changed") / "w", PASSAGES, QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "load_embedder", lambda *_, **__: WordEmbedder())
        encode.run(CONFIG, workdir)
    build.run(CONFIG, workdir)
    return workdir


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    embedder = WordEmbedder()
    for module in (encode, added, search):
        monkeypatch.setattr(module, "load_embedder", lambda *_, **__: embedder)
    return embedder


@pytest.fixture
def workdir(
    built: WorkDir,
    tmp_path: Path,
    embedder: WordEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> WorkDir:
    # engines at work in this process: test_kill_changed has them in their own
    verbs = {"build": worker._build, "ask": worker._ask}
    monkeypatch.setattr(worker, "_run", lambda job: verbs[job["verb"]](job))
    shutil.copytree(built.root, tmp_path / "w")
    return WorkDir(tmp_path / "w")


@pytest.fixture
def new_file(tmp_path: Path) -> str:
    return write_tsv(tmp_path / "new.tsv", NEW)


def best(workdir: WorkDir, question: str, k: int = 3, **settings: str) -> list[str]:
    config = dataclasses.replace(CONFIG, retrieve=dataclasses.replace(CONFIG.retrieve, **settings))
    [found] = Retriever.load(workdir.root, config).search([question], k)
    return [one.id for one in found]


def facts_of(workdir: WorkDir) -> dict:
    return artifacts.read_json(workdir.inside("index") / "index.json")


@pytest.mark.parametrize("kind", ["dense", "bm25", "hybrid"])
def test_what_was_added_is_found_and_what_was_removed_is_not(
    workdir: WorkDir, new_file: str, tmp_path: Path, kind: str
) -> None:
    settings = {"kind": kind} | ({"fusion": "rrf"} if kind == "hybrid" else {})
    pipeline.add(CONFIG, workdir, new_file)
    assert best(workdir, "which river flows through Paris", **settings)[0] == "n0"
    assert best(workdir, "text number 18", k=1, **settings) == ["p18"]

    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "n0", "p18"))
    for question in ("which river flows through Paris", "text number 18"):
        found = best(workdir, question, k=60, **settings)
        assert found and not {"n0", "p18"} & {*found}
        if kind == "dense":  # all that are left
            assert len(found) == len({*found}) == 41


def test_the_index_says_what_is_in_it_and_what_it_finds(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    pipeline.add(CONFIG, workdir, new_file)
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    facts = facts_of(workdir)
    assert facts["kind"] == "faiss" and facts["changes"]["count"] == 2
    assert facts["count"] == 43 and facts["removed"] == 2
    assert facts["recall_at_100"] == 1.0 and facts["recall_queries"] == 20
    moved = tmp_path / "elsewhere"
    workdir.inside("index").rename(moved)
    index = open_index(moved)
    assert index.count == 43 and index.prepared_count == 40


@pytest.mark.parametrize("kind", ["exact", "faiss", "scann"])
def test_rebalancing_builds_what_is_left_and_nothing_else(
    workdir: WorkDir, new_file: str, tmp_path: Path, kind: str
) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    config = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, kind=kind))
    pipeline.add(CONFIG, workdir, new_file)
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    queries_QD = WordEmbedder().encode([one.text for one in NEW + PASSAGES])
    before = open_index(workdir.inside("index")).search(queries_QD, 50)
    pipeline.rebalance(config, workdir)
    facts = facts_of(workdir)
    assert facts["kind"] == kind and facts["layers"]["added"] == []
    after = open_index(workdir.inside("index")).search(queries_QD, 50)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-6)
    listed = {*facts["files"], "index.json"}
    folder = workdir.inside("index")
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk == listed
    assert not workdir.inside("index.vectors").exists()

    # changes after it lie over it again
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids2", "n0", "p39"))
    found = open_index(folder).search(queries_QD, 50)[1]
    assert {*found[found >= 0].tolist()} == {*range(1, 39), 42}


def test_a_replaced_passage(workdir: WorkDir, tmp_path: Path) -> None:
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p3"))
    new = write_tsv(tmp_path / "p3.tsv", [NEW[0]._replace(id="p3")])
    pipeline.add(CONFIG, workdir, new)
    [found] = Retriever.load(workdir.root, CONFIG).search(["which river flows through Paris"], k=1)[
        0
    ]
    assert (found.id, found.text) == ("p3", NEW[0].text)
    # what replaced a gold passage is gold, and has the answer
    retrieve.run(CONFIG, workdir)
    runs = {"trained": workdir.runs / "trained.trec"}
    scored = judged.judge(workdir, runs, CONFIG.evaluate).scored["trained"]
    assert [scored[view].rank_Q[0] for view in ("gold", "answer")] == [1, 1]


def test_training_and_mining_know_the_corpus_as_it_was_prepared(
    workdir: WorkDir, new_file: str, embedder: WordEmbedder
) -> None:
    config = dataclasses.replace(CONFIG, mine=dataclasses.replace(CONFIG.mine, sources=("dense",)))
    before = sources.depend_on(config, workdir, embedder)
    data = artifacts.fingerprint(workdir.data / "manifest.json")
    pipeline.add(CONFIG, workdir, new_file)
    pipeline.rebalance(CONFIG, workdir)
    assert sources.depend_on(config, workdir, embedder) == before
    assert artifacts.fingerprint(workdir.data / "manifest.json") == data
    corpus = store.open_corpus(workdir)
    [find] = sources.open_sources(config, workdir, corpus, embedder)
    rows_QK = find(["which river flows through Paris"], 60)[1]
    assert {*rows_QK[rows_QK >= 0].tolist()} == {*range(40)}


def test_stages_after_a_change_keep_it(
    workdir: WorkDir,
    new_file: str,
    embedder: WordEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline.add(CONFIG, workdir, new_file)
    manifest = workdir.inside("index") / "index.json"
    written = manifest.stat().st_mtime_ns
    embedder.encoded.clear()
    for stage in ("encode", "index"):
        pipeline.STAGES[stage](CONFIG, workdir)
    assert not embedder.encoded and manifest.stat().st_mtime_ns == written
    # other settings of the index: built anew, of all passages
    config = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, kind="exact"))
    pipeline.STAGES["index"](config, workdir)
    assert facts_of(workdir)["kind"] == "exact"
    assert best(workdir, "which river flows through Paris")[0] == "n0"
    # another model: all of it encoded and indexed again
    embedder.fingerprint = embedder.passage_fingerprint = "another"
    vector = embedder._vector
    monkeypatch.setattr(embedder, "_vector", lambda text: 2 * vector(text))
    for stage in ("encode", "index"):
        pipeline.STAGES[stage](config, workdir)
    assert len(embedder.encoded) == 1 + 43  # a question, and every passage
    assert best(workdir, "which river flows through Paris")[0] == "n0"


def test_a_change_that_is_only_recorded_leaves_the_old_index_serving(
    workdir: WorkDir, new_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(added, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.add(CONFIG, workdir, new_file)
    assert len(changes.read(workdir).folders) == 1
    assert "n0" not in best(workdir, "which river flows through Paris", k=60)
    # `dpr index` alone, or the same command again, finishes it
    pipeline.add(CONFIG, workdir, new_file)
    assert best(workdir, "which river flows through Paris", k=1) == ["n0"]


def test_the_same_again_is_said_and_not_done(
    workdir: WorkDir, new_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, file in (
        (pipeline.add, new_file),
        (pipeline.remove, write_ids(tmp_path / "ids", "p1")),
    ):
        verb(CONFIG, workdir, file)
        manifest = workdir.inside("index") / "index.json"
        written = manifest.stat().st_mtime_ns
        verb(CONFIG, workdir, file)
        assert "are the last change already" in capsys.readouterr().err
        assert manifest.stat().st_mtime_ns == written
    assert len(changes.read(workdir).folders) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([NEW[0], PASSAGES[4]], r"new.tsv:3: passage id 'p4' is in the corpus already"),
        ([NEW[0], NEW[0]], r"new.tsv:3: passage id 'n0' occurs twice, first at line 2"),
        ([], "no passage"),
    ],
)
def test_what_cannot_be_added(
    workdir: WorkDir, tmp_path: Path, rows: list[Passage], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.add(CONFIG, workdir, write_tsv(tmp_path / "new.tsv", rows))
    assert not list(workdir.changes.iterdir())


def test_what_cannot_be_removed(workdir: WorkDir, tmp_path: Path) -> None:
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p1"))
    for ids, message in (
        (("p2", "p99"), "ids:2: passage 'p99' is not in the corpus"),
        (("p2", "p1"), "ids:2: passage 'p1' is not in the corpus"),
        (("p2 p3",), "ids:1: passage id 'p2 p3' must be one word"),
        ((), "ids is empty"),
        ([f"p{i}" for i in range(40) if i != 1], "names every passage"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", *ids))
    with pytest.raises(InputError, match="nothing.txt does not exist"):
        pipeline.remove(CONFIG, workdir, str(tmp_path / "nothing.txt"))
    assert len(changes.read(workdir).folders) == 1


def test_what_does_not_belong_together(
    workdir: WorkDir, new_file: str, tmp_path: Path, embedder: WordEmbedder
) -> None:
    with pytest.raises(InputError, match="nowhere.tsv does not exist"):
        pipeline.add(CONFIG, workdir, str(tmp_path / "nowhere.tsv"))
    embedder.fingerprint = "another"
    with pytest.raises(InputError, match="was encoded by another model"):
        pipeline.add(CONFIG, workdir, new_file)
    embedder.fingerprint = "words"
    pipeline.add(CONFIG, workdir, new_file)
    # the corpus is prepared anew, from other files
    other = prepare(tmp_path / "other", PASSAGES[1:], QUESTIONS)
    shutil.rmtree(workdir.data)
    shutil.copytree(other.data, workdir.data)
    with pytest.raises(InputError, match="is a change to another corpus"):
        Retriever.load(workdir.root, CONFIG)
    with pytest.raises(InputError, match="is a change to another corpus"):
        pipeline.STAGES["encode"](CONFIG, workdir)


def test_nothing_is_recorded_where_there_is_no_index(workdir: WorkDir, new_file: str) -> None:
    shutil.rmtree(workdir.inside("index"))
    with pytest.raises(InputError, match="holds no index .* run `dpr index` first"):
        pipeline.add(CONFIG, workdir, new_file)
    assert not workdir.changes.exists()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_named_in_every_file(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    pipeline.add(CONFIG, workdir, new_file)
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0"))
    pipeline.rebalance(CONFIG, workdir)
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "n0"))
    pipeline.add(CONFIG, workdir, write_tsv(tmp_path / "more.tsv", [NEW[0]]))
    folder = workdir.inside("index")
    files = [path for path in folder.rglob("*") if path.is_file()]
    # two index.json, FAISS and its settings, rows, added, removed
    assert len(files) == 7
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 3):
            if path.suffix == ".json" and whole[at : at + 1].isspace():
                continue  # says the same
            flip(path, at)
            with pytest.raises(InputError, match=path.name):
                open_index(folder)
            path.write_bytes(whole)
    assert open_index(folder).count == 44
    # and in what the index is made of
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p5"))
    for path in workdir.inside("embeddings/changes").glob("*.npy"):
        flip(path, -1)
        with pytest.raises(InputError, match=path.name):
            pipeline.rebalance(CONFIG, workdir)
        flip(path, -1)
    change = workdir.changes / "00002" / "removed.npy"
    flip(change, -1)
    with pytest.raises(InputError, match="removed.npy is damaged.*from a copy"):
        Retriever.load(workdir.root, CONFIG)


def test_bm25_is_that_of_a_corpus_prepared_with_the_changes(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    pipeline.add(CONFIG, workdir, new_file)
    pipeline.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    left = [one for one in PASSAGES + NEW if one.id not in ("p0", "n1")]
    anew = prepare(tmp_path / "anew", left)
    config = Config(bm25=Bm25Config(), retrieve=RetrieveConfig(kind="bm25"))
    questions = ["the river through Paris", "text number 18", "title 3"]
    one, other = (
        Retriever.load(folder.root, config).search(questions, k=9) for folder in (workdir, anew)
    )
    assert one == other


def test_documents_are_cut_as_those_of_the_corpus(workdir: WorkDir, tmp_path: Path) -> None:
    document = tmp_path / "rivers.txt"
    document.write_text(" ".join(f"word{i}" for i in range(25)))
    config = dataclasses.replace(CONFIG, data=DataConfig(split_words=10))
    pipeline.add(config, workdir, str(document))
    corpus = changes.open_corpus(workdir, changes.read(workdir))
    assert len(corpus) == 43 and corpus[42].text.split() == [f"word{i}" for i in range(20, 25)]
    assert [one.text for one in corpus.rows([41, 2])][1] == PASSAGES[2].text


def test_the_settings_of_the_command_say_where(workdir: WorkDir, new_file: str) -> None:
    config = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, out="second"))
    pipeline.STAGES["index"](config, workdir)
    pipeline.add(config, workdir, new_file)
    assert facts_of(workdir).get("changes") is None
    refresh.run(CONFIG, workdir)  # the other one follows
    assert facts_of(workdir)["changes"]["count"] == 1
