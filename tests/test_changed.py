"""A corpus that changes after its indexes were built.

What is found, what training and mining still see, what is shared, and what is refused.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared import WordEmbedder, prepare
from vectors import encode_corpus, names_in, with_recipe

from dpr_jax import artifacts, cli, recipes
from dpr_jax.config import (
    Config,
    DataConfig,
    EncodeConfig,
    IndexConfig,
    RetrieveConfig,
)
from dpr_jax.data import changes
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question, open_corpus
from dpr_jax.errors import InputError
from dpr_jax.evaluation import judged
from dpr_jax.index import added, update, worker
from dpr_jax.index.open import MANIFEST, built_of, open_index
from dpr_jax.retrieval import retrieve, searcher
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import RetrieverDir, WorkDir

PASSAGES = [Passage(f"p{i}", f"title {i % 7}", f"text number {i}") for i in range(40)]
NEW = [
    Passage("n0", "Seine", "the Seine flows through Paris"),
    Passage("n1", "Rhone", "the Rhone flows through Lyon"),
    Passage("n2", "Loire", "the Loire flows through Nantes"),
]
RIVER = "which river flows through Paris"
QUESTIONS = [
    Question("q0", f"{RIVER}?", ("Seine",), (3,), (), ()),
    Question("q1", "text number 18", ("number 18",), (18,), (), ()),
]
CONFIG = Config(
    encode=EncodeConfig(rows_per_shard=2, dtype="float32"),
    index=IndexConfig(kind="faiss", recall_queries=20),
    retrieve=RetrieveConfig(top_k=5, parts=("bm25", "trained"), fusion="rrf"),
)


def write_tsv(path: Path, passages: list[Passage]) -> str:
    lines = [f"{one.id}\t{one.text}\t{one.title}\n" for one in passages]
    path.write_text("id\ttext\ttitle\n" + "".join(lines), encoding="utf-8")
    return str(path)


def write_ids(path: Path, *ids: str) -> str:
    path.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
    return str(path)


def store_recipe(retriever: RetrieverDir, **parts: Any) -> Config:
    """Another recipe for a retriever, which its index follows from then on."""
    config = dataclasses.replace(CONFIG, **parts)
    recipes.store(retriever, config)
    return config


def indexed(root: Path) -> WorkDir:
    """A work directory with a dense retriever, BM25 and both."""
    workdir = prepare(root, PASSAGES, QUESTIONS)
    for name in ("trained", "bm25", "hybrid"):
        kind = "dense" if name == "trained" else name
        store_recipe(with_recipe(workdir, name, kind))
    encode_corpus(workdir.retriever("trained"), WordEmbedder())
    for name in ("trained", "bm25"):
        update.run(CONFIG, workdir.retriever(name))
    return workdir


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return indexed(tmp_path_factory.mktemp("changed") / "w")


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    embedder = WordEmbedder()
    for module in (added, searcher):
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
    shutil.copytree(built.root, tmp_path / "w", symlinks=True)
    return WorkDir(tmp_path / "w")


@pytest.fixture
def new_file(tmp_path: Path) -> str:
    return write_tsv(tmp_path / "new.tsv", NEW)


def best(workdir: WorkDir, question: str, k: int = 3, name: str = "trained") -> list[str]:
    [found] = Retriever.load(workdir.root, name).search([question], k)
    return [one.id for one in found]


def index_of(workdir: WorkDir, name: str = "trained") -> Path:
    return workdir.retriever(name).current("index")


def facts_of(workdir: WorkDir) -> dict:
    return artifacts.read_json(index_of(workdir) / MANIFEST)


@pytest.mark.parametrize("name", ["trained", "bm25", "hybrid"])
def test_what_was_added_is_found_and_what_was_removed_is_not(
    workdir: WorkDir, new_file: str, tmp_path: Path, name: str
) -> None:
    update.add(CONFIG, workdir, new_file)
    assert best(workdir, RIVER, name=name)[0] == "n0"
    assert best(workdir, "text number 18", k=1, name=name) == ["p18"]

    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "n0", "p18"))
    for question in (RIVER, "text number 18"):
        found = best(workdir, question, k=60, name=name)
        assert found and not {"n0", "p18"} & {*found}
        if name == "trained":  # all that are left
            assert len(found) == len({*found}) == 41


def test_the_index_says_what_is_in_it_and_what_it_finds(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    before = open_index(index_of(workdir))
    assert before.changes == 0 and before.corpus == changes.read(workdir).fingerprint
    update.add(CONFIG, workdir, new_file)
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    facts = facts_of(workdir)
    assert facts["kind"] == "faiss" and facts["changes"] == 2
    assert facts["recall_at_100"] == 1.0 and facts["recall_queries"] == 20
    # a whole work directory can be moved
    workdir.root.rename(tmp_path / "elsewhere")
    moved = WorkDir(tmp_path / "elsewhere")
    index = open_index(index_of(moved))
    assert (index.count, index.prepared_count, index.changes) == (43, 40, 2)
    assert index.corpus == changes.read(moved).fingerprint != before.corpus


def test_nothing_is_replaced_and_what_is_there_is_shared(
    workdir: WorkDir, new_file: str, tmp_path: Path, embedder: WordEmbedder
) -> None:
    first = index_of(workdir)
    update.add(CONFIG, workdir, new_file)
    second = index_of(workdir)
    assert [one.name for one in second.glob("added-*")] and len(embedder.encoded) == 3
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0"))
    third = index_of(workdir)
    # each is as it was, the laid ones stand on the built one, and no vector is encoded or kept
    # twice
    assert [open_index(one).changes for one in (first, second, third)] == [0, 1, 2]
    assert built_of(first) == [] and built_of(second) == built_of(third) == [first]
    assert len(embedder.encoded) == 3
    for file in second.glob("added-*"):
        assert file.stat().st_ino == (third / file.name).stat().st_ino
    assert len(list(third.glob("added-00001-*"))) == 2  # shards of two rows
    embeddings = workdir.retriever("trained").current("embeddings")
    assert {path.suffix for path in embeddings.iterdir()} == {".npy", ".json"}


@pytest.mark.parametrize("kind", ["exact", "faiss", "scann"])
def test_rebalancing_builds_what_is_left_and_nothing_else(
    workdir: WorkDir, new_file: str, tmp_path: Path, kind: str
) -> None:
    if kind != "exact":
        pytest.importorskip(kind)
    retriever = workdir.retriever("trained")
    update.add(CONFIG, workdir, new_file)
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    queries_QD = WordEmbedder().encode([one.text for one in NEW + PASSAGES])
    before = open_index(index_of(workdir)).search(queries_QD, 50)
    config = store_recipe(retriever, index=dataclasses.replace(CONFIG.index, kind=kind))
    update.rebalance(config, retriever)
    folder, facts = index_of(workdir), facts_of(workdir)
    assert facts["kind"] == kind and facts["added"] == [] and built_of(folder) == []
    after = open_index(folder).search(queries_QD, 50)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-6)
    assert {path.name for path in folder.iterdir()} == {*facts["files"], MANIFEST}
    assert not [name for name in names_in(retriever.home) if name.endswith(("ing", ".partial"))]

    # changes after it lie over it again
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids2", "n0", "p39"))
    assert built_of(index_of(workdir)) == [folder]
    found = open_index(index_of(workdir)).search(queries_QD, 50)[1]
    assert {*found[found >= 0].tolist()} == {*range(1, 39), 42}
    # and rebalancing where nothing changed does nothing
    update.rebalance(config, retriever)
    folder = index_of(workdir)
    written = (folder / MANIFEST).stat().st_mtime_ns
    update.rebalance(config, retriever)
    assert index_of(workdir) == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == written


def test_a_replaced_passage(workdir: WorkDir, tmp_path: Path) -> None:
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p3"))
    update.add(CONFIG, workdir, write_tsv(tmp_path / "p3.tsv", [NEW[0]._replace(id="p3")]))
    [[found]] = Retriever.load(workdir.root, "trained").search([RIVER], k=1)
    assert (found.id, found.text) == ("p3", NEW[0].text)
    # what replaced a gold passage is gold, and has the answer
    retrieve.run(CONFIG, workdir.retriever("trained"))
    runs = {"trained": workdir.runs("test") / "trained.trec"}
    scored = judged.judge(workdir, "test", runs, CONFIG.evaluate).scored["trained"]
    assert [scored[view].rank_Q[0] for view in ("gold", "answer")] == [1, 1]


def test_training_and_mining_know_the_corpus_as_it_was_prepared(
    workdir: WorkDir, new_file: str
) -> None:
    retriever = workdir.retriever("trained")
    before = searcher.prepared_dense(retriever, open_corpus(workdir)).fingerprint
    data = artifacts.fingerprint(workdir.data / "manifest.json")
    update.add(CONFIG, workdir, new_file)
    assert searcher.prepared_dense(retriever, open_corpus(workdir)).fingerprint == before
    assert artifacts.fingerprint(workdir.data / "manifest.json") == data
    for _ in ("laid", "built"):
        opened = searcher.prepared_dense(retriever, open_corpus(workdir))
        rows_QK = opened.start().search([RIVER], 60)[1]
        assert {*rows_QK[rows_QK >= 0].tolist()} == {*range(40)}
        update.rebalance(CONFIG, retriever)


def test_other_settings_and_another_model_after_a_change(
    workdir: WorkDir, new_file: str, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = workdir.retriever("trained")
    update.add(CONFIG, workdir, new_file)
    followed = index_of(workdir)
    embedder.encoded.clear()
    update.run(CONFIG, retriever)
    assert not embedder.encoded and index_of(workdir) == followed
    # other settings of the index: built anew, of all passages, and nothing is encoded again
    config = store_recipe(retriever, index=dataclasses.replace(CONFIG.index, kind="exact"))
    update.run(config, retriever)
    assert facts_of(workdir)["kind"] == "exact" and built_of(index_of(workdir)) == []
    assert not embedder.encoded
    assert best(workdir, RIVER)[0] == "n0"
    # the former settings: the former folder
    update.run(CONFIG, retriever)
    assert index_of(workdir) == followed
    # another model: the new passages are encoded again
    embedder.fingerprint = embedder.passage_fingerprint = "another"
    vector = embedder._vector
    monkeypatch.setattr(embedder, "_vector", lambda text: 2 * vector(text))
    encode_corpus(retriever, embedder)
    embedder.encoded.clear()
    update.run(CONFIG, retriever)
    assert len(embedder.encoded) == 3
    assert best(workdir, RIVER)[0] == "n0"


def test_a_retriever_that_is_behind_is_refused_until_it_follows(
    workdir: WorkDir, new_file: str, monkeypatch: pytest.MonkeyPatch, embedder: WordEmbedder
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(added, "load_embedder", lambda *_, **__: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):
            update.add(CONFIG, workdir, new_file)
    assert len(changes.read(workdir).folders) == 1
    with pytest.raises(InputError, match="trained is behind the corpus"):
        best(workdir, RIVER)
    assert open_index(index_of(workdir)).changes == 0
    # `dpr index` alone, or the same command again, finishes it
    update.add(CONFIG, workdir, new_file)
    assert best(workdir, RIVER, k=1) == ["n0"]


def test_every_retriever_follows_by_its_own_recipe(workdir: WorkDir, new_file: str) -> None:
    exact = with_recipe(workdir, "exact")
    settings = dataclasses.replace(CONFIG.index, kind="exact")
    config = store_recipe(exact, index=settings)
    encode_corpus(exact, WordEmbedder())
    update.run(config, exact)
    bm25 = index_of(workdir, "bm25")
    update.add(CONFIG, workdir, new_file)
    for name, kind in (("trained", "faiss"), ("exact", "exact")):
        index = open_index(index_of(workdir, name))
        assert (index.kind, index.changes) == (kind, 1)
    assert index_of(workdir, "bm25") != bm25


def test_the_same_again_is_said_and_not_done(
    workdir: WorkDir, new_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, file in (
        (update.add, new_file),
        (update.remove, write_ids(tmp_path / "ids", "p1")),
    ):
        verb(CONFIG, workdir, file)
        folder = index_of(workdir)
        written = (folder / MANIFEST).stat().st_mtime_ns
        verb(CONFIG, workdir, file)
        assert "are the last change already" in capsys.readouterr().err
        assert index_of(workdir) == folder
        assert (folder / MANIFEST).stat().st_mtime_ns == written
    assert len(changes.read(workdir).folders) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([NEW[0], PASSAGES[4]], r"new.tsv:3: passage id 'p4' is in the corpus already"),
        (
            [NEW[0], NEW[0]._replace(text="another text")],
            r"new.tsv:3: passage id 'n0' occurs twice",
        ),
        ([], "no passage"),
    ],
)
def test_what_cannot_be_added(
    workdir: WorkDir, tmp_path: Path, rows: list[Passage], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        update.add(CONFIG, workdir, write_tsv(tmp_path / "new.tsv", rows))
    assert not list(workdir.changes.glob("*"))


def test_ids_to_remove_may_come_through_a_pipe(workdir: WorkDir) -> None:
    """As the shell's `dpr index remove <(grep ...)` gives them: read once, named as given."""

    def through_a_pipe(text: bytes) -> str:
        read, write = os.pipe()
        os.write(write, text)
        os.close(write)
        try:
            cli.run(["index", "remove", f"/dev/fd/{read}", "--workdir", str(workdir.root)])
        finally:
            os.close(read)
        return f"/dev/fd/{read}"

    through_a_pipe(b"p1\np7\n")
    assert changes.read(workdir).removed_R().tolist() == [1, 7]
    through_a_pipe(b"p1\np7\n")  # again: the last change already
    assert len(changes.read(workdir).folders) == 1
    with pytest.raises(InputError, match=r"^/dev/fd/\d+:2: passage 'gone' is not in the corpus"):
        through_a_pipe(b"p2\ngone\n")


