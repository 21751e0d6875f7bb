"""Mined hard negatives: ranked by BM25, and never an answer."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from prepared import WordEmbedder

from dpr_jax import artifacts, config_file, console
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, DataConfig, IndexConfig, MineConfig
from dpr_jax.config_rules import validate
from dpr_jax.data import prepare, store
from dpr_jax.data.answers import has_answer
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, build
from dpr_jax.mining import mine, report, sources
from dpr_jax.mining.rules import near_copy, word_runs

TEXTS = ["Gold one.", "gold  ONE.", "Paris it is", "wrong", "other", "more", "last"]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_mined_rows_are_the_best_that_the_rules_allow(
    nq_small_workdir: tuple[Config, WorkDir], split: str
) -> None:
    config, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    index = bm25.load(workdir.bm25)
    before = list(store.open_questions(workdir, split))
    after = list(store.open_questions(workdir, split, mined=True))
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
            and not near_copy(corpus[row].text, gold_runs, config.mine.near_duplicate)
        ]
        assert new.hard_negatives == tuple(allowed[: config.mine.depth])
        answered += any(has_answer(new.answers, corpus[row].text) for row in ranked)
    assert answered > 0  # or the rule was never tried


def test_no_split_beyond_train_and_dev(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    _, workdir = nq_small_workdir
    with pytest.raises(InputError, match="'test'"):
        store.open_questions(workdir, "test", mined=True)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, WorkDir]:
    """Prepared, not mined."""
    lines = [f"P{row}\t{text}\tT\n" for row, text in enumerate(TEXTS)]
    (tmp_path / "p.tsv").write_text("id\ttext\ttitle\n" + "".join(lines))
    (tmp_path / "t.json").write_text(
        '[{"question": "wrong gold", "positive_ctxs": [{"psg_id": "P0"}]},'
        '{"question": "zebra", "positive_ctxs": [{"psg_id": "P3"}]}]'
    )
    data = DataConfig(passages=str(tmp_path / "p.tsv"), train=str(tmp_path / "t.json"))
    config = Config(name="small", data=data)
    workdir = artifacts.open_workdir(tmp_path / "work", config.name)
    prepare.run(config, workdir)
    return config, workdir


def test_stage_is_done_once_and_again_for_other_settings(
    small: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = small
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(report, "say", said.append)
    manifest = workdir.data / "manifest.json"
    data = artifacts.fingerprint(manifest)

    mine.run(config, workdir)
    rows = store.open_questions(workdir, "train", mined=True)
    assert [one.hard_negatives for one in rows] == [(3,), ()]
    assert any("warning: 1 questions have no hard negative" in line for line in said)
    assert "1 gold, 1 near copies of a gold passage" in "\n".join(said)

    said.clear()
    mine.run(config, workdir)
    assert said == ["mine: up to date"]
    # the prepared data are what they were
    assert artifacts.fingerprint(manifest) == data and artifacts.verify(manifest)
    prepare.run(config, workdir)
    assert said == ["mine: up to date", "prepare: up to date"]

    shallow = dataclasses.replace(config, mine=MineConfig(depth=1, window=1))
    mine.run(shallow, workdir)
    rows = store.open_questions(workdir, "train", mined=True)
    assert all(len(one.hard_negatives) <= 1 for one in rows)


def test_what_a_killed_run_leaves_is_cleared(small: tuple[Config, WorkDir]) -> None:
    config, workdir = small
    partial = workdir.data / "mined.partial" / "questions"
    partial.mkdir(parents=True)
    (partial / "dataset_info.json").write_text("{")
    mine.run(config, workdir)
    assert not partial.exists()
    artifacts.verify(workdir.data / "mined" / "manifest.json")


def test_new_data_forget_what_was_mined_from_the_old(
    small: tuple[Config, WorkDir],
) -> None:
    config, workdir = small
    mine.run(config, workdir)
    one = dataclasses.replace(config.data, max_train_questions=1)
    prepare.run(dataclasses.replace(config, data=one), workdir)
    with pytest.raises(InputError, match="run `dpr mine` first"):
        store.open_questions(workdir, "train", mined=True)


def test_without_data(tmp_path: Path) -> None:
    workdir = artifacts.open_workdir(tmp_path / "work", "small")
    with pytest.raises(InputError, match="manifest.json does not exist"):
        mine.run(Config(name="small"), workdir)


def mined_rows(workdir: WorkDir, split: str = "train") -> list[tuple[int, ...]]:
    rows = store.open_questions(workdir, split, mined=True)
    return [one.hard_negatives for one in rows]


def with_mine(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, mine=MineConfig(**changes))


def test_vectors_find_what_words_do_not(
    small: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = small
    config = dataclasses.replace(config, index=IndexConfig(kind="faiss"))
    embedder = WordEmbedder()
    for module in (encode, sources):
        monkeypatch.setattr(module, "load_embedder", lambda *_, **__: embedder)
    dense = with_mine(config, sources=("dense",), depth=2, window=7)
    with pytest.raises(InputError, match="index.json does not exist"):
        mine.run(dense, workdir)
    encode.run(config, workdir)
    build.run(config, workdir)

    mine.run(dense, workdir)
    texts = [("T", text) for text in TEXTS]
    scores_QN = embedder.encode(["wrong gold", "zebra"]) @ embedder.encode(texts).T
    order = [np.argsort(-scores_N, kind="stable").tolist() for scores_N in scores_QN]
    wanted = [
        tuple([row for row in order[0] if row not in (0, 1)][:2]),  # 1 repeats 0
        tuple([row for row in order[1] if row != 3][:2]),
    ]
    assert mined_rows(workdir) == wanted
    both = with_mine(config, sources=("bm25", "dense"), depth=2, window=7)
    mine.run(both, workdir)
    assert mined_rows(workdir) == [
        (3, next(row for row in order[0] if row not in (0, 1, 3))),
        wanted[1],
    ]

    embedder.passage_fingerprint = embedder.fingerprint = "another"
    with pytest.raises(
        InputError, match="another model than the passage encoder of mine.model=model"
    ):
        mine.run(dense, workdir)
    assert len(mined_rows(workdir)) == 2  # what was there stands


def test_a_sample_is_drawn_from_the_whole_window(
    nq_small_workdir: tuple[Config, WorkDir], tmp_path: Path
) -> None:
    config, prepared = nq_small_workdir
    workdir = artifacts.open_workdir(tmp_path / "work", config.name)
    shutil.copytree(prepared.data, workdir.data)
    whole = with_mine(config, depth=60, window=60)
    mine.run(whole, workdir)
    allowed = mined_rows(workdir)

    def drawn(seed: int) -> list[tuple[int, ...]]:
        sampled = with_mine(config, sample=True, depth=5, window=60)
        mine.run(dataclasses.replace(sampled, seed=seed), workdir)
        return mined_rows(workdir)

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

config = Config(name="small", mine=MineConfig(filter=keep))
"""


