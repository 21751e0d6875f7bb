"""`dpr`: parses the command line and calls a stage, the pipeline, or one of the small commands."""

import contextlib
import difflib
import io
import os
import re
import sys
import traceback
from typing import Annotated, NamedTuple, NoReturn

import tyro

from dpr_jax import artifacts, config_file, console, host, recipes
from dpr_jax.commands import COMMANDS, FLAG_HELP, OFF_ON, USAGE, overview, show_help
from dpr_jax.config import Config
from dpr_jax.config_rules import validate
from dpr_jax.errors import (
    RUN_AGAIN,
    Busy,
    InputError,
    OtherProcessFailed,
    Preempted,
    exit_status,
    is_refused_writing,
)
from dpr_jax.workdir import WorkDir, open_workdir

CLOSED_OUTPUT = 141  # as of a program that SIGPIPE ends
INTERRUPTED = 130


class Call(NamedTuple):
    """A parsed command line.

    Attributes:
      command: of one word or two.
      operands: in order.
      flags: those that are no settings.
      config: the settings; stored < CONFIG.py < flags.
      workdir: None for commands without one.
    """

    command: str
    operands: list[str]
    flags: dict[str, str]
    config: Config
    workdir: WorkDir | None


def main() -> None:
    """Runs `dpr` and exits.

    0 done, 1 a bug or an error in a function of the user's (with a traceback), 2 bad input (one
    line on stderr), 75 stopped by SIGTERM or busy, and to be run again, 130 interrupted, 141 not
    read to its end.
    """
    try:
        run(sys.argv[1:])
        sys.stdout.flush()
        if console.is_unread():
            raise BrokenPipeError
    except BrokenPipeError:  # `dpr train --help | head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _complain("not all of the output was read")
        _leave(CLOSED_OUTPUT)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        _leave(INTERRUPTED)
    except Preempted as error:
        _complain(str(error))
        sys.exit(RUN_AGAIN)
    except (InputError, Busy, OtherProcessFailed) as error:
        _complain(str(error))
        _leave(exit_status(error))
    except Exception as error:  # noqa: BLE001 - a bug, or a user's function
        if is_refused_writing(error):
            _complain(f"cannot write {error.filename or 'a file'}: {error.strerror}")
        else:
            traceback.print_exc()
        _leave(exit_status(error))