def test_what_cannot_be_removed(workdir: WorkDir, tmp_path: Path) -> None:
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p1"))
    for ids, message in (
        (("p2", "p99"), "ids:2: passage 'p99' is not in the corpus"),
        (("p2", "p1"), "ids:2: passage 'p1' is not in the corpus"),
        (("p2 p3",), "ids:1: passage id 'p2 p3' must be one word"),
        ((), "ids is empty"),
        ([f"p{i}" for i in range(40) if i != 1], "names every passage"),
    ):
        with pytest.raises(InputError, match=message):
            update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", *ids))
    with pytest.raises(InputError, match="nothing.txt does not exist"):
        update.remove(CONFIG, workdir, str(tmp_path / "nothing.txt"))
    assert len(changes.read(workdir).folders) == 1


def test_what_does_not_belong_together(
    workdir: WorkDir, new_file: str, tmp_path: Path, embedder: WordEmbedder
) -> None:
    with pytest.raises(InputError, match="nowhere.tsv does not exist"):
        update.add(CONFIG, workdir, str(tmp_path / "nowhere.tsv"))
    embedder.fingerprint = embedder.passage_fingerprint = "another"
    with pytest.raises(InputError, match="was encoded by another model"):
        update.add(CONFIG, workdir, new_file)
    embedder.fingerprint = embedder.passage_fingerprint = "words"
    update.add(CONFIG, workdir, new_file)
    # the corpus is prepared anew, from other files
    prepare(workdir.root, PASSAGES[1:], QUESTIONS)
    for refused in (
        lambda: Retriever.load(workdir.root, "trained"),
        lambda: update.run(CONFIG, workdir.retriever("trained")),
    ):
        with pytest.raises(InputError, match="is a change to another corpus"):
            refused()
    shutil.rmtree(workdir.changes)
    with pytest.raises(InputError, match="holds another corpus than .* run `dpr encode"):
        update.run(CONFIG, workdir.retriever("trained"))


