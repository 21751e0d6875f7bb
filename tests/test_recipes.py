"""Settings on disk: stored < CONFIG.py < flags, and functions known by what they depend on."""

import dataclasses
import sys
from pathlib import Path

import pytest

from dpr_jax import config_file, recipes
from dpr_jax.config import Config, MineConfig, TrainConfig
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

FILE = """
from dpr_jax.config import Config, MineConfig
{imports}
LIMIT = {limit}

def keep(question, passages):
    return [len(text) > LIMIT{helper} for _, text in passages]

config = Config(seed={seed}, mine=MineConfig(filter=keep))
"""


def write(
    folder: Path, *, limit: int = 3, seed: int = 1, imports: str = "", helper: str = ""
) -> Path:
    path = folder / "mine.py"
    path.write_text(FILE.format(limit=limit, seed=seed, imports=imports, helper=helper))
    return path


def described(path: Path) -> str:
    function = config_file.load(path).mine.filter
    assert function is not None
    return config_file.describe(function)


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path)
    config = Config(
        seed=5,
        compare=("bm25", "e5=intfloat/e5-small-v2"),
        train=TrainConfig(upsampling=(1.0, 2.5), learning_rate=1e-5),
    )
    recipes.store_workdir(workdir, config)
    recipes.store(workdir.retriever("trained"), config)
    assert recipes.load(workdir.retriever("trained")) == config


def test_a_new_retriever_starts_as_the_trained_one_or_as_another(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path)
    trained = Config(train=TrainConfig(learning_rate=1e-5))
    other = Config(train=TrainConfig(learning_rate=3e-5))
    recipes.store(workdir.retriever("trained"), trained)
    recipes.store(workdir.retriever("fast"), other)
    assert recipes.base(workdir, "new", None) == trained
    assert recipes.base(workdir, "new", "fast") == other
    assert recipes.base(workdir, "fast", None) == other
    with pytest.raises(InputError, match="no retriever 'nobody'; there is fast, trained"):
        recipes.base(workdir, "new", "nobody")


def test_differences_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(recipes, "say", said.append)
    retriever = open_workdir(tmp_path).retriever("trained")
    recipes.store(retriever, Config())
    assert said == []
    recipes.store(retriever, Config(train=TrainConfig(learning_rate=1e-5)))
    assert said == ["retriever trained: train.learning_rate was 2e-05, is 1e-05"]


def test_a_retriever_keeps_its_kind(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path)
    recipes.store(workdir.retriever("trained"), Config())
    bm25 = dataclasses.replace(
        Config(), retrieve=dataclasses.replace(Config().retrieve, kind="bm25")
    )
    with pytest.raises(InputError, match="trained is dense, and retrieve.kind says bm25"):
        recipes.store(workdir.retriever("trained"), bm25)
    recipes.store(workdir.retriever("words"), bm25)
    assert workdir.retriever("words").kind == "bm25"


def test_a_setting_of_another_version_is_named(tmp_path: Path) -> None:
    retriever = open_workdir(tmp_path).retriever("trained")
    retriever.update(kind="dense", recipe={"train": {"warmup_epochs": 3}})
    with pytest.raises(InputError, match=r"retriever\.json holds the setting 'warmup_epochs'"):
        recipes.load(retriever)


def test_a_stored_function_asks_for_its_file(tmp_path: Path) -> None:
    config = config_file.load(write(tmp_path))
    retriever = open_workdir(tmp_path / "w").retriever("trained")
    recipes.store(retriever, config)
    stored = recipes.load(retriever)
    assert config_file.describe(stored.mine.filter) == config_file.describe(config.mine.filter)
    with pytest.raises(InputError, match="keep is a function of the config file; give CONFIG.py"):
        stored.mine.filter("who?", [])


def test_a_function_depends_on_its_module_and_not_on_other_settings(tmp_path: Path) -> None:
    first = described(write(tmp_path))
    assert described(write(tmp_path, seed=2)) == first
    assert described(write(tmp_path, limit=4)) != first


def test_a_function_depends_on_the_neighbours_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    neighbour = tmp_path / "my_helpers.py"
    neighbour.write_text("EXTRA = 1\n")
    path = write(tmp_path, imports="import my_helpers", helper=" + my_helpers.EXTRA")
    first = described(path)
    neighbour.write_text("EXTRA = 2\n")
    assert described(path) != first
    monkeypatch.delitem(sys.modules, "my_helpers")


def test_paths_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passages.tsv").touch()
    (tmp_path / "e5").mkdir()
    monkeypatch.chdir(tmp_path)
    config = Config(compare=("bm25", "mine=e5", "intfloat/e5-small-v2"))
    data = dataclasses.replace(config.data, passages="passages.tsv", train=("tfds:nq#train",))
    config = recipes.absolute(dataclasses.replace(config, data=data))
    assert config.data.passages == str(tmp_path / "passages.tsv")
    assert config.data.train == ("tfds:nq#train",)
    assert config.compare == ("bm25", f"mine={tmp_path / 'e5'}", "intfloat/e5-small-v2")


def test_mine_config_of_a_file_is_checked() -> None:
    with pytest.raises(InputError, match="it must be a function that the config file defines"):
        config_file.describe(MineConfig(filter=len).filter)
