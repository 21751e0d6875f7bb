"""Raw files -> data sets: what is kept, what is refused, and that nothing is left half done."""

import dataclasses
import itertools
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from dpr_jax import artifacts, console
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import passage_rows, prepare, store
from dpr_jax.data.raw import Passage, RawQuestion
from dpr_jax.data.readers import formats, pieces
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir

PASSAGES = "id\ttext\ttitle\nP1\tone\tA\nP2\ttwo\tB\nP3\tthree\t\nP4\tone\tC\n"


def question(text: str, *positives: str, **changes: Any) -> dict[str, Any]:
    contexts = [{"passage_id": id_} for id_ in positives]
    return {"question": text, "answers": [text], "positive_ctxs": contexts} | changes


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Path]:
    """A small, sound set of raw files."""
    train = [
        question("a", "P2", hard_negative_ctxs=[{"psg_id": "P3"}, {"psg_id": "P9"}]),
        question("no gold"),
        question("b", "P4", "P1", "P4", negative_ctxs=[{"psg_id": "P1"}]),
    ]
    contents = {
        "passages": ("passages.tsv", PASSAGES),
        "train": ("train.json", json.dumps(train, indent=1)),
        "dev": ("dev.json", json.dumps([question("c", "P3")], indent=1)),
        "test": ("test.qa.csv", "d\t['x', 'y']\ne\t[]\n"),
        "test_qrels": ("test.qrels", "1 0 P3 1\n1 0 P1 1\n7 0 P1 1\n"),
    }
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, text in contents.values():
        (folder / name).write_text(text, encoding="utf-8")
    return {key: folder / name for key, (name, _) in contents.items()}


