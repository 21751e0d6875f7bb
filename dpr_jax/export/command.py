"""`dpr export ENGINE` and `dpr export check ENGINE`."""

import contextlib
import re
import shlex
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export import checking, folder, tower
from dpr_jax.export.contract import Options
from dpr_jax.export.engines import engine
from dpr_jax.export.source import open_source
from dpr_jax.workdir import WorkDir

TARGET = 0.95  # recall@100 where neither the index nor the command names one
TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def run(name: str, workdir: WorkDir, flags: dict[str, str], *, shards: int = 1) -> None:
    """Writes an export, and loads it where the engine is named by `url`.

    Args:
      name: of the engine.
      workdir: a finished work directory.
      flags: retriever, out, url, table.
      shards: parts to split the corpus into; scann alone takes more than one.

    Raises:
      InputError: the engine or the retriever cannot be exported, or `out` holds something else.
      Busy: another process is exporting there.
    """
    target = engine(name)
    options = _options(flags, shards)
    if shards > 1 and name != "scann":
        raise InputError(f"--shards is for scann; {name} splits its own index")
    if options.url and not target.load:
        raise InputError(f"--url is for pgvector, which is loaded directly; {name} is not")
    target.require(options)
    source = open_source(workdir, flags.get("retriever"))
    if shards > source.count:
        raise InputError(f"--shards {shards} is more than the {source.count:,} passages there are")
    out = Path(flags["out"]).expanduser().absolute()
    settings = {"engine": name, "shards": shards, "table": options.table}
    origin = artifacts.made_from("export", settings, source.inputs)
    if folder.find(out, origin):
        say(f"export: up to date ({out})")
    else:
        say(
            f"export: {source.retriever.name} to {name}, {source.count:,} passages, vectors of"
            f" width {source.width}"
        )
        with folder.begun(out, origin) as partial:
            tower.write(source, partial)
            folder.write_passages(source, partial)
            checking.write(source, partial)
            facts = target.write(source, partial, options)
            folder.finish(
                partial,
                out,
                origin,
                engine=name,
                retriever=source.retriever.name,
                count=source.count,
                width=source.width,
                table=options.table,
                target_recall=source.index.get("target_recall", TARGET),
                **facts,
            )
        say(f"export: {out}")
    manifest = artifacts.read_json(out / folder.MANIFEST)
    if options.url and target.load:
        target.load(out, manifest, options)
        return
    for line in target.then(out, manifest):
        say(f"next: {line}")


def check(name: str, flags: dict[str, str]) -> None:
    """Asks a live engine the questions that the index was certified with, and prints what it finds.

    Args:
      name: of the engine.
      flags: out, url, table, target.

    Raises:
      InputError: there is no such export, the engine does not answer, or no setting has the recall.
    """
    target, out = engine(name), Path(flags["out"]).expanduser().absolute()
    facts = folder.open_export(out, name)
    options = _options({"table": facts["table"]} | flags, 1)
    wanted = _share(flags.get("target", str(facts["target_recall"])))
    command = ["dpr", "export", "check", name, *_given(flags)]
    with contextlib.closing(target.connect(out, facts, options)) as live:
        say(f"export check: {facts['count']:,} passages of {facts['retriever']}; {live.about}")
        checking.run(out, live, wanted, again=shlex.join(command))


def _options(flags: dict[str, str], shards: int) -> Options:
    table = flags.get("table", Options().table)
    if not TABLE.fullmatch(table):
        raise InputError(
            f"--table is {table!r}; it must be a letter or '_' and then at most 62 letters, digits"
            " and '_'"
        )
    return Options(shards, flags.get("url"), table)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise InputError(f"--target is {text}; it must be a recall above 0, 1 at most")
    return value


def _given(flags: dict[str, str]) -> list[str]:
    """Returns the flags again, without the password that a URL may hold."""
    told = {name: value for name, value in flags.items() if name != "target"}
    told |= {"url": "URL"} if "url" in flags else {}
    return [part for name, value in told.items() for part in (f"--{name}", value)]
