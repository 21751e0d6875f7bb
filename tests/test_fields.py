"""The other columns of passages: kept by `dpr prepare` and `dpr index add`, and filtered by."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dpr_jax import artifacts
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import changes, cut, fields, prepare
from dpr_jax.data.fields import Fields, with_fields
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Corpus, open_corpus
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir

ROWS = [
    {"id": "a", "text": "Etna.", "year": 1900, "metadata": {"lang": "en", "tags": ["x"]}},
    {"id": "b", "text": "Fuji.", "year": 1950.5, "open": True, "none": None},
    {"id": "c", "text": "Teide.", "metadata": {"lang": "es"}, "year": ""},
    {"id": "a", "text": "Etna.", "year": 1900},  # stands there again, and is kept once
    {"id": "d", "text": "Hekla.", "year": 2000, "metadata": {"lang": "en"}},
]


def prepared(folder: Path, passages: str, content: str, **settings: object) -> Corpus:
    (folder / passages).write_text(content)
    (folder / "test.jsonl").write_text('{"_id": "q", "text": "Which volcano?"}\n')
    data = DataConfig(str(folder / passages), test=str(folder / "test.jsonl"), **settings)
    workdir = open_workdir(folder / "work")
    prepare.run(Config(data=data), workdir)
    return open_corpus(workdir)


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(corpus: Corpus, wanted: dict[str, object]) -> list[str]:
    mask_N = corpus.fields.mask_N(json.dumps(wanted))
    assert (mask_N.dtype, mask_N.shape) == (bool, (len(corpus),))
    return [corpus[row].id for row in np.flatnonzero(mask_N).tolist()]


def test_json_lines_keep_texts_numbers_and_members(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, "corpus.jsonl", lines(ROWS))
    assert [passage.id for passage in corpus] == ["a", "b", "c", "d"]
    assert [corpus.fields.of(row) for row in range(4)] == [
        {"year": 1900, "metadata.lang": "en"},
        {"year": 1950.5, "open": True},
        {"metadata.lang": "es"},
        {"year": 2000, "metadata.lang": "en"},
    ]
    assert corpus.fields.names == ["year", "metadata.lang", "open"]
    for wanted, ids in (
        ({"year": {"gte": 1900, "lt": 2000}}, ["a", "b"]),
        ({"year": {"gt": 1900}}, ["b", "d"]),
        ({"year": 2000.0}, ["d"]),
        ({"year": [1900, 2000], "metadata.lang": "en"}, ["a", "d"]),
        ({"metadata.lang": ["es", "fr"]}, ["c"]),
        ({"metadata.lang": {"lte": "en"}}, ["a", "d"]),
        ({"open": True}, ["b"]),
        ({"open": 1}, []),
        ({"open": False}, []),
        ({"year": "1900"}, []),
    ):
        assert rows_of(corpus, wanted) == ids, wanted


def test_numbers_of_a_csv_are_compared_as_numbers(tmp_path: Path) -> None:
    content = "id,text,year,url\na,Etna.,900,u1\nb,Fuji.,1950,u2\nc,Teide.,,u3\nd,Hekla.,old,u4\n"
    corpus = prepared(tmp_path, "corpus.csv", content, columns={"ignore": "url"})
    assert corpus.fields.names == ["year"]
    assert corpus.fields.of(0) == {"year": "900"}
    assert rows_of(corpus, {"year": {"lt": 1000}}) == ["a"]
    assert rows_of(corpus, {"year": {"gte": 0}}) == ["a", "b"]
    assert rows_of(corpus, {"year": 1950}) == rows_of(corpus, {"year": "1950"}) == ["b"]


def test_a_corpus_without_other_columns_has_no_fields(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, "corpus.csv", "id,text\na,Etna.\n")
    assert corpus.fields.names == [] and corpus.fields.of(0) == {}
    assert not (open_workdir(tmp_path / "work").data / fields.FOLDER).exists()


def test_another_column_changes_nothing_for_the_stages_that_follow(tmp_path: Path) -> None:
    prints = []
    for name, row in (("one", {}), ("two", {"year": 1900}), ("three", {"text": "Etna!"})):
        (tmp_path / name).mkdir()
        prepared(tmp_path / name, "corpus.jsonl", lines([{"id": "a", "text": "Etna.", **row}]))
        manifest = open_workdir(tmp_path / name / "work").data / "manifest.json"
        prints.append(artifacts.fingerprint(manifest))
    assert prints[0] == prints[1] != prints[2]


def test_passages_that_are_added_have_their_own(tmp_path: Path) -> None:
    prepared(tmp_path, "corpus.jsonl", lines(ROWS))
    workdir = open_workdir(tmp_path / "work")
    (tmp_path / "new.jsonl").write_text(lines([{"id": "e", "text": "Erta Ale.", "depth": 3}]))
    config = Config(data=DataConfig(str(tmp_path / "corpus.jsonl")))
    changes.add(config, workdir, str(tmp_path / "new.jsonl"))
    corpus = changes.open_corpus(workdir, changes.read(workdir))
    assert corpus.fields.of(4) == {"depth": 3} and corpus.fields.of(0)["year"] == 1900
    assert rows_of(corpus, {"depth": 3}) == ["e"]
    assert rows_of(corpus, {"year": 2000}) == ["d"]


def test_passages_have_the_fields_of_their_document() -> None:
    document = with_fields(Passage("d", "T", "one two three"), {"year": 7})
    found = cut.into_passages([("here", document)], lambda words: [words[:2], words[2:]], Counter())
    passages = [passage for _, passage in found]
    assert [passage.text for passage in passages] == ["one two", "three"]
    assert [fields.fields_of(passage) for passage in passages] == [{"year": 7}] * 2


def test_columns_that_are_no_properties_are_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fields, "MOST_VALUES", 3)
    rows = [
        {"id": f"p{n}", "text": f"t{n}", "url": f"u{n}", "kind": n % 2, "story": "x" * 1001}
        for n in range(5)
    ]
    corpus = prepared(tmp_path, "corpus.jsonl", lines(rows))
    assert corpus.fields.names == ["kind"]
    said = capsys.readouterr().err
    assert "column 'url' of the passages is not kept to filter by: it has more than 3" in said
    assert "column 'story' of the passages is not kept to filter by: a value of it" in said


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, "corpus.jsonl", lines(ROWS))
    workdir: WorkDir = open_workdir(tmp_path / "work")
    (workdir.data / fields.FOLDER / "0.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"0\.json or its \.npy is missing or damaged"):
        Fields([workdir.data / "corpus"], [len(corpus)]).of(0)
