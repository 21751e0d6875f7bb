"""Mined hard negatives: ranked by BM25, and never an answer."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from prepared import WordEmbedder, retriever

from dpr_jax import artifacts, config_file, console
from dpr_jax.config import Config, DataConfig, IndexConfig, MineConfig
from dpr_jax.config_rules import validate
from dpr_jax.data import prepare, store
from dpr_jax.data.answers import has_answer
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, update
from dpr_jax.mining import mine, report
from dpr_jax.mining.rules import near_copy, word_runs
from dpr_jax.retrieval import searcher
from dpr_jax.training import setup
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

TEXTS = ["Gold one.", "gold  ONE.", "Paris it is", "wrong", "other", "more", "last"]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_mined_rows_are_the_best_that_the_rules_allow(
    nq_small_workdir: tuple[Config, WorkDir], split: str
) -> None:
    config, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    index = bm25.load(workdir.current("bm25"))
    before = list(store.open_questions(workdir, split))
    mined = workdir.retriever("trained").current("mined")
    after = list(store.open_questions(workdir, split, mined))
    _, rows_QK = index.search([one.question for one in before], config.mine.window)
    answered = 0
    for old, new, ranked in zip(before, after, rows_QK.tolist(), strict=True):
        assert old == new._replace(hard_negatives=old.hard_negatives)
        gold_runs = [word_runs(corpus[row].text) for row in new.positives]
        allowed = [
            row
            for row in ranked
            if row not in (-1, *new.positives)
            and not has_answer(new.answers, corpus[row].text)
            and not near_copy(corpus[row].text, gold_runs)
        ]
        assert new.hard_negatives == tuple(allowed[: config.mine.depth])
        answered += any(has_answer(new.answers, corpus[row].text) for row in ranked)
    assert answered > 0  # or the rule was never tried


def test_no_split_beyond_train_and_dev(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    _, workdir = nq_small_workdir
    with pytest.raises(InputError, match="'test'"):
        mined = workdir.retriever("trained").current("mined")
        store.open_questions(workdir, "test", mined)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, RetrieverDir]:
    """Prepared, not mined."""
    lines = [f"P{row}\t{text}\tT\n" for row, text in enumerate(TEXTS)]
    (tmp_path / "p.tsv").write_text("id\ttext\ttitle\n" + "".join(lines))
    (tmp_path / "t.json").write_text(
        '[{"question": "wrong gold", "positive_ctxs": [{"psg_id": "P0"}]},'
        '{"question": "zebra", "positive_ctxs": [{"psg_id": "P3"}]}]'
    )
    data = DataConfig(passages=str(tmp_path / "p.tsv"), train=str(tmp_path / "t.json"))
    config = Config(data=data)
    workdir = open_workdir(tmp_path / "work")
    prepare.run(config, workdir)
    return config, workdir.retriever("trained")


def test_stage_is_done_once_and_again_for_other_settings(
    small: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = small
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(report, "say", said.append)
    manifest = target.workdir.data / "manifest.json"
    data = artifacts.fingerprint(manifest)

    mine.run(config, target)
    rows = mined_questions(target)
    assert [one.hard_negatives for one in rows] == [(3,), ()]
    assert any("warning: 1 questions have no hard negative" in line for line in said)
    assert "1 gold, 1 near copies of a gold passage" in "\n".join(said)

    said.clear()
    mine.run(config, target)
    assert said == [f"mine: up to date ({target.current('mined')})"]
    # the prepared data are what they were
    assert artifacts.fingerprint(manifest) == data and artifacts.verify(manifest)
    prepare.run(config, target.workdir)
    assert said[1:] == [f"prepare: up to date ({target.workdir.data})"]

    shallow = dataclasses.replace(config, mine=MineConfig(depth=1, window=1))
    mine.run(shallow, target)
    rows = mined_questions(target)
    assert all(len(one.hard_negatives) <= 1 for one in rows)


def test_what_a_killed_run_leaves_is_cleared(small: tuple[Config, RetrieverDir]) -> None:
    config, target = small
    mine.run(config, target)
    whole = target.current("mined")
    partial = whole.with_name(whole.name + ".partial")
    whole.rename(partial)
    (partial / "questions" / "dataset_info.json").write_text("{")
    mine.run(config, target)
    assert not partial.exists()
    artifacts.verify(target.current("mined") / "manifest.json")


def test_training_refuses_what_was_mined_from_other_data(
    small: tuple[Config, RetrieverDir],
) -> None:
    config, target = small
    mine.run(config, target)
    assert setup.mined_folder(config, target) == target.current("mined")
    one = dataclasses.replace(config.data, max_train_questions=1)
    prepare.run(dataclasses.replace(config, data=one), target.workdir)
    with pytest.raises(InputError, match="mined from other data .* run `dpr mine"):
        setup.mined_folder(config, target)


def test_hard_negatives_of_the_users_files_are_used_unless_mining_is_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.tsv").write_text("id\ttext\ttitle\na\tone\tT\nb\ttwo\tT\n")
    (tmp_path / "t.json").write_text(
        '[{"question": "q", "positive_ctxs": [{"psg_id": "a"}],'
        ' "hard_negative_ctxs": [{"psg_id": "b"}]}]'
    )
    data = DataConfig(passages=str(tmp_path / "p.tsv"), train=str(tmp_path / "t.json"))
    workdir = open_workdir(tmp_path / "work")
    prepare.run(Config(data=data), workdir)
    assert not store.wants_mining(workdir, None)
    assert store.wants_mining(workdir, True)


def test_without_data(tmp_path: Path) -> None:
    target = open_workdir(tmp_path / "work").retriever("trained")
    with pytest.raises(InputError, match="has no data yet; run `dpr prepare"):
        mine.run(Config(), target)


def mined_questions(target: RetrieverDir, split: str = "train") -> store.Questions:
    return store.open_questions(target.workdir, split, target.current("mined"))


def mined_rows(target: RetrieverDir, split: str = "train") -> list[tuple[int, ...]]:
    return [one.hard_negatives for one in mined_questions(target, split)]


def with_mine(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, mine=MineConfig(**changes))


def test_vectors_find_what_words_do_not(
    small: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = small
    config = dataclasses.replace(config, index=IndexConfig(kind="faiss"))
    embedder = WordEmbedder()
    for module in (encode, searcher):
        monkeypatch.setattr(module, "load_embedder", lambda *_, **__: embedder)
    dense = with_mine(config, sources=("words",), depth=2, window=7)
    with pytest.raises(InputError, match="mine.sources names words, which is no retriever"):
        mine.run(dense, target)
    words = retriever(target.workdir, "words", config)
    with pytest.raises(InputError, match="retriever words has no index yet; run `dpr index"):
        mine.run(dense, target)
    encode.run(config, words)
    update.run(config, words)

    mine.run(dense, target)
    texts = [("T", text) for text in TEXTS]
    scores_QN = embedder.encode(["wrong gold", "zebra"]) @ embedder.encode(texts).T
    order = [np.argsort(-scores_N, kind="stable").tolist() for scores_N in scores_QN]
    wanted = [
        tuple([row for row in order[0] if row not in (0, 1)][:2]),  # 1 repeats 0
        tuple([row for row in order[1] if row != 3][:2]),
    ]
    assert mined_rows(target) == wanted
    both = with_mine(config, sources=("bm25", "words"), depth=2, window=7)
    mine.run(both, target)
    assert mined_rows(target) == [
        (3, next(row for row in order[0] if row not in (0, 1, 3))),
        wanted[1],
    ]

    embedder.passage_fingerprint = embedder.fingerprint = "another"
    with pytest.raises(InputError, match="passages of another encoder"):
        mine.run(dense, target)
    assert len(mined_rows(target)) == 2  # what was there stands


def test_a_sample_is_drawn_from_the_whole_window(
    nq_small_workdir: tuple[Config, WorkDir], tmp_path: Path
) -> None:
    config, prepared = nq_small_workdir
    shutil.copytree(prepared.root, tmp_path / "work", symlinks=True)
    target = open_workdir(tmp_path / "work").retriever("sampled")
    whole = with_mine(config, depth=60, window=60)
    mine.run(whole, target)
    allowed = mined_rows(target)

    def drawn(seed: int) -> list[tuple[int, ...]]:
        sampled = with_mine(config, sample=True, depth=5, window=60)
        mine.run(dataclasses.replace(sampled, seed=seed), target)
        return mined_rows(target)

    one, other = drawn(1), drawn(2)
    assert one != other and drawn(1) == one
    for rows, possible in zip(one, allowed, strict=True):
        assert set(rows) <= set(possible) and len(rows) == min(5, len(possible))
    places = [
        possible.index(row) / len(possible)
        for rows, possible in zip(one, allowed, strict=True)
        for row in rows
    ]
    assert 0.4 < np.mean(places) < 0.6


FILTER = """
from dpr_jax.config import Config, MineConfig