def test_nothing_is_recorded_where_an_index_cannot_follow(workdir: WorkDir, new_file: str) -> None:
    shutil.rmtree(workdir.retriever("trained").current("embeddings"))
    with pytest.raises(InputError, match="trained has no embeddings yet; run `dpr encode"):
        update.add(CONFIG, workdir, new_file)
    assert not workdir.changes.exists()
    for retriever in workdir.retrievers():
        shutil.rmtree(retriever.home)
    with pytest.raises(InputError, match="has no index that could follow; run `dpr index"):
        update.add(CONFIG, workdir, new_file)
    assert not workdir.changes.exists()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_named_in_every_file(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    retriever = workdir.retriever("trained")
    update.add(CONFIG, workdir, new_file)
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0"))
    update.rebalance(CONFIG, retriever)
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "n0"))
    update.add(CONFIG, workdir, write_tsv(tmp_path / "more.tsv", [NEW[0]]))
    folder = index_of(workdir)
    files = [path for one in (folder, *built_of(folder)) for path in one.iterdir()]
    # index.json and parts.json, vectors and removals in both; FAISS' file and its rows in one
    assert len(files) == 2 * 2 + (5 + 3) + 2
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
    # and in what the next index is made of
    for path in folder.glob("added-*"):
        flip(path, -1)
        with pytest.raises(InputError, match=path.name):
            update.rebalance(CONFIG, retriever)
        flip(path, -1)
    change = workdir.changes / "00002" / "removed.npy"
    flip(change, -1)
    with pytest.raises(InputError, match="removed.npy is damaged.*from a copy"):
        Retriever.load(workdir.root, "trained")


