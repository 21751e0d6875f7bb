"""Mined hard negatives: ranked by BM25, and never an answer."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from dpr_jax import artifacts, logging
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, DataConfig, MineConfig
from dpr_jax.data import prepare, store
from dpr_jax.data.answers import has_answer
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.index import bm25
from dpr_jax.mining import mine

TEXTS = ["Gold one.", "gold  ONE.", "Paris it is", "wrong", "other", "more", "last"]


def ask(
    ranked: list[int], depth: int, **changes: object
) -> tuple[tuple[int, ...], Counter[str]]:
    question = Question("0", "q", ("paris",), (0,), (6,), (5,))._replace(**changes)
    count: Counter[str] = Counter()
    kept = mine.hard_negatives(
        question, ranked, TEXTS.__getitem__, depth=depth, match="string", count=count
    )
    return kept, count


def test_each_rule_passes_over_what_is_no_negative() -> None:
    kept, count = ask([2, 3, 0, 1, 4, 5], depth=2)
    assert kept == (3, 4)
    assert count == {
        "questions": 1,
        "kept": 2,
        "gold": 1,
        "the text of a gold passage": 1,
        "with an answer": 1,
        "without any": 0,
    }
    assert ask([5, 3, 4], depth=9)[0] == (5, 3, 4)  # the order of the ranking
    assert ask([2, 3], depth=9, answers=())[0] == (2, 3)  # no answers known
    kept, count = ask([2, 0, 1], depth=2)
    assert kept == () and count["without any"] == 1


def test_answers_may_be_patterns() -> None:
    question = Question("0", "q", (r"wr.ng",), (0,), (), ())
    kept = mine.hard_negatives(
        question, [3, 4], TEXTS.__getitem__, depth=2, match="regex", count=Counter()
    )
    assert kept == (4,)


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
        gold_texts = [corpus[row].text.lower().split() for row in new.positives]
        allowed = [
            row
            for row in ranked
            if row not in (-1, *new.positives)
            and not has_answer(new.answers, corpus[row].text)
            and corpus[row].text.lower().split() not in gold_texts
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
    monkeypatch.setattr(logging, "say", said.append)
    manifest = workdir.data / "manifest.json"
    data = artifacts.fingerprint(manifest)

    mine.run(config, workdir)
    rows = store.open_questions(workdir, "train", mined=True)
    assert [one.hard_negatives for one in rows] == [(3,), ()]
    assert any("warning: 1 questions have no hard negative" in line for line in said)
    assert "1 gold, 1 the text of a gold passage" in "\n".join(said)

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
