"""The prepare stage on other layouts than DPR's: BEIR folders, MS MARCO, and questions that carry
their passages.
"""

import types
from collections.abc import Iterator
from logging import NOTSET, getLogger
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import CURLY, GOLD, OTHER, QUESTIONS, lines, write_text

from dpr_jax import console
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare, raw, store
from dpr_jax.data.readers import from_tfds
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir


def prepared(tmp_path: Path, **data: object) -> WorkDir:
    settings = {key: value if isinstance(value, int) else str(value) for key, value in data.items()}
    workdir = open_workdir(tmp_path / "work")
    prepare.run(Config(data=DataConfig(**settings)), workdir)
    return workdir


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines told to the user."""
    told: list[str] = []
    monkeypatch.setattr(console, "say", told.append)
    return told


def test_a_beir_folder(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "scifact"
    (folder / "qrels").mkdir(parents=True)
    corpus = lines({"_id": "d1", "title": "A", "text": "one"}, {"_id": "d2", "text": "two"})
    queries = lines(*({"_id": f"q{row}", "text": f"what {row}"} for row in range(4)))
    write_text(folder, "corpus.jsonl", corpus)
    write_text(folder, "queries.jsonl", queries)
    head = "query-id\tcorpus-id\tscore\n"
    write_text(folder / "qrels", "train.tsv", head + "q0\td1\t1\nq0\td2\t2\n")
    write_text(folder / "qrels", "test.tsv", head + "q2\td2\t1\nq3\td1\t0\n")
    workdir = prepared(tmp_path, passages=folder, train=folder, test=folder)
    assert store.open_corpus(workdir).ids() == ["d1", "d2"]
    train, test = (store.open_questions(workdir, split) for split in ("train", "test"))
    assert [(one.id, one.positives) for one in train] == [("q0", (0, 1))]
    assert [(one.id, one.positives) for one in test] == [("q2", (1,))]
    text = "\n".join(said)
    assert f"train: {folder} is questions, JSONL (BEIR, Tevatron)" in text
    assert "1 kept, 3 dropped: no positive passage" in text

    with pytest.raises(InputError, match=r"no dev\.tsv"):
        prepared(tmp_path, passages=folder, dev=folder)
    # taken for a folder of documents, of which a table of judgements is none
    with pytest.raises(InputError, match=r"qrels/test\.tsv: not a known layout of passages"):
        prepared(tmp_path, passages=folder / "qrels")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match="is not a BEIR folder: it has no corpus.jsonl"):
        prepared(tmp_path, passages=folder)


def test_ms_marco_with_triples_of_ids(tmp_path: Path) -> None:
    workdir = prepared(
        tmp_path,
        passages=write_text(tmp_path, "collection.tsv", '7\t"a\n8\tb\n90\tc\n'),
        train=write_text(tmp_path, "queries.tsv", "1\twho\n2\tunjudged\n"),
        train_qrels=write_text(tmp_path, "triples.tsv", "1\t7\t8\n1\t7\t90\n"),
    )
    assert store.open_corpus(workdir)[0] == ("7", "", '"a')
    (row,) = store.open_questions(workdir, "train")
    assert (row.id, row.positives, row.hard_negatives) == ("1", (0,), (1, 2))


def test_questions_bring_their_corpus(tmp_path: Path, said: list[str]) -> None:
    """Passages of all splits, each once, in the order in which they come."""
    train = write_text(tmp_path, "train.tsv", "who\thim\ther\nwhat\ther\tit\n")
    test = lines({"anchor": CURLY, "positive": "him", "negative": "new"})
    workdir = prepared(tmp_path, train=train, test=write_text(tmp_path, "test.jsonl", test))
    corpus = store.open_corpus(workdir)
    assert [one.text for one in corpus] == ["him", "her", "it", "new"]
    rows = store.open_questions(workdir, "train")
    assert [(one.positives, one.hard_negatives) for one in rows] == [
        ((0,), (1,)),
        ((1,), (2,)),
    ]
    (row,) = store.open_questions(workdir, "test")
    assert (row.positives, row.hard_negatives) == ((0,), (3,))
    assert "train: " + str(train) + " is MS MARCO triples" in "\n".join(said)


def test_squad_without_a_corpus_file(tmp_path: Path, said: list[str]) -> None:
    squad = write_text(tmp_path, *QUESTIONS["SQuAD"][:2])
    workdir = prepared(tmp_path, train=squad)
    assert store.open_corpus(workdir)[0][1:] == ("Grand Hotel", GOLD)
    (row,) = store.open_questions(workdir, "train")
    assert (row.id, row.answers, row.positives) == ("s1", ("full",), (0,))
    assert "1 kept, 1 dropped: marked impossible" in "\n".join(said)
    # as a corpus, the file has its paragraphs without questions too
    workdir = prepared(tmp_path, passages=squad, train=squad)
    assert [one.text for one in store.open_corpus(workdir)] == [GOLD, OTHER]
    (row,) = store.open_questions(workdir, "train")
    assert row.positives == (0,)


def test_test_questions_that_were_trained_on_are_told(tmp_path: Path, said: list[str]) -> None:
    train = "who is it?\thim\ther\nwhat\ther\tit\n"
    test = "1\tWho is  IT\n2\tnew\n"
    prepared(
        tmp_path,
        train=write_text(tmp_path, "train.tsv", train),
        test=write_text(tmp_path, "test.tsv", test),
    )
    assert [line for line in said if "WARNING" in line] == [
        "prepare: WARNING: 1 of 2 test questions are also in train; `dpr inspect` lists them"
    ]


def test_one_id_with_two_texts_is_refused(tmp_path: Path) -> None:
    def row(text: str) -> dict[str, object]:
        positive = {"docid": "P1", "title": "", "text": text}
        return {"query_id": text, "query": "who", "positive_passages": [positive]}

    train = write_text(tmp_path, "t.jsonl", lines(row("a"), row("b")))
    with pytest.raises(InputError, match=r"t\.jsonl:2: passage 'P1' has another text"):
        prepared(tmp_path, train=train)
    assert not list((tmp_path / "work").iterdir())


def test_no_passages_anywhere(tmp_path: Path) -> None:
    questions = write_text(tmp_path, "t.tsv", "1\twho\n")
    with pytest.raises(InputError, match=r"t\.tsv: no passage.*data\.passages is not"):
        prepared(tmp_path, test=questions)


def as_tfds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set `questions` where TFDS looks for them."""
    rows = [
        Question("x", CURLY, ("a", "b", "a"), (), (), ()),
        Question("y", "who", ("c",), (), (), ()),
    ]
    store.write_questions(folder / "written", {"validation": rows})
    (folder / "questions").mkdir()
    (folder / "written" / "questions").rename(folder / "questions" / "1.0.0")
    monkeypatch.setattr(from_tfds.tfds.core.constants, "DATA_DIR", str(folder))


