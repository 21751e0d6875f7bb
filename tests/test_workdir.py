"""The layout of a work directory: what opens, where artifacts go, how pointers move."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

ORIGIN = artifacts.made_from("index", {"kind": "exact"}, {"embeddings": "abc"})


def test_opening_writes_nothing(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path / "new")
    assert not workdir.root.exists()
    assert workdir.retrievers() == []


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_workdir("~/runs").root == tmp_path / "runs"


def test_an_older_work_directory_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "workdir.json").write_text('{"config_name": "nq"}')
    (tmp_path / "model").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"older version.*--from .*/model") as caught:
        open_workdir(tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", ['{"format": 9}', "[]", "{"])
def test_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        open_workdir(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty and not a work directory"):
        open_workdir(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        open_workdir(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="not a work directory"):
        open_workdir(tmp_path / "missing", new=False)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "bm25.manifest", "x.trec", "é"])
def test_names_that_cannot_name_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="retriever name"):
        open_workdir(tmp_path).retriever(name)


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    retriever = open_workdir(tmp_path).retriever("e5-small-v2")
    other = artifacts.made_from("index", {"kind": "scann"}, {"embeddings": "abc"})
    assert retriever.place("index", ORIGIN) == retriever.place("index", dict(ORIGIN))
    assert retriever.place("index", ORIGIN) != retriever.place("index", other)


def test_a_pointer_moves_and_the_link_follows(tmp_path: Path) -> None:
    retriever = open_workdir(tmp_path).retriever("trained")
    with pytest.raises(InputError, match=r"dpr index --retriever trained --workdir"):
        retriever.current("index")
    folders = [retriever.home / f"index-{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        retriever.point("index", folder)
        assert retriever.current("index") == folder
        assert (retriever.home / "index").resolve() == folder.resolve()
    assert folders[0].exists()  # until dpr gc
    assert [one.name for one in open_workdir(tmp_path / ".").retrievers()] == ["trained"]


def test_a_work_directory_may_move(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path / "here")
    folder = workdir.place("data", ORIGIN)
    folder.mkdir(parents=True)
    workdir.point("data", folder)
    workdir.root.rename(tmp_path / "there")
    moved = open_workdir(tmp_path / "there")
    assert moved.data == moved.root / folder.name
    assert (moved.root / "data").resolve() == moved.data.resolve()


def test_an_equal_pointer_writes_nothing(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path)
    folder = workdir.place("data", ORIGIN)
    folder.mkdir()
    workdir.point("data", folder)
    before = workdir.file.stat().st_mtime_ns
    workdir.point("data", folder)
    assert workdir.file.stat().st_mtime_ns == before


def test_two_writers_of_one_file_lose_nothing(tmp_path: Path) -> None:
    """Stages of two retrievers run side by side; each changes config.json."""
    workdir = open_workdir(tmp_path / "w")
    workdir.update(current={})

    def point(stage: str) -> None:
        for number in range(30):
            folder = workdir.root / f"{stage}-{number}"
            folder.mkdir()
            workdir.point(stage, folder)

    with ThreadPoolExecutor() as pool:
        list(pool.map(point, ("data", "bm25", "mined")))
    current = workdir.read()["current"]
    assert current == {stage: f"{stage}-29" for stage in ("data", "bm25", "mined")}
