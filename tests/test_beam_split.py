"""`dpr split` on Apache Beam's local runner: the passages of `dpr prepare`, in the same order; and
what it leaves when it fails.
"""

import bz2
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from layouts import write_text
from test_cut import WIKI

import dpr_jax.data
from dpr_jax import artifacts, cli
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam wants an environment of its own: pip install 'dpr_jax[beam]'",
)
WORDS = "--data.split-words=2"


def documents(folder: Path) -> Path:
    """Several layouts below a folder, with names whose order as texts is not that of the paths."""
    (folder / "A").mkdir(parents=True)
    write_text(folder / "A", "wiki_00", WIKI)
    (folder / "A" / "wiki_01.bz2").write_bytes(
        bz2.compress(b"<doc " + WIKI[5:].replace('"12"', '"13"').replace('"25"', '"26"').encode())
    )
    write_text(
        folder,
        "A-.jsonl",
        json.dumps({"id": "j", "title": "J", "text": '"un mot\u2028é"'}),
    )
    write_text(folder, "empty.jsonl", '{"id": "e", "text": ""}')
    write_text(folder, "my notes.txt", "some\nplain\ttext")
    write_text(folder, ".hidden", "not read")
    return folder


def split(documents: Path | str, out: Path | str, *options: str) -> None:
    cli.run(["split", "--out", str(out), f"--data.passages={documents}", *options])


def corpus(passages: Path, work: Path, **cutting: int) -> str:
    """The fingerprint of the corpus that `dpr prepare` makes."""
    workdir = open_workdir(work)
    data = DataConfig(passages=str(passages), **cutting)
    prepare.run(Config(data=data), workdir)
    return artifacts.fingerprint(workdir.data / "manifest.json", "corpus/")


@needs_beam
@pytest.mark.parametrize(
    "cutting", [{"split_words": 2}, {"split_tokens": 4, "split_stride_tokens": 2}]
)
def test_the_same_passages_as_on_one_machine(tmp_path: Path, cutting: dict[str, int]) -> None:
    raw = documents(tmp_path / "raw")
    flags = [f"--data.{name.replace('_', '-')}={n}" for name, n in cutting.items()]
    split(raw, tmp_path / "out", *flags)
    alone = corpus(raw, tmp_path / "alone", **cutting)
    assert corpus(tmp_path / "out", tmp_path / "beam") == alone
    facts = artifacts.verify(tmp_path / "out" / "manifest.json")
    assert facts["counts"]["documents"] == 7
    assert facts["counts"]["documents dropped: no text"] == 3
    # the documents without text have no shard
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *facts["files"],
        "manifest.json",
    }


@needs_beam
def test_on_another_file_system(tmp_path: Path) -> None:
    """Documents and passages lie where only Beam can read."""
    from apache_beam.io.filesystem import FileMetadata, MatchResult
    from apache_beam.io.localfilesystem import LocalFileSystem

    def near(path: str) -> str:
        return path.removeprefix("far://")

    class Far(LocalFileSystem):
        """This machine's files under far://, which no other reader knows."""

        @classmethod
        def scheme(cls) -> str:
            return "far"

        def match(self, patterns: list[str], limits: object = None) -> list:
            found = super().match([near(one) for one in patterns], limits)
            return [
                MatchResult(
                    one.pattern,
                    [FileMetadata(f"far://{m.path}", 0) for m in one.metadata_list],
                )
                for one in found
            ]

        def open(self, path: str, *args: object) -> object:
            return super().open(near(path), *args)

        def create(self, path: str, *args: object) -> object:
            return super().create(near(path), *args)

        def rename(self, sources: list[str], targets: list[str]) -> None:
            super().rename([near(one) for one in sources], [near(one) for one in targets])

        def delete(self, paths: list[str]) -> None:
            for path in paths:
                Path(near(path)).unlink()

    raw, out = documents(tmp_path / "raw"), tmp_path / "out"
    split(f"far://{raw}", f"far://{out}", WORDS)
    alone = corpus(raw, tmp_path / "alone", split_words=2)
    assert corpus(out, tmp_path / "beam") == alone
    write_text(raw, "bad.jsonl", "{}")
    with pytest.raises(InputError, match=f"far://{raw}/bad.jsonl: not a known layout"):
        split(f"far://{raw}", f"far://{tmp_path}/other", WORDS)


@needs_beam
def test_bad_documents_leave_nothing(tmp_path: Path) -> None:
    raw, out = documents(tmp_path / "raw"), tmp_path / "out"
    for name in ("bad.jsonl", "worse.jsonl"):
        write_text(raw, name, '{"id": "b", "text": "x"}\n{"id": "c d", "text": "x"}\n')
    with pytest.raises(InputError) as local:
        corpus(raw, tmp_path / "alone", split_words=2)
    with pytest.raises(InputError) as error:
        split(raw, out, WORDS)
    assert str(error.value) == f"{local.value} (and 1 more files)"
    assert f"{raw}/bad.jsonl:2: id of the passage 'c d'" in str(error.value)
    assert not list(out.iterdir())


@needs_beam
def test_an_unfinished_run_is_done_again(tmp_path: Path) -> None:
    raw, out = documents(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    for name in (
        "passages-0-of-9.jsonl",
        "passages-1-of-5.jsonl.partial-1f",
        "results.json",
    ):
        write_text(out, name, "left")
    with pytest.raises(InputError, match="has no manifest.json: dpr split was not finished"):
        corpus(out, tmp_path / "early")
    split(raw, out, WORDS)
    assert corpus(out, tmp_path / "beam") == corpus(raw, tmp_path / "alone", split_words=2)
    for shard in sorted(out.glob("*.jsonl"))[:1]:
        shard.write_bytes(shard.read_bytes().replace(b"one", b"two"))
    with pytest.raises(InputError, match="passages-0-of-5.jsonl is damaged"):
        corpus(out, tmp_path / "late")


@needs_beam
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "data.split_words is 0; dpr split needs it"),
        ([WORDS, "--", "--runer=Dataflow"], "Apache Beam has no option --runer"),
        ([WORDS, "--", "--direct_num_workers=x"], "invalid int value: 'x'"),
        (
            [WORDS, "--data.passages=none"],
            "data.passages is 'none', where there is nothing",
        ),
        (
            [WORDS, "--data.passages=nowhere://a"],
            r"nowhere://a/\*\* cannot be looked at",
        ),
        ([WORDS, "--out=raw"], "--out raw holds my notes.txt"),
        ([WORDS, "--out=done"], "holds passages already"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(documents(Path("raw")), "my notes.txt", "x")
    Path("done").mkdir()
    write_text(Path("done"), "manifest.json", "{}")
    with pytest.raises(InputError, match=says):
        split(Path("raw"), "out", *args)
    assert not Path("out").exists() and Path("raw/my notes.txt").exists()


def test_without_beam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "dpr_jax.data.beam_split", raising=False)
    monkeypatch.delattr(dpr_jax.data, "beam_split", raising=False)
    with pytest.raises(InputError, match=r"pip install 'dpr_jax\[beam\]'"):
        split(tmp_path, tmp_path / "out", WORDS)
    with pytest.raises(InputError, match="--out is missing; usage: dpr COMMAND"):
        cli.run(["split", WORDS])


def test_passages_that_are_cut_are_not_cut_again(tmp_path: Path) -> None:
    write_text(tmp_path, "passages-0-of-1.jsonl", "{}")
    with pytest.raises(InputError, match="holds what dpr split cut; set data.split_words"):
        corpus(tmp_path, tmp_path.with_name(f"{tmp_path.name}-work"), split_words=2)
