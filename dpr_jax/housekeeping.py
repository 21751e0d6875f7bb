"""`dpr gc` and `dpr retriever list/remove`: what a work directory holds, and what may go."""

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from dpr_jax import lease, recipes
from dpr_jax.artifacts import COMMAND
from dpr_jax.console import results_console, say
from dpr_jax.errors import InputError
from dpr_jax.index.open import built_of
from dpr_jax.retrieval.retriever import DEV_METRIC, best, dev_figure
from dpr_jax.retrieval.searcher import open_corpus, open_retriever
from dpr_jax.workdir import HASH_LENGTH, RetrieverDir, WorkDir

ARTIFACT = re.compile(rf"(?P<stage>.+)-[0-9a-f]{{{HASH_LENGTH}}}(?P<ending>\.partial)?")
OWN_FILES = ("manifest.json", "settings.json", "chunk.json")  # one of which each artifact has
MEGABYTE = 1_000_000


def collect_garbage(workdir: WorkDir, *, yes: bool) -> None:
    """Deletes the artifacts that no retriever and no setting names, after showing them and asking.

    Raises:
      InputError: nobody can be asked, and `yes` is not set.
      Busy: a retriever is being written.
    """
    _check_is_folder(workdir, "gc")
    with contextlib.ExitStack() as stack:
        for owner in (workdir, *workdir.retrievers()):
            stack.enter_context(lease.held(owner.home))
        unused = _unused(workdir)
        for folder in unused:
            size = f"{disk_bytes(folder) / MEGABYTE:,.1f} MB"
            print(f"{size:>14}  {folder.relative_to(workdir.root)}")
        if not unused:
            say("gc: nothing to delete: every artifact is in use")
            return
        total = sum(map(disk_bytes, unused)) / MEGABYTE
        if _agreed(f"delete these {len(unused)} folders, {total:,.1f} MB?", yes):
            for folder in unused:
                shutil.rmtree(folder)
            say(f"gc: deleted {total:,.1f} MB")


def _check_is_folder(workdir: WorkDir, command: str) -> None:
    if workdir.remote:
        raise InputError(
            f"dpr {command} deletes in folders alone; delete below {workdir.remote.url} with the"
            " storage's own tool"
        )


def show_retrievers(workdir: WorkDir) -> None:
    """Prints every retriever with its kind, encoder, size, figure on dev and state."""
    table = Table(title=f"Retrievers of {workdir.root}", title_justify="left")
    for name in ("retriever", "kind", "encoder", "MB", f"dev {DEV_METRIC}", "state"):
        table.add_column(name, justify="right" if "M" in name else "left", overflow="fold")
    with contextlib.suppress(InputError):
        chosen = best(workdir)[0]
        table.caption = f"ask and serve take {chosen}"
    for one in workdir.retrievers():
        figure = dev_figure(one)
        encoder = "trained here" if one.kind == "dense" else ""
        if one.kind == "hybrid":
            encoder = " + ".join(recipes.load(one).retrieve.parts)
        table.add_row(
            one.name,
            one.kind,
            one.source or encoder,
            f"{disk_bytes(one.home, *_elsewhere(one)) / MEGABYTE:,.1f}",
            "" if figure is None else f"{100 * figure:.1f}",
            _state(one),
        )
    results_console().print(table)


def remove_retriever(workdir: WorkDir, name: str, *, yes: bool) -> None:
    """Deletes a retriever with its artifacts and runs, after asking.

    Raises:
      InputError: there is none of that name, another one needs it, or nobody can be asked.
      Busy: it is being written.
    """
    _check_is_folder(workdir, "retriever remove")
    retriever = workdir.retriever(name)
    if not retriever.file.exists():
        raise recipes.unknown(workdir, name)
    for other in workdir.retrievers():
        folders = other.read().get("current", {}).values()
        is_part = other.kind == "hybrid" and name in recipes.load(other).retrieve.parts
        uses = is_part or any(folder.startswith(f"retrievers/{name}/") for folder in folders)
        if other.name != name and uses:
            raise InputError(
                f"retriever {other.name} uses {name}; run `dpr retriever remove {other.name}"
                f" {workdir.flag}` first"
            )
    runs = [
        path
        for folder in workdir.root.glob("runs/*")
        for ending in (".trec", ".json", ".manifest.json")
        if (path := folder / f"{name}{ending}").exists()
    ]
    size = f"{disk_bytes(retriever.home) / MEGABYTE:,.1f} MB"
    if _agreed(f"delete retriever {name} ({size}) and {len(runs)} files of its runs?", yes):
        with lease.held(retriever.home):
            for path in runs:
                path.unlink()
            shutil.rmtree(retriever.home)
        say(f"retriever {name} is deleted")


def _unused(workdir: WorkDir) -> list[Path]:
    """Returns the artifacts that no pointer names, and what killed runs left."""
    owners = (workdir, *workdir.retrievers())
    used = {
        (workdir.root / folder).resolve()
        for owner in owners
        for folder in owner.read().get("current", {}).values()
    }
    for folder in [*used]:
        if folder.name.startswith("index-"):
            used |= {one.resolve() for one in built_of(folder)}
    folders = [*workdir.root.glob("*"), *workdir.root.glob("retrievers/*/*")]
    folders += workdir.root.glob("retrievers/*/questions/*")
    return [
        one
        for one in sorted(folders)
        if one.is_dir() and not one.is_symlink() and _is_artifact(one) and one.resolve() not in used
    ]


def _is_artifact(folder: Path) -> bool:
    """Returns whether a stage made a folder, whole or in part; a person's folders are not ours."""
    named = ARTIFACT.fullmatch(folder.name)
    if not named or not (named["stage"] in COMMAND or folder.parent.name == "questions"):
        return False
    return bool(named["ending"]) or any((folder / name).exists() for name in OWN_FILES)


def _state(retriever: RetrieverDir) -> str:
    """Returns "ready", or what a retriever lacks or is behind of, in a line."""
    try:
        open_retriever(retriever, open_corpus(retriever.workdir))
    except InputError as error:
        return str(error)
    return "ready"


def _elsewhere(retriever: RetrieverDir) -> list[Path]:
    """Returns the current artifacts of a retriever that do not lie in its own folder."""
    current = (retriever.root / named for named in retriever.read().get("current", {}).values())
    return [folder for folder in current if not folder.is_relative_to(retriever.home)]


def disk_bytes(*folders: Path) -> int:
    """Returns the size of the files of folders, each counted once; symbolic links do not count."""
    sizes = {}
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                facts = (Path(path) / name).lstat()
                if not stat.S_ISLNK(facts.st_mode):
                    sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values())


def _agreed(question: str, yes: bool, ask: Callable[[str], str] = input) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{question} Give --yes to say so where nobody can be asked")
    return ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")