def _complain(line: str) -> None:
    """Writes an error in one write, also where output is unbuffered: Gloo's threads write too."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"dpr: {line}\n")
        sys.stderr.flush()


def _leave(status: int) -> NoReturn:
    """Ends with an error; before a stage has started there is no other process to think of."""
    parallel = sys.modules.get("dpr_jax.parallel")
    if parallel is not None:
        parallel.leave(status)
    sys.exit(status)


def run(args: list[str]) -> None:
    """Parses and dispatches.

    Raises:
      InputError: the command line, a config, or anything that a stage reads is wrong.
    """
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return
    command, rest = _command(args)
    if command in ("-V", "--version"):
        print(f"dpr_jax {artifacts.versions()['dpr_jax']}")
        return
    if command not in COMMANDS:
        raise InputError(f"no command {command!r}{_near(command, list(COMMANDS))}; {USAGE}")
    if command == "info":
        host.skip_absent_tpu()
        from dpr_jax import info

        print(info.describe())
        return
    rest, beam_options = _before_dashes(rest) if command == "split" else (rest, [])
    if {"-h", "--help", "--help-all"} & {*rest}:
        show_help(command, whole="--help-all" in rest)
        return
    if command == "encode":
        host.use_one_device_per_core()
    if command == "plan":
        from dpr_jax.planning import machine

        machine.set_environment()
    else:
        host.skip_absent_tpu()
    console.quiet_libraries()
    call = parse(command, rest)
    if command == "split":
        from dpr_jax.data import beam_split

        beam_split.run(call.config, call.flags["out"], beam_options)
        return
    if command == "plan":
        from dpr_jax.planning import plan

        counts = {name: _number(call.flags, name, of) for name, of in plan.COUNTS.items()}
        plan.run(
            call.config,
            call.flags["topology"],
            **counts,
            quick="quick" in call.flags,
            out=call.flags.get("json"),
        )
        return
    _dispatch(call)


def _dispatch(call: Call) -> None:
    """Runs the command; the stages import JAX, which reads the environment: not before here."""
    from dpr_jax import parallel, pipeline

    command, config, workdir, flags = call.command, call.config, call.workdir, call.flags
    if command == "ask":
        from dpr_jax.retrieval import ask

        ask.run(
            workdir,
            call.operands[0],
            name=flags.get("retriever"),
            k=_number(flags, "k", 5),
            as_json="json" in flags,
        )
        return
    parallel.initialize()
    console.set_quiet(not parallel.is_main())
    if command in ("gc", "retriever list", "retriever remove"):
        from dpr_jax import housekeeping

        if command == "gc":
            housekeeping.collect_garbage(workdir, yes="yes" in flags)
        elif command == "retriever list":
            housekeeping.show_retrievers(workdir)
        else:
            housekeeping.remove_retriever(workdir, *call.operands, yes="yes" in flags)
        return
    if command == "compare":
        from dpr_jax.evaluation import compare

        compare.run(config, workdir, *call.operands)
        return
    if command == "pipeline":
        first, last = (flags.get(name) for name in ("from", "until"))
        for name, stage in (("from", first), ("until", last)):
            if stage not in (None, *pipeline.ORDER):
                raise InputError(f"--{name} {stage} is no stage; they are {pipeline.ORDER}")
        order = pipeline.ORDER
        pipeline.run(config, workdir, first=first or order[0], last=last or order[-1])
    elif command in ("index add", "index remove"):
        change = pipeline.add if command == "index add" else pipeline.remove
        change(config, workdir, *call.operands)
    elif "retriever" not in COMMANDS[command].flags:
        pipeline.run_stage(command, config, workdir, None)
    else:
        retriever = workdir.retriever(flags.get("retriever", recipes.MAIN))
        like = workdir.retriever(flags["like"]) if "like" in flags else None
        source = flags.get("from")
        pipeline.run_stage(command, config, workdir, retriever, source=source, like=like)


def parse(command: str, args: list[str]) -> Call:
    """Parses operands, flags, CONFIG.py and settings, and checks them.

    Raises:
      InputError: an unknown setting (with near matches), a value of the wrong type or range, no
        work directory.
    """
    operands, args = _operands(command, args)
    flags, args = _flags(command, args)
    file, args = _config_file(args)
    _check_names(args, command)
    workdir = None
    if "workdir" in COMMANDS[command].flags:
        writes = command not in ("ask", "compare", "gc", "retriever list", "retriever remove")
        workdir = open_workdir(flags["workdir"], new=writes)
    if file:
        base = config_file.load(file)
    elif workdir is None:
        base = Config()
    else:
        name = flags.get("retriever", recipes.MAIN)
        base = recipes.base(workdir, name, flags.get("like"))
    if "from" in flags and command == "encode" and not file:
        base = recipes.for_encoder(base)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = tyro.cli(
                Annotated[Config, tyro.conf.arg(name="")],
                prog=f"dpr {command}",
                args=_spelled_out(args),
                default=base,
            )
    except SystemExit:
        raise InputError(_one_line(said.getvalue())) from None
    config = recipes.absolute(config)
    validate(config)
    return Call(command, operands, flags, config, workdir)


def _command(args: list[str]) -> tuple[str, list[str]]:
    """Returns the command, of one word or two, and what follows it."""
    both = " ".join(args[:2])
    return (both, args[2:]) if both in COMMANDS else (args[0], args[1:])


def _before_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    """Returns what stands before `--`, and what after it."""
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _operands(command: str, args: list[str]) -> tuple[list[str], list[str]]:
    """Returns what a command takes first, and the arguments that follow."""
    names = COMMANDS[command].operands
    if len(args) < len(names) or any(arg.startswith("-") for arg in args[: len(names)]):
        raise InputError(
            f"dpr {command} takes {' and '.join(names)} first; usage: dpr {command}"
            f" {' '.join(names)} --workdir DIR"
        )
    return args[: len(names)], args[len(names) :]


def _flags(command: str, args: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes the flags that are no settings out of the arguments."""
    found: dict[str, str] = {}
    left: list[str] = []
    names = COMMANDS[command].flags
    arguments = iter(args)
    for arg in arguments:
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in names:
            left.append(arg)
        elif name in OFF_ON and (command, name) != ("plan", "json"):
            found[name] = "yes"
        else:
            value = value if equals else next(arguments, "")
            if not value or value.startswith("--"):
                raise InputError(f"--{name} needs a value: {FLAG_HELP[name]}")
            found[name] = value
    for name in ("workdir", "out", "topology"):
        if name in names and name not in found:
            usage = "usage: dpr plan CONFIG.py --topology NAME" if name == "topology" else USAGE
            raise InputError(f"--{name} is missing; {usage.replace('workdir', name)}")
    return found, left