def setup(
    tmp_path: Path, raw: dict[str, Path], name: str = "work", **changes: Any
) -> tuple[Config, WorkDir]:
    data = DataConfig(**{key: str(path) for key, path in raw.items()})
    return Config(data=dataclasses.replace(data, **changes)), open_workdir(tmp_path / name)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines told to the user."""
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    return lines


def test_prepared_rows(
    tmp_path: Path,
    raw: dict[str, Path],
    said: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)

    corpus = store.open_corpus(workdir)
    assert list(corpus) == [
        ("P1", "A", "one"),
        ("P2", "B", "two"),
        ("P3", "", "three"),
        ("P4", "C", "one"),
    ]
    assert corpus.ids() == ["P1", "P2", "P3", "P4"]
    assert corpus.rows([3, 0]) == [corpus[3], corpus[0]] and corpus.rows([]) == []
    assert list(store.open_questions(workdir, "train")) == [
        ("0", "a", ("a",), (1,), (2,), (), (), ()),
        ("2", "b", ("b",), (3, 0), (), (), (), ()),
    ]
    assert list(store.open_questions(workdir, "dev")) == [("0", "c", ("c",), (2,), (), (), (), ())]
    assert list(store.open_questions(workdir, "test")) == [
        ("0", "d", ("x", "y"), (), (), (), (), ()),
        ("1", "e", (), (2, 0), (), (), (), ()),
    ]
    assert capfd.readouterr() == ("", "")  # TFDS has bars and lines of its own
    for fact in (
        "4 passages (1 repeat another's text, 0 have none)",
        "train: 2 kept, 1 negatives dropped: not in the corpus",
        "1 dropped: no positive passage",
        "1 negatives dropped: also gold",
        "test: 2 kept, 1 without gold passage, 1 without answers",
        "1 judged in qrels but not asked",
    ):
        assert fact in "\n".join(said)


def test_real_rows_are_those_of_the_raw_files(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    config, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    passages = [one for _, one in formats.read_passages(Path(config.data.passages))]
    assert list(corpus) == passages
    for split in ("train", "dev"):
        rows = json.loads(Path(getattr(config.data, split)).read_text("utf-8"))
        prepared = store.open_questions(workdir, split)
        assert len(prepared) == len(rows)
        for row, one in zip(rows, prepared, strict=True):
            assert one.question == row["question"].replace("’", "'")
            assert list(one.answers) == row["answers"]
            texts = [passage.text for passage in corpus.rows(one.positives)]
            expected = [context["text"].strip('"') for context in row["positive_ctxs"]]
            assert texts == expected
    test = store.open_questions(workdir, "test")
    assert [one.id for one in test] == [str(row) for row in range(60)]
    assert all(one.positives and one.answers for one in test)


def test_json_and_tsv_test_questions_and_absent_splits(
    tmp_path: Path, raw: dict[str, Path]
) -> None:
    config, workdir = setup(tmp_path, raw, test=str(raw["train"]), test_qrels=None, dev=None)
    prepare.run(config, workdir)
    test = store.open_questions(workdir, "test")
    assert [one.positives for one in test] == [(1,), (), (3, 0)]
    with pytest.raises(InputError, match=r"no split 'dev'.*data\.dev"):
        store.open_questions(workdir, "dev")

    asked = tmp_path / "test.tsv"
    asked.write_text("q7\twhat?\n", encoding="utf-8")
    raw["test_qrels"].write_text("q7 0 P4 1\n", encoding="utf-8")
    config, workdir = setup(tmp_path, raw, "other", test=str(asked))
    prepare.run(config, workdir)
    assert list(store.open_questions(workdir, "test")) == [
        ("q7", "what?", (), (3,), (), (), (), ())
    ]


def test_max_train_questions_counts_kept_rows(
    tmp_path: Path, raw: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, workdir = setup(tmp_path, raw, max_train_questions=2)
    prepare.run(config, workdir)
    assert [one.id for one in store.open_questions(workdir, "train")] == ["0", "2"]
    assert "left out" not in capsys.readouterr().err
    drawn = set()
    for seed in range(8):
        config, workdir = setup(tmp_path, raw, max_train_questions=1)
        prepare.run(dataclasses.replace(config, seed=seed), workdir)
        (one,) = store.open_questions(workdir, "train")
        drawn.add(one.id)
    assert drawn == {"0", "2"}
    assert "1 left out by data.max_train_questions" in capsys.readouterr().err


def test_a_draw_is_from_all_over_the_file_and_keeps_its_order() -> None:
    rows = [RawQuestion(str(i), "?", where="") for i in range(1000)]
    counts = [Counter() for _ in range(20)]
    draws = [
        [int(row.id) for row in prepare._drawn(rows, count, most=100, seed=seed)]
        for seed, count in enumerate(counts)
    ]
    assert all(draw == sorted(set(draw)) and len(draw) == 100 for draw in draws)
    assert {count.total() for count in counts} == {900}
    # each of ten parts of the file has a tenth, within five standard deviations of 2,000 rows drawn
    parts = np.bincount(np.concatenate(draws) // 100, minlength=10)
    np.testing.assert_allclose(parts, 200, atol=5 * (2000 * 0.1 * 0.9) ** 0.5)
    repeated = prepare._drawn(rows, Counter(), most=100, seed=0)
    assert [int(row.id) for row in repeated] == draws[0]


def break_file(raw: dict[str, Path], key: str, text: str) -> None:
    raw[key].write_text(text, encoding="utf-8")


BAD = {
    "missing file": ("train", lambda raw: raw["train"].unlink(), "does not exist"),
    "truncated JSON": (
        "train",
        lambda raw: break_file(raw, "train", raw["train"].read_text()[:-20]),
        "truncated",
    ),
    "row without question": (
        "dev",
        lambda raw: break_file(raw, "dev", '[{"positive_ctxs": []}]'),
        "no question",
    ),
    "passage id twice": (
        "passages",
        lambda raw: break_file(raw, "passages", PASSAGES + "P5\tx\ty\nP2\tz\tu\n"),
        ":7: passage id 'P2' occurs twice, first at line 3 with another text",
    ),
    "gold passage missing": (
        "train",
        lambda raw: break_file(raw, "train", json.dumps([question("a", "P1", "P8")])),
        "row 0 (line 1): gold passage 'P8' is not in the corpus",
    ),
    "empty corpus": (
        "passages",
        lambda raw: break_file(raw, "passages", "id\ttext\ttitle\n"),
        "the corpus is empty",
    ),
    "no usable question": (
        "train",
        lambda raw: break_file(raw, "train", json.dumps([question("a")])),
        "no question to use as data.train (0 kept, 1 dropped: no positive passage (such as",
    ),
    "corpus without passages": (
        "passages",
        lambda raw: break_file(raw, "passages", ""),
        "is empty",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, raw: dict[str, Path], name: str
) -> None:
    key, spoil, says = BAD[name]
    config, workdir = setup(tmp_path, raw)
    spoil(raw)
    with pytest.raises(InputError) as caught:
        prepare.run(config, workdir)
    message = str(caught.value)
    assert str(raw[key]) in message and says in message and "\n" not in message
    assert not workdir.root.exists() or not list(workdir.root.iterdir())


def test_grades_of_the_qrels_are_kept(tmp_path: Path, raw: dict[str, Path]) -> None:
    grades = "0 0 P3 1\n0 0 P1 3\n0 0 P2 0\n0 0 P4 2\n1 0 P1 -1\n1 0 P2 1\n"
    break_file(raw, "test_qrels", grades)
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    first, second = store.open_questions(workdir, "test")
    assert first.grade_by_row() == {2: 1, 0: 3, 3: 2} and first.positives == (2, 0, 3)
    assert second.grade_by_row() == {1: 1}


def test_judged_passages_that_the_corpus_lacks(
    tmp_path: Path, raw: dict[str, Path], said: list[str]
) -> None:
    """They are left out and counted; a question of which none is left is dropped."""
    break_file(raw, "test", "q1\twho\nq2\twhat\nq3\twhy\n")
    raw["test"] = raw["test"].rename(tmp_path / "test.tsv")
    judged = "q1\tP9\t1\nq1\tP2\t2\nq2\tP8\t1\nq3\tP1\t1\nq7\tP1\t1\n"
    break_file(raw, "test_qrels", "query-id\tcorpus-id\tscore\n" + judged)
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    found = [(one.id, one.grade_by_row()) for one in store.open_questions(workdir, "test")]
    assert found == [("q1", {1: 2}), ("q3", {0: 1})]
    text = "\n".join(said)
    place = f"{raw['test_qrels']}:2: 'P9'"
    assert f"2 of 4 gold passages (50.0 %) are dropped: not in the corpus, such as {place}" in text
    for fact in (
        "test: 2 kept",
        "1 judged in qrels but not asked",
        "2 gold passages dropped: not in the corpus",
        "1 dropped: no gold passage in the corpus, and no answers",
    ):
        assert any(fact in line for line in said if line.startswith("prepare: test: "))

    config, workdir = setup(tmp_path, raw, "strict", on_missing="error")
    with pytest.raises(InputError, match=r"\.qrels:2: gold passage 'P9' is not in the corpus"):
        prepare.run(config, workdir)


def test_gold_passages_of_rows_are_dropped_where_that_is_set(
    tmp_path: Path, raw: dict[str, Path], said: list[str]
) -> None:
    rows = [question("a", "P8", "P1"), question("b", "P9")]
    break_file(raw, "train", json.dumps(rows))
    config, workdir = setup(tmp_path, raw, on_missing="drop")
    prepare.run(config, workdir)
    (kept,) = store.open_questions(workdir, "train")
    assert (kept.question, kept.positives) == ("a", (0,))
    assert "1 dropped: no positive passage" in "\n".join(said)


def test_judgements_that_contradict_each_other_are_told(
    tmp_path: Path, raw: dict[str, Path], said: list[str]
) -> None:
    break_file(raw, "test_qrels", "0 0 P3 1\n0 0 P3 0\n1 0 P1 1\n1 0 P1 1\n0 0 P3 2\n")
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    (line,) = (line for line in said if "contradict" in line)
    assert line.startswith("prepare: WARNING: 2 judgements contradict an earlier one, which counts")
    assert f"{raw['test_qrels']}:2: passage 'P3' of question '0' has grade 0" in line
    assert [one.grade_by_row() for one in store.open_questions(workdir, "test")] == [{2: 1}, {0: 1}]


def test_a_passage_that_is_there_twice_is_kept_once(
    tmp_path: Path, raw: dict[str, Path], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ROWS_PER_READ", 2)
    break_file(raw, "passages", PASSAGES + "P2\ttwo\tB\nP5\tfive\t\nP1\tone\tA\nP2\ttwo\tB\n")
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    assert store.open_corpus(workdir).ids() == ["P1", "P2", "P3", "P4", "P5"]
    assert [one.positives for one in store.open_questions(workdir, "train")] == [(1,), (3, 0)]
    assert any("corpus: 5 passages" in line and "3 stood there again" in line for line in said)
    listed = artifacts.verify(workdir.data / "manifest.json")["files"]
    on_disk = {path.relative_to(workdir.data).as_posix() for path in workdir.data.rglob("*.*")}
    assert on_disk == {*listed, "manifest.json"}


def test_settings_that_cannot_be(tmp_path: Path, raw: dict[str, Path]) -> None:
    for changes, says in (
        ({"passages": None}, "data.passages is not set"),
        ({"train": str(raw["test"])}, "data.train"),
        ({"test": str(raw["test_qrels"])}, "not a known layout of questions"),
    ):
        config, workdir = setup(tmp_path, raw, **changes)
        with pytest.raises(InputError, match=says):
            prepare.run(config, workdir)


def test_what_the_system_refuses_is_one_line(tmp_path: Path, raw: dict[str, Path]) -> None:
    """A folder that may not be looked into does the same, but not to root."""
    too_long = "x" * 300
    for key, changes in (
        ("passages", {}),
        ("passages", {"split_words": 2}),
        ("train", {}),
        ("dev_qrels", {}),
    ):
        config, workdir = setup(tmp_path, raw, **{key: too_long}, **changes)
        with pytest.raises(InputError, match="xxx cannot be read: File name too long"):
            prepare.run(config, workdir)


def test_bad_input_leaves_the_data_of_before(tmp_path: Path, raw: dict[str, Path]) -> None:
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    before = artifacts.fingerprint(workdir.data / "manifest.json")
    break_file(raw, "dev", "[")
    with pytest.raises(InputError):
        prepare.run(config, workdir)
    assert artifacts.fingerprint(workdir.data / "manifest.json") == before
    assert len(store.open_corpus(workdir)) == 4


def test_a_second_run_does_nothing(tmp_path: Path, raw: dict[str, Path], said: list[str]) -> None:
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    written = (workdir.data / "manifest.json").stat().st_mtime_ns
    said.clear()
    prepare.run(config, workdir)
    assert said == [f"prepare: up to date ({workdir.data})"]
    assert (workdir.data / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("form", [None, store.FORM + 1])
def test_data_of_another_version_are_refused_and_prepared_anew(
    tmp_path: Path, raw: dict[str, Path], said: list[str], form: int | None
) -> None:
    """As the files and settings are the same, only the form tells them apart."""
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    manifest = workdir.data / "manifest.json"
    made_from = artifacts.read_json(manifest)["made_from"]
    assert made_from.pop("form") == store.FORM
    of_another = made_from if form is None else made_from | {"form": form}
    artifacts.restate(manifest, made_from=of_another)
    assert len(store.open_corpus(workdir)) == 4  # which is the same in both
    with pytest.raises(InputError, match=f"in form {form or 1}; .*run `dpr prepare --workdir"):
        store.open_questions(workdir, "train")
    said.clear()
    prepare.run(config, workdir)
    assert not any("up to date" in line for line in said)
    assert store.open_questions(workdir, "train")[0].question
    prepare.run(config, workdir)
    assert "up to date" in said[-1]


def test_another_process_writes_the_same_bytes(tmp_path: Path, raw: dict[str, Path]) -> None:
    """Later stages know their inputs by content: what is prepared anew must not make them run
    again.
    """
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    code = (
        "from dpr_jax.workdir import open_workdir; from dpr_jax.data import prepare; from"
        " dpr_jax.config import *; "
    )
    code += f"prepare.run({config!r}, open_workdir({str(tmp_path / 'other')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    here, there = (
        artifacts.fingerprint(one.data / "manifest.json")
        for one in (workdir, open_workdir(tmp_path / "other"))
    )
    assert here == there


def test_what_a_killed_run_leaves_is_cleared(tmp_path: Path, raw: dict[str, Path]) -> None:
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    data = workdir.data
    partial = data.rename(data.with_name(data.name + ".partial"))
    (partial / "corpus" / "corpus-corpus.array_record-00000").write_bytes(b"half")
    prepare.run(config, workdir)
    assert not partial.exists() and workdir.data == data
    assert len(store.open_corpus(workdir)) == 4


def test_other_settings_or_files_prepare_again(tmp_path: Path, raw: dict[str, Path]) -> None:
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    break_file(raw, "dev", json.dumps([question("new", "P1")]))
    prepare.run(config, workdir)
    assert store.open_questions(workdir, "dev")[0].question == "new"


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, raw: dict[str, Path]) -> None:
    config, workdir = setup(tmp_path, raw)
    with pytest.raises(InputError, match="run `dpr prepare --workdir"):
        store.open_corpus(workdir)
    prepare.run(config, workdir)
    with pytest.raises(InputError, match="mined/manifest.json does not exist"):
        store.open_questions(workdir, "train", mined=tmp_path / "mined")
    (shard,) = (workdir.data / "corpus").glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=shard.name):
        store.open_corpus(workdir)
    assert len(store.open_questions(workdir, "train")) == 2


def test_data_sets_are_sequences_that_can_be_pickled(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    _, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    questions = store.open_questions(workdir, "test")
    for data in (corpus, questions):
        copy = pickle.loads(pickle.dumps(data))
        assert len(pickle.dumps(data)) < 10_000
        assert list(copy) == list(data) == [data[row] for row in range(len(data))]
        with pytest.raises(IndexError):
            data[len(data)]
    shuffled = grain.MapDataset.source(questions).seed(1).shuffle()
    assert sorted(one.id for one in shuffled) == sorted(one.id for one in questions)


def test_records_are_those_of_tfds_own_serializer(
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    _, workdir = nq_small_workdir
    nothing = store.Question("", "q\0é", (), (), (), ())
    edges = store.Question("1", "", ("", "a\n"), (0, 2**62), (), (-1,), ((3, 0.1),))
    passages = itertools.islice(store.open_corpus(workdir), 50)
    questions = itertools.islice(store.open_questions(workdir, "train"), 50)
    rows = {
        "corpus": [one._asdict() for one in (*passages, Passage("", "", "\u2028"))],
        "questions": [*map(store.question_record, (*questions, nothing, edges))],
    }
    for name, listed in rows.items():
        features = tfds.builder_from_directory(str(workdir.data / name)).info.features
        serializer = ExampleSerializer(features.get_serialized_info())
        lists = store.lists_of(features)
        for row in listed:
            example = serializer.get_tf_example(features.encode_example(row))
            expected = example.SerializeToString(deterministic=True)
            assert store.serialized(row, lists) == expected


def test_shards_keep_the_order(
    tmp_path: Path, raw: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 80)
    monkeypatch.setattr(store, "ROWS_PER_READ", 4)
    table = "".join(f"P{row}\ttext {row}\t\n" for row in range(100))
    break_file(raw, "passages", "id\ttext\ttitle\n" + table)
    config, workdir = setup(tmp_path, raw)
    prepare.run(config, workdir)
    assert len(list((workdir.data / "corpus").glob("*array_record*"))) > 10
    assert store.open_corpus(workdir).ids() == [f"P{row}" for row in range(100)]


def test_hashed_texts_against_a_dict() -> None:
    texts = [f"t{number % 70}" for number in range(100)]
    hashed = passage_rows.HashedTexts()
    for text in texts[:70]:
        hashed.add(text)
    assert hashed.table().repeats() == []
    for text in texts[70:]:
        hashed.add(text)
    table = hashed.table()
    assert len(hashed) == 100 and hashed.distinct() == 70
    assert table.rows(texts) == [number % 70 for number in range(100)]
    assert table.rows(["t70", "", "t0"]) == [-1, -1, 0] and table.rows([]) == []
    assert table.repeats() == [(number, number + 70) for number in range(30)]
