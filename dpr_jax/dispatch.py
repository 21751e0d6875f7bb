"""Runs a parsed command. Each function imports what its command needs, and nothing more.

`dpr ask` answers in a moment because it never imports training, and JAX, which reads the
environment, is imported only once `cli` has set that.
"""

from collections.abc import Callable
from typing import NamedTuple

from dpr_jax import compilation_cache, console, recipes
from dpr_jax.commands import COMMANDS
from dpr_jax.config import Config
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir


class Call(NamedTuple):
    """A parsed command line.

    Attributes:
      command: of one word or two.
      operands: in order.
      flags: those that are no settings.
      config: the settings; stored < CONFIG.py < flags.
      workdir: None for commands without one.
      options: what stands after `--`.
    """

    command: str
    operands: list[str]
    flags: dict[str, str]
    config: Config
    workdir: WorkDir | None
    options: list[str]


def run(call: Call) -> None:
    """Runs a command, alone or among several processes of one run."""
    if call.workdir and call.command not in ("pipeline", "prepare"):
        call.workdir.check_begun()
    if call.command in ALONE:
        if call.command != "plan":  # reads from a program what a stored one lacks
            compilation_cache.enable()
        ALONE[call.command](call)
        return
    from dpr_jax import joining, parallel

    joining.initialize(recipes.alike(call.command, call.operands, call.config))
    if joining.is_alone():
        compilation_cache.enable()
    console.set_quiet(not parallel.is_main())
    TOGETHER.get(call.command, _stage)(call)


def number(flags: dict[str, str], name: str, default: int, *, least: int = 1) -> int:
    """Returns the number that a flag gives.

    Raises:
      InputError: it is none, or below `least`.
    """
    value = flags.get(name, str(default))
    if not value.isdigit() or int(value) < least:
        raise InputError(f"--{name} is {value}; it must be a number, {least} or more")
    return int(value)


# --- commands of one process


def _ask(call: Call) -> None:
    from dpr_jax.retrieval import ask

    ask.run(
        call.workdir or call.flags["url"],
        call.operands[0],
        name=call.flags.get("retriever"),
        k=number(call.flags, "k", 5),
        as_json="json" in call.flags,
    )


def _serve(call: Call) -> None:
    from dpr_jax.serving import serve

    flags = call.flags
    serve.run(
        call.workdir,
        call.config.serve,
        names=tuple(flags.get("retriever", "").split()),
        host=flags.get("host", "127.0.0.1"),
        port=number(flags, "port", serve.PORT, least=0),
        keys=flags.get("keys"),
        verify="verify" in flags,
        mcp="mcp" in flags,
    )


def _split(call: Call) -> None:
    from dpr_jax.data import beam_split

    beam_split.run(call.config, call.flags["out"], call.options)


def _plan(call: Call) -> None:
    from dpr_jax.planning import plan

    counts = {name: number(call.flags, name, of) for name, of in plan.COUNTS.items()}
    plan.run(
        call.config,
        call.flags["topology"],
        **counts,
        quick="quick" in call.flags,
        out=call.flags.get("json"),
    )


def _export(call: Call) -> None:
    from dpr_jax.export import command

    shards = number(call.flags, "shards", 1)
    if call.operands[0] == "model":
        from dpr_jax.export import model_folder

        model_folder.run(call.workdir, call.flags)
        return
    command.run(call.operands[0], call.workdir, call.flags, shards=shards)


def _export_check(call: Call) -> None:
    from dpr_jax.export import command

    command.check(call.operands[0], call.flags)


def _push(call: Call) -> None:
    from dpr_jax.export import model_folder, push

    retriever = call.workdir.retriever(call.flags.get("retriever", recipes.MAIN))
    push.run(retriever, model_folder.settings_of(retriever), call.flags)


ALONE: dict[str, Callable[[Call], None]] = {
    "ask": _ask,
    "serve": _serve,
    "split": _split,
    "plan": _plan,
    "export": _export,
    "export check": _export_check,
    "push": _push,
}


# --- commands of all processes


def _prepare(call: Call) -> None:
    if "dry-run" not in call.flags:
        _stage(call)
        return
    from dpr_jax.data import prepare

    prepare.dry_run(call.config)


def _collect_garbage(call: Call) -> None:
    from dpr_jax import housekeeping

    housekeeping.collect_garbage(call.workdir, yes="yes" in call.flags)


def _list_retrievers(call: Call) -> None:
    from dpr_jax import housekeeping

    housekeeping.show_retrievers(call.workdir)


def _remove_retriever(call: Call) -> None:
    from dpr_jax import housekeeping

    housekeeping.remove_retriever(call.workdir, *call.operands, yes="yes" in call.flags)


def _compare(call: Call) -> None:
    from dpr_jax.evaluation import compare

    compare.run(call.config, call.workdir, *call.operands)


def _pipeline(call: Call) -> None:
    from dpr_jax import pipeline

    order = pipeline.ORDER
    for name in ("from", "until"):
        stage = call.flags.get(name)
        if stage not in (None, *order):
            raise InputError(f"--{name} {stage} is no stage; they are {', '.join(order)}")
    first, last = call.flags.get("from", order[0]), call.flags.get("until", order[-1])
    pipeline.run(call.config, call.workdir, first=first, last=last)


def _change(call: Call) -> None:
    from dpr_jax import pipeline

    change = pipeline.add if call.command == "index add" else pipeline.remove
    change(call.config, call.workdir, *call.operands)


def _stage(call: Call) -> None:
    from dpr_jax import pipeline

    workdir, flags = call.workdir, call.flags
    if "retriever" not in COMMANDS[call.command].flags:
        pipeline.run_stage(call.command, call.config, workdir, None)
        return
    retriever = workdir.retriever(flags.get("retriever", recipes.MAIN))
    like = workdir.retriever(flags["like"]) if "like" in flags else None
    source = flags.get("from")
    pipeline.run_stage(call.command, call.config, workdir, retriever, source=source, like=like)


TOGETHER: dict[str, Callable[[Call], None]] = {
    "prepare": _prepare,
    "gc": _collect_garbage,
    "retriever list": _list_retrievers,
    "retriever remove": _remove_retriever,
    "compare": _compare,
    "pipeline": _pipeline,
    "index add": _change,
    "index remove": _change,
}
