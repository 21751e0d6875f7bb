"""The encoding stage: row order, shards, resuming after a kill, what makes it start anew."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared import WIDTH, WordEmbedder, prepare, retriever

from dpr_jax import artifacts
from dpr_jax.config import Config, EncodeConfig
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError
from dpr_jax.index.embeddings import open_embeddings
from dpr_jax.workdir import RetrieverDir, WorkDir

PASSAGES = [Passage(f"p{i}", f"title {i % 7}", f"text number {i}") for i in range(23)]
PASSAGES[9] = PASSAGES[8]._replace(id="p9")  # the same words twice in one shard
CONFIG = Config(encode=EncodeConfig(rows_per_shard=5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    asked = [
        Question(id, text, (), (), (), ())
        for id, text in (("q1", "who wrote text 1"), ("q2", "where is title 2"))
    ]
    return prepare(tmp_path_factory.mktemp("encode") / "work", PASSAGES, asked)


@pytest.fixture
def target(prepared: WorkDir, request: pytest.FixtureRequest) -> RetrieverDir:
    """A retriever of its own for each test."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return retriever(prepared, name, CONFIG)


def _building(target: RetrieverDir) -> Path:
    (folder,) = target.home.glob("embeddings-*.building")
    return folder


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    embedder = WordEmbedder()
    monkeypatch.setattr(encode, "load_embedder", lambda *_, **__: embedder)
    return embedder


def _wanted() -> np.ndarray:
    texts = [(passage.title, passage.text) for passage in PASSAGES]
    return WordEmbedder().encode(texts).astype(np.float16)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.npy"))}


def test_row_i_is_passage_i(target: RetrieverDir, embedder: WordEmbedder) -> None:
    encode.run(CONFIG, target)
    shards, manifest = open_embeddings(target.current("embeddings"))
    assert [shard.shape for shard in shards] == [(5, WIDTH)] * 4 + [(3, WIDTH)]
    assert all(shard.dtype == np.float16 for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards), _wanted())
    facts = ("count", "width", "dtype", "rows_per_shard", "model")
    assert [manifest[fact] for fact in facts] == [23, WIDTH, "float16", 5, "words"]
    assert sorted(manifest["files"])[1] == "shard-00001-of-00005.npy"
    assert len(embedder.encoded) == 22  # equal passages are computed once
    names = {path.name for path in target.current("embeddings").iterdir()}
    assert names == {*manifest["files"], "manifest.json"}
    assert not [*target.home.glob("*.building")]


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