def test_a_changed_filter_is_asked_anew(
    small: tuple[Config, WorkDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = small
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(report, "say", said.append)

    def run_with(text: str) -> list[tuple[int, ...]]:
        (tmp_path / "filtering.py").write_text(text)
        loaded = config_file.load(tmp_path / "filtering.py")
        mine.run(dataclasses.replace(loaded, data=config.data), workdir)
        return mined_rows(workdir)

    assert run_with(FILTER.format(relation="!=")) == [(), ()]
    assert any("1 refused by mine.filter" in line for line in said)
    assert run_with(FILTER.format(relation="==")) == [(3,), ()]
    said.clear()
    run_with("# a line more\n" + FILTER.format(relation="=="))
    assert said == ["mine: up to date"]


def test_a_teachers_scores_follow_their_passages(
    small: tuple[Config, WorkDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = small
    said: list[str] = []
    monkeypatch.setattr(report, "say", said.append)
    scored = [
        one._replace(teacher_scores=((one.positives[0], 5.0), (6, 1.0)))
        for one in store.open_questions(workdir, "train")
    ]
    monkeypatch.setattr(mine.store, "open_questions", lambda *_: scored)

    def mined() -> list[tuple[tuple[int, float], ...]]:
        mine.run(config, workdir)
        questions = store.Questions(workdir.mined / "questions", "train")
        return [one.teacher_scores for one in questions]

    # none of the mined ones is among those that were scored
    assert mined() == [((0, 5.0), (6, 1.0)), ((3, 5.0), (6, 1.0))]
    assert any("of 2 questions the teacher's scores are of other" in x for x in said)

    def teacher(question: str, passages: list[tuple[str, str]]) -> list[int]:
        return [len(text) for _, text in passages]

    config = with_mine(config, teacher=teacher)
    assert mined() == [((0, 9.0), (3, 5.0)), ((3, 5.0),)]


def test_the_manifest_says_how_many_each_rule_passed_over(
    small: tuple[Config, WorkDir],
) -> None:
    config, workdir = small
    mine.run(config, workdir)
    facts = artifacts.read_json(workdir.mined / "manifest.json")
    assert facts["mined"]["train"] == {
        "questions": 2,
        "hard_negatives": 1,
        "without_any": 1,
        "passed_over": {"gold": 1, "near copies of a gold passage": 1},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "mine.sources is .*one or more sources, each once"),
        ({"sources": ("bm25", "bm25")}, "each once"),
        ({"skip": 95}, "mine.window is 100; it must be mine.skip"),
        ({"relative_margin": -0.1}, "mine.relative_margin is -0.1"),
        ({"near_duplicate": 0.0}, "mine.near_duplicate is 0.0"),
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
