"""Every config file loads; every rule names its key, value and remedy."""

import ast
import dataclasses
import itertools
import sys
import typing
from pathlib import Path

import pytest

from dpr_jax import config, config_file, config_rules
from dpr_jax.config import Bm25Config, Config, DataConfig, MineConfig, TrainConfig
from dpr_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_says_how_to_run_it(path: Path) -> None:
    loaded = config_file.load(path)
    config_rules.validate(loaded)
    doc = path.read_text(encoding="utf-8").split('"""')[1]
    for fact in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert fact in doc, f"{path.name} does not say {fact}"


def test_defaults_are_valid() -> None:
    config_rules.validate(Config())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            Config(train=TrainConfig(batch_size=0)),
            "train.batch_size is 0; it must be 1 or more",
        ),
        (
            Config(train=TrainConfig(dropout=1.0)),
            r"train.dropout is 1.0; it must be 0 or more and less than 1",
        ),
        (Config(train=TrainConfig(learning_rate=0)), "train.learning_rate is 0"),
        (
            Config(mine=MineConfig(window=3)),
            r"mine.window is 3; it must be mine.skip \+ mine.depth or more",
        ),
        (
            Config(train=TrainConfig(batch_size=1, hard_negatives=0)),
            "batch_size is 1: a question without negatives teaches nothing",
        ),
        (
            Config(train=TrainConfig(distillation="kl", hard_negatives=0)),
            "train.hard_negatives is 0; it must be 1 or more when train.distillation",
        ),
        (
            Config(data=DataConfig(train=("a", "b")), train=TrainConfig(upsampling=(1,))),
            "train.upsampling is .* for each of the 2 files of data.train, or empty",
        ),
        (
            Config(data=DataConfig(train=("a", "b"), train_qrels="q")),
            "data.train_qrels is 'q'; it must be None where data.train names several",
        ),
        (
            Config(data=DataConfig(test=("a", "b"), test_qrels="q")),
            "data.test_qrels is 'q'; it must be None where data.test names several sets",
        ),
        (Config(data=DataConfig(train=("a", ""))), "files, none of them empty"),
        (Config(bm25=Bm25Config(b=2)), "bm25.b is 2; it must be 0 or more and at most 1"),
        (Config(bm25=Bm25Config(k1=-1)), "bm25.k1 is -1; it must be 0 or more"),
        (Config(seed=-1), "seed is -1; it must be 0 or more"),
        (Config(bm25=Bm25Config(k1=float("nan"))), "bm25.k1 is nan"),
    ],
)
def test_bad_values_are_named(changed: Config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_rules.validate(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("config = 3", "must define `config = Config"),
        ("import nothing_of_this_name", "does not run: ModuleNotFoundError"),
        ("config = (", "does not run: SyntaxError"),
    ],
)
def test_bad_config_files_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        config_file.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_setting_has_a_docstring() -> None:
    """It is the command line's help."""
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    parts = {f.name for f in dataclasses.fields(Config)}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if not kind.name.endswith("Config"):
            continue
        for field, after in itertools.pairwise([*kind.body, ast.Pass()]):
            if not isinstance(field, ast.AnnAssign):
                continue
            name = field.target.id
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            is_part = kind.name == "Config" and name in parts - {"seed", "compare", "rounds"}
            assert documented or is_part, f"{kind.name}.{name}"


def test_every_number_has_bounds_beside_it() -> None:
    """A number without bounds accepts what nobody means."""
    for key, hint in config_file.keys().items():
        part, _, name = key.rpartition(".")
        kind = type(getattr(Config(), part)) if part else Config
        whole = typing.get_type_hints(kind, include_extras=True)[name]
        if {int, float} & {hint, *typing.get_args(hint)}:
            assert config_rules.bounds_in(whole), key


def test_there_are_no_more_settings_than_people_can_read() -> None:
    parts = [key.split(".")[0] for key in config_file.keys()]  # noqa: SIM118 - a function
    assert len(parts) - parts.count("serve") <= 104
    assert parts.count("serve") <= 20


def test_a_config_may_import_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "our_base_config.py").write_text("SEED = 7\n")
    path = tmp_path / "mine.py"
    text = "from our_base_config import SEED\nfrom dpr_jax.config import Config\n"
    path.write_text(text + "config = Config(seed=SEED)\n")
    assert config_file.load(path).seed == 7