def test_bm25_is_that_of_a_corpus_prepared_with_the_changes(
    workdir: WorkDir, new_file: str, tmp_path: Path
) -> None:
    update.add(CONFIG, workdir, new_file)
    update.remove(CONFIG, workdir, write_ids(tmp_path / "ids", "p0", "n1"))
    left = [one for one in PASSAGES + NEW if one.id not in ("p0", "n1")]
    anew = prepare(tmp_path / "anew", left)
    retriever = with_recipe(anew, "bm25", "bm25")
    update.run(store_recipe(retriever), retriever)
    questions = ["the river through Paris", "text number 18", "title 3"]
    one, other = (
        Retriever.load(folder.root, "bm25").search(questions, k=9) for folder in (workdir, anew)
    )
    assert one == other


def test_documents_are_cut_as_those_of_the_corpus(workdir: WorkDir, tmp_path: Path) -> None:
    document = tmp_path / "rivers.txt"
    document.write_text(" ".join(f"word{i}" for i in range(25)))
    config = dataclasses.replace(CONFIG, data=DataConfig(split_words=10))
    update.add(config, workdir, str(document))
    corpus = changes.open_corpus(workdir, changes.read(workdir))
    assert len(corpus) == 43 and corpus[42].text.split() == [f"word{i}" for i in range(20, 25)]
    assert [one.text for one in corpus.rows([41, 2])][1] == PASSAGES[2].text
