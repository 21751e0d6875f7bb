"""What is on disk is whole or not there, and what is damaged is named."""

from pathlib import Path

import pytest

from dpr_jax import artifacts
from dpr_jax.errors import InputError


class Broken(Exception):
    """Something goes wrong while writing."""


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(Broken), artifacts.atomic_file(path) as partial:
        partial.write_text("half")
        raise Broken
    assert path.read_text() == "old"
    with artifacts.atomic_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(Broken), artifacts.atomic_dir(path) as folder:
        (folder / "half").touch()
        raise Broken
    assert [entry.name for entry in path.iterdir()] == ["old"]
    with artifacts.atomic_dir(path) as folder:
        (folder / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def make(folder: Path, content: str = "content") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "file.bin").write_text(content)
    manifest = folder / "manifest.json"
    origin = artifacts.made_from("test", {"k": 1, "cut": (1, 2)}, {"input": "x"})
    artifacts.write_manifest(manifest, origin, [folder / "file.bin"], count=3)
    return manifest


def test_fresh_means_same_settings_and_inputs(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    same = artifacts.made_from("test", {"k": 1, "cut": [1, 2]}, {"input": "x"})
    assert artifacts.is_fresh(manifest, same)
    for other in (
        artifacts.made_from("test", {"k": 2, "cut": [1, 2]}, {"input": "x"}),
        artifacts.made_from("test", {"k": 1, "cut": [1, 2]}, {"input": "y"}),
        same | {"form": 2},
    ):
        assert not artifacts.is_fresh(manifest, other)
    assert not artifacts.is_fresh(tmp_path / "none.json", same)


def test_the_first_form_is_not_named(tmp_path: Path) -> None:
    """So what was made before there was a second one stays up to date."""
    first, second = (artifacts.made_from("test", {}, {}, form=n) for n in (1, 2))
    assert first == artifacts.made_from("test", {}, {})
    assert second == {**first, "form": 2}
    assert artifacts.form_of({"made_from": first}) == 1
    assert artifacts.form_of({"made_from": second}) == 2


def test_a_manifest_that_is_restated_is_sound(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    before = artifacts.read_json(manifest)
    artifacts.restate(manifest, count=4)
    facts = artifacts.verify(manifest)
    assert facts.pop("count") == 4
    assert facts.items() <= before.items()


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, same, other = (
        make(tmp_path / "a"),
        make(tmp_path / "b"),
        make(tmp_path / "c", "x"),
    )
    assert artifacts.fingerprint(one) == artifacts.fingerprint(same)
    assert artifacts.fingerprint(one) != artifacts.fingerprint(other)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    assert artifacts.verify(manifest)["count"] == 3
    (tmp_path / "a" / "file.bin").write_text("contenT")
    with pytest.raises(InputError, match=r"file.bin is damaged: its checksum"):
        artifacts.verify(manifest)
    (tmp_path / "a" / "file.bin").unlink()
    with pytest.raises(InputError, match=r"file.bin is missing"):
        artifacts.verify(manifest)


@pytest.mark.parametrize("value", [[1], {}, {"files": []}, {"files": {"a": {}}}])
def test_what_is_no_manifest(tmp_path: Path, value: object) -> None:
    path = tmp_path / "manifest.json"
    artifacts.write_json(path, value)
    with pytest.raises(InputError, match="manifest.json is damaged: it does not list"):
        artifacts.verify(path)


def test_damaged_json_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match="manifest.json is damaged") as caught:
        artifacts.read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("artifact", "command"),
    [
        ("data-0123abcd", "prepare --workdir {0}"),
        ("bm25-0123abcd", "index --retriever bm25 --workdir {0}"),
        ("retrievers/mine/embeddings-0123abcd", "encode --retriever mine --workdir {0}"),
        (
            "retrievers/mine/questions/dev-0123abcd",
            "encode --encode.questions dev --retriever mine --workdir {0}",
        ),
    ],
)
def test_damage_names_the_command_that_makes_it_anew(
    artifact: str, command: str, tmp_path: Path
) -> None:
    folder = tmp_path / artifact
    folder.mkdir(parents=True)
    manifest = make(folder)
    (folder / "file.bin").write_text("another")
    with pytest.raises(InputError) as refused:
        artifacts.verify(manifest)
    assert f"run `dpr {command.format(tmp_path)}` again" in str(refused.value)
    manifest.unlink()
    with pytest.raises(InputError, match="does not exist; run `dpr"):
        artifacts.read_json(manifest)