def _run_killed_in_shard(
    number: int, config: Config, target: RetrieverDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def write_until(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > number:
            raise _Killed
        whole(*arguments)

    with monkeypatch.context() as patch:
        whole = encode._write
        patch.setattr(encode, "_write", write_until)
        with pytest.raises(_Killed):
            encode.run(config, target)


def test_a_killed_run_goes_on_where_it_was(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_killed_in_shard(3, CONFIG, target, monkeypatch)
    assert target.find("embeddings") is None
    # what a kill in the middle of a write leaves
    building = _building(target)
    (building / "shard-00003-of-00005.npy.partial").write_bytes(b"half")
    embedder.encoded.clear()
    encode.run(CONFIG, target)
    assert len(embedder.encoded) == 8  # two shards, of five and three passages
    shards, _ = open_embeddings(target.current("embeddings"))
    np.testing.assert_array_equal(np.concatenate(shards), _wanted())
    assert not list(target.current("embeddings").glob("*.partial"))


def test_killed_between_manifest_and_renaming(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Path) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "replace_dir", killed)
        with pytest.raises(_Killed):
            encode.run(CONFIG, target)
    embedder.encoded.clear()
    encode.run(CONFIG, target)
    assert embedder.encoded == []
    assert len(open_embeddings(target.current("embeddings"))[0]) == 5


def test_a_shard_of_another_shape_is_encoded_again(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_killed_in_shard(2, CONFIG, target, monkeypatch)
    building = _building(target)
    np.save(building / "shard-00000-of-00005.npy", np.zeros((5, 3), np.float16))
    (building / "shard-00001-of-00005.npy").write_bytes(b"\x93NUMPY")
    encode.run(CONFIG, target)
    shards, _ = open_embeddings(target.current("embeddings"))
    np.testing.assert_array_equal(np.concatenate(shards), _wanted())


def test_finished_work_is_not_done_again(target: RetrieverDir, embedder: WordEmbedder) -> None:
    encode.run(CONFIG, target)
    embedder.encoded.clear()
    encode.run(CONFIG, target)
    assert embedder.encoded == []
    # how much is computed at once changes no vector
    encode.run(
        dataclasses.replace(CONFIG, encode=EncodeConfig(rows_per_shard=5, batch_tokens=7)),
        target,
    )
    assert embedder.encoded == []


def test_other_settings_start_anew_and_keep_the_old_until_done(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode.run(CONFIG, target)
    before = target.current("embeddings")
    old = _bytes(before)
    other = Config(encode=EncodeConfig(rows_per_shard=10))
    _run_killed_in_shard(1, other, target, monkeypatch)
    assert target.current("embeddings") == before and _bytes(before) == old
    embedder.fingerprint = "other weights"  # shards of the killed run are of no use now
    embedder.encoded.clear()
    encode.run(other, target)
    assert len(embedder.encoded) == 22
    shards, _ = open_embeddings(target.current("embeddings"))
    assert [len(shard) for shard in shards] == [10, 10, 3]
    assert _bytes(before) == old  # until dpr gc


def test_two_processes_share_the_shards(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one after the other here; the second is the main process, which writes the manifest
    monkeypatch.setattr(encode.parallel, "barrier", lambda name: None)
    monkeypatch.setattr(encode.parallel, "of_main", lambda values: values)
    monkeypatch.setattr(encode.parallel, "agree", lambda inputs: None)
    monkeypatch.setattr(encode.jax, "process_count", lambda: 2)
    monkeypatch.setattr(encode.jax, "process_index", lambda: 1)
    encode.run(CONFIG, target)
    assert len(embedder.encoded) == 9  # shards 1 and 3, with one passage there twice
    assert target.find("embeddings") is None
    monkeypatch.setattr(encode.jax, "process_index", lambda: 0)
    encode.run(CONFIG, target)
    shards, _ = open_embeddings(target.current("embeddings"))
    np.testing.assert_array_equal(np.concatenate(shards), _wanted())
    assert len(embedder.encoded) == 22


@pytest.mark.parametrize("value", [np.nan, 7e4])
def test_unsound_vectors_name_their_passage(
    target: RetrieverDir,
    embedder: WordEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    def encode_badly(texts: list[tuple[str, str]]) -> np.ndarray:
        emb_ND = np.ones((len(texts), WIDTH), np.float32)
        emb_ND[[text == "text number 13" for _, text in texts]] = value
        return emb_ND

    monkeypatch.setattr(embedder, "encode", encode_badly)
    with pytest.raises(InputError, match=r"passage 'p13' \(row 13\)"):
        encode.run(CONFIG, target)
    assert target.find("embeddings") is None


@pytest.mark.parametrize("questions", [None, "test"])
def test_a_flipped_byte_is_found_in_every_file(
    target: RetrieverDir, embedder: WordEmbedder, questions: str | None
) -> None:
    settings = EncodeConfig(rows_per_shard=5, questions=questions)
    encode.run(Config(encode=settings), target)
    folder = target.current("questions/test" if questions else "embeddings")
    files = sorted(set(folder.iterdir()) - {folder / "manifest.json"})
    assert len(files) == (2 if questions else 5)
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            content = bytearray(whole)
            content[place] ^= 1
            file.write_bytes(content)
            with pytest.raises(InputError, match=f"{file.name} is damaged"):
                open_embeddings(folder)
        file.write_bytes(whole)
    open_embeddings(folder)


def test_questions_have_float32_vectors_and_ids(
    target: RetrieverDir, embedder: WordEmbedder, tmp_path: Path
) -> None:
    def encoded(questions: str, stage: str) -> list[str]:
        settings = EncodeConfig(rows_per_shard=2, questions=questions)
        encode.run(Config(encode=settings), target)
        out = target.current(stage)
        shards, facts = open_embeddings(out)
        texts = [*map(str, embedder.encoded)]
        assert (facts["dtype"], facts["model"]) == ("float32", "words")
        wanted = WordEmbedder().encode(["who wrote text 1", "where is title 2"])
        np.testing.assert_array_equal(np.concatenate(shards), wanted)
        embedder.encoded.clear()
        encode.run(Config(encode=settings), target)  # is fresh
        assert embedder.encoded == []
        assert texts == ["where is title 2", "who wrote text 1"]
        return artifacts.read_json(out / "ids.json")

    assert encoded("test", "questions/test") == ["q1", "q2"]
    file = tmp_path / "asked.qa.csv"
    file.write_text("who wrote text 1\t['x']\nwhere is title 2\t['y']\n")
    stage = f"questions/asked.qa-{artifacts.checksum(file)[:8]}"
    assert encoded(str(file), stage) == ["0", "1"]
    assert target.find("embeddings") is None
    with pytest.raises(InputError, match="no split 'train'"):
        encode.run(Config(encode=EncodeConfig(questions="train")), target)
    with pytest.raises(InputError, match=r"absent\.csv"):
        encode.run(Config(encode=EncodeConfig(questions="absent.csv")), target)


def test_another_processor_encodes_nothing_again(
    target: RetrieverDir, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is float32 on one machine and bfloat16 on the next."""
    monkeypatch.setattr(encode, "compute_dtype", lambda _: "float32")
    encode.run(CONFIG, target)
    assert open_embeddings(target.current("embeddings"))[1]["computed_in"] == "float32"
    embedder.encoded.clear()
    monkeypatch.setattr(encode, "compute_dtype", lambda _: "bfloat16")
    encode.run(CONFIG, target)
    assert embedder.encoded == []