def _number(flags: dict[str, str], name: str, default: int) -> int:
    value = flags.get(name, str(default))
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"--{name} is {value}; it must be a number, 1 or more")
    return int(value)


def _config_file(args: list[str]) -> tuple[str | None, list[str]]:
    """Takes CONFIG.py out of the arguments, wherever it stands."""
    places = [at for at, arg in enumerate(args) if arg.endswith(".py") and not arg.startswith("-")]
    values = [at for at, arg in enumerate(args) if at and _takes_value(args[at - 1])]
    places = [at for at in places if at not in values]
    if len(places) > 1:
        names = " and ".join(args[at] for at in places)
        raise InputError(f"{names} are two config files; give one")
    if not places:
        return None, args
    (at,) = places
    return args[at], args[:at] + args[at + 1 :]


def _takes_value(arg: str) -> bool:
    """Returns whether the argument after this one is its value."""
    if not arg.startswith("--") or "=" in arg:
        return False
    hint = config_file.keys().get(arg[2:].replace("-", "_"))
    return hint is not None and hint is not bool


def _spelled_out(args: list[str]) -> list[str]:
    """Writes `--x` and `--no-x` of settings that are true, false or None as `--x True`."""
    known = config_file.keys()
    found: list[str] = []
    for at, arg in enumerate(args):
        name, negated = _setting(arg)
        follows = args[at + 1] if at + 1 < len(args) else "--"
        if arg.startswith("--") and known.get(name) == bool | None and "=" not in arg:
            if negated:
                found += [f"--{name}", "False"]
                continue
            if follows not in ("True", "False", "None"):
                found += [f"--{name}", "True"]
                continue
        found.append(arg)
    return found


def _setting(arg: str) -> tuple[str, bool]:
    """Returns the setting that an argument names, and whether it is negated."""
    name = arg[2:].split("=")[0].replace("-", "_")
    head, dot, tail = name.rpartition(".")
    known = config_file.keys()
    if name not in known and tail.startswith("no_"):
        return f"{head}{dot}{tail.removeprefix('no_')}", True
    return name, False


def _check_names(args: list[str], command: str) -> None:
    """Raises InputError in one line for what tyro would say in a box."""
    known = [*config_file.keys(), *COMMANDS[command].flags]
    for at, arg in enumerate(args):
        if arg.startswith("--"):
            name, _ = _setting(arg)
            if name not in known:
                raise InputError(
                    f"no setting {arg.split('=')[0]}{_near(name, known)}; see dpr {command}"
                    " --help-all"
                )
        elif at == 0:
            raise InputError(
                f"dpr {command} does not take {arg!r}; a config file ends in .py, settings begin"
                f" with --; {USAGE}"
            )


def _one_line(box: str) -> str:
    """Returns what tyro says in a box, without the box."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    parts = re.split(r"[─-]{20,}", plain)
    text = " ".join(re.sub(r"[─╭╮╰╯│]", " ", parts[1] if len(parts) > 1 else plain).split())
    return f"{text}; see --help-all"


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    close += [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    names = list(dict.fromkeys(close))[:3]
    return f" (near: {', '.join(name.replace('_', '-') for name in names)})" if names else ""