def keep(question, passages):
    return [text {relation} "wrong" for _, text in passages]

config = Config(mine=MineConfig(filter=keep))
"""


def test_a_changed_filter_is_asked_anew(
    small: tuple[Config, RetrieverDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = small
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(report, "say", said.append)

    def run_with(text: str) -> list[tuple[int, ...]]:
        (tmp_path / "filtering.py").write_text(text)
        loaded = config_file.load(tmp_path / "filtering.py")
        mine.run(dataclasses.replace(loaded, data=config.data), target)
        return mined_rows(target)

    assert run_with(FILTER.format(relation="!=")) == [(), ()]
    assert any("1 refused by mine.filter" in line for line in said)
    assert run_with(FILTER.format(relation="==")) == [(3,), ()]
    said.clear()
    run_with("# a line more\n" + FILTER.format(relation="=="))
    assert said == [f"mine: up to date ({target.current('mined')})"]


def test_a_teachers_scores_follow_their_passages(
    small: tuple[Config, RetrieverDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = small
    said: list[str] = []
    monkeypatch.setattr(report, "say", said.append)
    scored = [
        one._replace(teacher_scores=((one.positives[0], 5.0), (6, 1.0)))
        for one in store.open_questions(target.workdir, "train")
    ]
    monkeypatch.setattr(mine.store, "open_questions", lambda *_: scored)

    def mined() -> list[tuple[tuple[int, float], ...]]:
        mine.run(config, target)
        questions = store.Questions(target.current("mined") / "questions", "train")
        return [one.teacher_scores for one in questions]

    # none of the mined ones is among those that were scored
    assert mined() == [((0, 5.0), (6, 1.0)), ((3, 5.0), (6, 1.0))]
    assert any("of 2 questions the teacher's scores are of other" in x for x in said)

    def teacher(question: str, passages: list[tuple[str, str]]) -> list[int]:
        return [len(text) for _, text in passages]

    config = with_mine(config, teacher=teacher)
    assert mined() == [((0, 9.0), (3, 5.0)), ((3, 5.0),)]


def test_the_manifest_says_how_many_each_rule_passed_over(
    small: tuple[Config, RetrieverDir],
) -> None:
    config, target = small
    mine.run(config, target)
    facts = artifacts.read_json(target.current("mined") / "manifest.json")
    assert facts["mined"]["train"] == {
        "questions": 2,
        "hard_negatives": 1,
        "without_any": 1,
        "passed_over": {"gold": 1, "near copies of a gold passage": 1},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "mine.sources is .*one or more retrievers, each once"),
        ({"sources": ("bm25", "bm25")}, "each once"),
        ({"skip": 95}, "mine.window is 100; it must be mine.skip"),
        ({"relative_margin": -0.1}, "mine.relative_margin is -0.1; it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(with_mine(Config(), **changes))


def test_a_filter_without_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(FILTER.format(relation="==").replace("filter=keep", "filter=len"))
    with pytest.raises(InputError, match="that the config file defines with `def`"):
        config_file.load(path)
