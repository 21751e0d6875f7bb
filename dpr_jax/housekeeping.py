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

ARTIFACT = re.compile(rf"(?P<stage>.+)-[0-9a-f]{{{HASH_LENGTH}}}(?P<ending>\.(partial|building))?")
OWN_FILES = (
    "manifest.json",
    "index.json",
    "settings.json",
    "chunk.json",
)  # one of which each artifact has
MEGABYTE = 1_000_000


def collect_garbage(workdir: WorkDir, *, yes: bool) -> None:
    """Deletes the artifacts that no retriever and no setting names, after showing them and asking.

    Raises:
      InputError: nobody can be asked, and `yes` is not set.
      Busy: a retriever is being written.
    """
    with contextlib.ExitStack() as stack:
        for owner in (workdir, *workdir.retrievers()):
            stack.enter_context(lease.held(owner.home, workdir.remote))
        unused = _unused(workdir)
        for folder, size in unused.items():
            shown = f"{size / MEGABYTE:,.1f} MB"
            print(f"{shown:>14}  {folder.relative_to(workdir.root)}")
        if not unused:
            say("gc: nothing to delete: every artifact is in use")
            return
        total = sum(unused.values()) / MEGABYTE
        if _agreed(f"delete these {len(unused)} folders, {total:,.1f} MB?", yes):
            for folder in unused:
                _delete(workdir, folder)
            say(f"gc: deleted {total:,.1f} MB")


def _delete(workdir: WorkDir, path: Path) -> None:
    """Deletes a file or a folder, on object storage too."""
    if workdir.remote:
        workdir.remote.remove(path)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def show_retrievers(workdir: WorkDir) -> None:
    """Prints every retriever with its kind, encoder, size, figure on dev and state."""
    table = Table(title=f"Retrievers of {workdir.root}", title_justify="left")
    for name in ("retriever", "kind", "encoder", "MB", f"dev {DEV_METRIC}", "state"):
        table.add_column(name, justify="right" if "M" in name else "left", overflow="fold")
    if not workdir.remote:  # from where that would fetch indexes
        with contextlib.suppress(InputError):
            table.caption = f"ask and serve take {best(workdir)[0]}"
    sizes = workdir.remote.sizes() if workdir.remote else {}
    for one in workdir.retrievers():
        size = sum(sizes[path] for path in sizes if one.home in path.parents)
        figure = dev_figure(one)
        encoder = "trained here" if one.kind == "dense" else ""
        if one.kind == "hybrid":
            encoder = " + ".join(recipes.load(one).retrieve.parts)
        table.add_row(
            one.name,
            one.kind,
            one.source or encoder,
            f"{(size or disk_bytes(one.home, *_elsewhere(one))) / MEGABYTE:,.1f}",
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
    sizes = workdir.remote.sizes() if workdir.remote else {}
    size = sum(sizes[path] for path in sizes if retriever.home in path.parents)
    size = f"{(size or disk_bytes(retriever.home)) / MEGABYTE:,.1f} MB"
    if _agreed(f"delete retriever {name} ({size}) and {len(runs)} files of its runs?", yes):
        with lease.held(retriever.home, workdir.remote):
            for path in (*runs, retriever.home):
                _delete(workdir, path)
        say(f"retriever {name} is deleted")


def _unused(workdir: WorkDir) -> dict[Path, int]:
    """Returns the artifacts that no pointer names, and what killed runs left, with their bytes."""
    owners = (workdir, *workdir.retrievers())
    used = {
        (workdir.root / folder).resolve()
        for owner in owners
        for folder in owner.read().get("current", {}).values()
    }
    for folder in [*used]:
        if folder.name.startswith("index-"):
            if workdir.remote:  # to see what it lies over
                workdir.remote.fetch(folder, manifest_only=True)
            used |= {one.resolve() for one in built_of(folder)}
    if workdir.remote:
        sizes = workdir.remote.sizes()
        return {one: sizes[one] for one in sorted(sizes) if one.resolve() not in used}
    folders = [*workdir.root.glob("*"), *workdir.root.glob("retrievers/*/*")]
    folders += workdir.root.glob("retrievers/*/questions/*")
    return {
        one: disk_bytes(one)
        for one in sorted(folders)
        if one.is_dir() and not one.is_symlink() and _is_artifact(one) and one.resolve() not in used
    }


def _is_artifact(folder: Path) -> bool:
    """Returns whether a stage made a folder, whole or in part; a person's folders are not ours."""
    named = ARTIFACT.fullmatch(folder.name)
    if not named or not (named["stage"] in COMMAND or folder.parent.name == "questions"):
        return False
    return bool(named["ending"]) or any((folder / name).exists() for name in OWN_FILES)


def _state(retriever: RetrieverDir) -> str:
    """Returns "ready", or what a retriever lacks or is behind of, in a line.

    On object storage only the pointers are looked at, as an index may be large.
    """
    if retriever.remote:
        needed = "weight" if retriever.kind == "hybrid" else "index"
        return f"{'has its' if needed in retriever.read().get('current', {}) else 'no'} {needed}"
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
