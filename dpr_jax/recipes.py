"""Settings on disk: those of a work directory in config.json, each retriever's in retriever.json.

The order is stored < CONFIG.py < flags. A CONFIG.py replaces what is stored; flags change it for
the retriever that is named.
"""

import contextlib
import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.config_file import flat, from_dict, to_dict
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.workdir import RetrieverDir, WorkDir, kind_by_name

OF_WORKDIR = ("seed", "compare", "rounds", "data", "bm25", "evaluate")
OF_RETRIEVER = ("seed", "bm25", "mine", "model", "train", "encode", "index", "retrieve")
# settings that name a question set for one command; they are not part of a recipe
OF_ONE_COMMAND = {"encode": ("questions",), "retrieve": ("split", "questions")}
DATA_FILES = ("passages", "train", "dev", "test", "train_qrels", "dev_qrels", "test_qrels")
MAIN = "trained"  # the retriever that the pipeline trains


def load(retriever: RetrieverDir) -> Config:
    """Returns the stored settings of a retriever, with those of its work directory."""
    config = load_workdir(retriever.workdir)
    recipe = retriever.read().get("recipe", {})
    return from_dict(config, recipe, str(retriever.file))


def load_workdir(workdir: WorkDir) -> Config:
    """Returns the stored settings of a work directory; defaults where nothing is stored."""
    stored = workdir.read().get("config", {})
    return from_dict(Config(), stored, str(workdir.file))


def base(workdir: WorkDir, name: str, like: str | None) -> Config:
    """Returns the settings that a command starts from where no CONFIG.py is given.

    A new retriever starts as `like`, or as the trained one where there is one.

    Raises:
      InputError: there is no retriever `like`.
    """
    for other in (name, like or MAIN):
        if workdir.retriever(other).file.exists():
            return load(workdir.retriever(other))
    if like:
        raise unknown(workdir, like)
    return load_workdir(workdir)


def unknown(workdir: WorkDir, name: str) -> InputError:
    """Returns the error for a retriever that is not there, with those that are."""
    names = ", ".join(one.name for one in workdir.retrievers()) or "none yet"
    return InputError(f"{workdir.root} has no retriever {name!r}; there is {names}")


def store_workdir(workdir: WorkDir, config: Config, *, data: bool = True) -> None:
    """Writes the settings of a work directory, and says which changed.

    Args:
      workdir: where.
      config: its settings.
      data: whether the data were prepared from `config.data`; else those stay that are stored.
    """
    plain = {part: to_dict(config)[part] for part in OF_WORKDIR}
    before = workdir.read().get("config")
    if before and not data and plain["data"] != before["data"]:
        say("config: the data are those that were prepared; `dpr prepare` takes other settings")
        plain["data"] = before["data"]
    _say_differences("config", before, plain)
    if before != plain:
        workdir.update(config=plain, versions=artifacts.versions())


def store(
    retriever: RetrieverDir,
    config: Config,
    *,
    source: str | None = None,
    like: RetrieverDir | None = None,
) -> None:
    """Writes the recipe of a retriever, and says which settings changed.

    Args:
      retriever: there or not.
      config: its settings.
      source: the encoder it uses as it comes; None keeps what is stored.
      like: a new retriever starts with the artifacts of this one.

    Raises:
      InputError: retrieve.kind contradicts what the retriever is.
    """
    found = retriever.read()
    kind = config.retrieve.kind or found.get("kind") or kind_by_name(retriever.name)
    if found and kind != found["kind"]:
        raise InputError(
            f"retriever {retriever.name} is {found['kind']}, and retrieve.kind says {kind}; name"
            " another one with --retriever NAME"
        )
    recipe = {part: to_dict(config)[part] for part in OF_RETRIEVER}
    for part, names in OF_ONE_COMMAND.items():
        recipe[part] = {k: v for k, v in recipe[part].items() if k not in names}
    _say_differences(f"retriever {retriever.name}", found.get("recipe"), recipe)
    source = _absolute(source) or found.get("source")
    if found and source != found.get("source"):
        say(f"retriever {retriever.name}: its encoder was {found.get('source')!r}, is {source!r}")
    facts = {"kind": kind, "source": source, "recipe": recipe}
    if not found and like is not None:
        facts["current"] = like.read().get("current", {})
        facts["source"] = source or like.source
    retriever.update(**facts)


def for_encoder(config: Config) -> Config:
    """Returns the settings for a foreign encoder, whose folder says what it is."""
    says_itself = {field.name: None for field in dataclasses.fields(config.model)}
    kept = {"init": config.model.init, "shared_towers": False}
    model = dataclasses.replace(config.model, **(says_itself | kept))
    return dataclasses.replace(config, model=model)


def absolute(config: Config) -> Config:
    """Returns the config with paths that do not depend on the current directory.

    `~` is the home folder. A URL, `tfds:NAME` and a hub id stay as they are; the latter is all that
    `model.init` and `compare` name and is not there.
    """
    data = {name: _absolute(getattr(config.data, name), always=True) for name in DATA_FILES}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        model=dataclasses.replace(config.model, init=_absolute(config.model.init)),
        compare=_absolute(config.compare),
    )


def alike(command: str, operands: list[str], config: Config) -> dict[str, str]:
    """Returns what has to be equal on all processes of a run, by name.

    Not the files of `data`, which process 0 alone reads.
    """
    code = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    own = {key: json.dumps(value) for key, value in flat(to_dict(config)).items()}
    files = {f"data.{name}" for name in DATA_FILES}
    return {
        "version of dpr_jax": code.hexdigest(),
        "command": " ".join((command, *operands)),
        "set of packages": json.dumps([platform.python_version(), artifacts.versions()]),
        **{key: value for key, value in own.items() if key not in files},
    }


def _absolute(value: Any, *, always: bool = False) -> Any:
    """Returns absolute paths, of what is there or `always`."""
    if isinstance(value, tuple):
        return tuple(_absolute(one, always=always) for one in value)
    if not value or value in ("bm25", "untrained"):
        return value
    name, equals, path = value.partition("=")
    if not equals or "/" in name or _is_there(value):  # a folder may be called date=2026
        name, equals, path = "", "", value
    if path.startswith("tfds:") or "://" in path:
        return value
    if always or _is_there(path):
        return f"{name}{equals}{Path(path).expanduser().absolute()}"
    return value


def _is_there(path: str) -> bool:
    with contextlib.suppress(OSError):  # no name that a disk could have
        return Path(path).expanduser().exists()
    return False


def _say_differences(title: str, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
    """Prints the stored settings that get another value."""
    if before is None:
        return
    old, new = flat(before), flat(after)
    for key in new:
        if key in old and old[key] != new[key]:
            say(f"{title}: {key} was {old[key]!r}, is {new[key]!r}")