def test_tfds_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    as_tfds(tmp_path, monkeypatch)
    passages = write_text(tmp_path, "p.tsv", "id\ttext\ttitle\nP1\tx\ty\n")
    workdir = prepared(tmp_path, passages=passages, test="tfds:questions#validation")
    first, second = store.open_questions(workdir, "test")
    assert (first.id, first.question, first.answers) == (
        "0",
        CURLY.replace("’", "'"),
        ("a", "b"),
    )
    assert (second.id, second.answers) == ("1", ("c",))
    assert any("TFDS questions/1.0.0#validation" in line for line in said)
    (row,) = from_tfds.questions("tfds:questions#validation[1:]").read(None)
    assert row.question == "who"


def test_what_tfds_writes_itself(tmp_path: Path) -> None:
    """A builder of TFDS's own kind, which generates its rows without TensorFlow."""
    pytest.importorskip("importlib_resources", reason="in requirements.txt for TFDS")

    class AskedHere(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # where its checksums would lie

        def _info(self) -> tfds.core.DatasetInfo:
            texts = tfds.features.Sequence(tfds.features.Text())
            features = {"question": tfds.features.Text(), "answer": texts}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: object) -> dict[str, object]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
            yield 0, {"question": CURLY, "answer": ["a", "b"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_tfds.tfds.core.constants, "DATA_DIR", str(tmp_path))
        source = from_tfds.questions("tfds:asked_here#train")
        (row,) = source.read(None)
    assert source.layout == "TFDS asked_here/1.0.0#train"
    assert (row.id, row.answers) == ("0", ("a", "b"))


def test_a_download_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreachable:
        data_dir = "here"

        def is_prepared(self) -> bool:
            return False

        def download_and_prepare(self) -> None:
            print("Downloading and preparing dataset")
            getLogger("urllib3.connectionpool").warning("Retrying")
            # as requests raises it, around what urllib3 found
            no_host = types.SimpleNamespace(reason="no host of this name\nat all")
            raise ConnectionError(no_host)

    monkeypatch.setattr(from_tfds.tfds, "builder", lambda *_, **__: Unreachable())
    with pytest.raises(InputError, match=r"\(ConnectionError: no host of this name\)"):
        from_tfds.questions("tfds:natural_questions_open#train")
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith(
        "prepare: tfds:natural_questions_open is downloaded into here; without a"
    )
    assert getLogger("urllib3").level == NOTSET


def test_squad_rows_of_tfds() -> None:
    record = {
        "question": b"who",
        "context": b"gold ",
        "title": b"A_B",
        "answers": {"text": np.array([b"x", b"x"], object), "answer_start": [0, 0]},
        "is_impossible": np.bool_(True),
    }
    row = from_tfds._question(from_tfds._plain(record), 3, "here")
    assert row.passages == (raw.by_content("A B", "gold"),)
    assert (row.id, row.answers, row.unusable) == ("3", ("x",), "marked impossible")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tfds:questions", "named with its split"),
        ("tfds:#train", "named with its split"),
        ("tfds:nothing_of_this_name#train", "cannot be had .DatasetNotFoundError"),
        ("tfds:questions#train", "cannot be had"),
    ],
)
def test_tfds_names_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    as_tfds(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=says) as caught:
        from_tfds.questions(name)
    assert "\n" not in str(caught.value)
