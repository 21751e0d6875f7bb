"""`dpr`: parses the command line, and turns errors into one line and an exit status."""

import contextlib
import dataclasses
import difflib
import errno
import io
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from dpr_jax import artifacts, config_file, console, dispatch, host, recipes
from dpr_jax.commands import COMMANDS, OFF_ON, USAGE, flag_help, overview, show_help
from dpr_jax.config import Config
from dpr_jax.config_rules import validate
from dpr_jax.dispatch import Call
from dpr_jax.errors import (
    RUN_AGAIN,
    Busy,
    InputError,
    OtherProcessFailed,
    Preempted,
    exit_status,
    is_refused_writing,
)
from dpr_jax.workdir import open_workdir

_IN_WORDS = {  # what tyro and Python say, in words
    r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": (
        r"\1 is \2; it must be a whole number"
    ),
    r"Error parsing (\S+): could not convert string to float: (.*)": (
        r"\1 is \2; it must be a number"
    ),
    r"Error parsing (\S+): no type matching \S+ could be instantiated from \['(.*?)'\].*": (
        r"\1 cannot be '\2'"
    ),
    r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*?),?\)\.?": (
        r"\2 is \1; it must be one of \3"
    ),
}
CLOSED_OUTPUT = 141  # as of a program that SIGPIPE ends
INTERRUPTED = 130


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
        _part()
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
        _part()
        sys.exit(RUN_AGAIN)
    except (InputError, Busy, OtherProcessFailed) as error:
        _complain(str(error))
        _leave(exit_status(error))
    except Exception as error:  # noqa: BLE001 - a bug, or a user's function
        if is_refused_writing(error):
            named = isinstance(error.filename, str)
            place = Path(error.filename).parent if named else "a folder"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "make room there and run this again" if full else "give another folder"
            _complain(f"cannot write in {place}: {error.strerror}; {remedy}")
        else:
            if (joining := sys.modules.get("dpr_jax.joining")) is not None:
                joining.await_end(error)
                joining.claim_end()
            traceback.print_exc()
        _leave(exit_status(error))


def _complain(line: str) -> None:
    """Writes why this process ends, unless the end of another process was said already."""
    if (joining := sys.modules.get("dpr_jax.joining")) is not None:
        joining.claim_end()
    console.complain(line)


def _part() -> None:
    """Tells the other processes of this run, if there are any, that this one has done its part."""
    if (joining := sys.modules.get("dpr_jax.joining")) is not None:
        joining.part()


def _leave(status: int) -> NoReturn:
    """Ends with an error; before a stage has started there is no other process to think of."""
    joining = sys.modules.get("dpr_jax.joining")
    if joining is not None:
        joining.leave(status)
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
    dispatch.run(parse(command, rest)._replace(options=beam_options))


def parse(command: str, args: list[str]) -> Call:
    """Parses operands, flags, CONFIG.py and settings, and checks them.

    Raises:
      InputError: an unknown setting (with near matches), a value of the wrong type or range, no
        work directory.
    """
    flags, args = _flags(command, args)
    operands, args = _operands(command, args)
    _check_flags(command, flags)
    file, args = _config_file(args)
    _check_names(args, command)
    workdir = None
    if "workdir" in flags:
        reads = ("ask", "serve", "compare", "export", "push", "gc")
        reads += ("retriever list", "retriever remove")
        workdir = open_workdir(flags["workdir"], new=command not in reads)
    if file:
        base = config_file.load(file)
    elif workdir is None or command == "serve":  # whose settings no recipe has
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
    config = recipes.absolute(_one_length(config, args))
    validate(config)
    return Call(command, operands, flags, config, workdir, options=[])


def _command(args: list[str]) -> tuple[str, list[str]]:
    """Returns the command, of one word or two, and what follows it."""
    both = " ".join(args[:2])
    return (both, args[2:]) if both in COMMANDS else (args[0], args[1:])


def _before_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    """Returns what stands before `--`, and what after it."""
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _one_length(config: Config, args: list[str]) -> Config:
    """Lets a flag for the epochs take the place of other settings' updates, and the reverse."""
    given = {_setting(arg)[0] for arg in args if arg.startswith("--")}
    for one, other in (("epochs", "total_steps"), ("total_steps", "epochs")):
        is_asked = f"train.{one}" in given and getattr(config.train, one) is not None
        if is_asked and f"train.{other}" not in given:
            train = dataclasses.replace(config.train, **{other: None})
            return dataclasses.replace(config, train=train)
    return config


def _operands(command: str, args: list[str]) -> tuple[list[str], list[str]]:
    """Returns what a command takes first, and the arguments that follow."""
    names = COMMANDS[command].operands
    usage = f"usage: dpr {command} {' '.join(names)} --workdir DIR"
    if len(args) < len(names) or any(arg.startswith("--") for arg in args[: len(names)]):
        raise InputError(f"dpr {command} takes {' and '.join(names)} first; {usage}")
    operands, left = args[: len(names)], args[len(names) :]
    if command == "ask" and left and not left[0].startswith("--") and left[0][-3:] != ".py":
        raise InputError(
            f"dpr ask takes one question, and {left[0]!r} follows it; put the question in quotes:"
            f" {usage}"
        )
    return operands, left


def _flags(command: str, args: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes the flags that are no settings out of the arguments."""
    found: dict[str, str] = {}
    left: list[str] = []
    names = COMMANDS[command].flags
    arguments = iter(args)
    many = ""  # the flag that takes what follows, up to the next flag
    for arg in arguments:
        if many and not arg.startswith("--"):
            found[many] += f" {arg}"
            continue
        many = ""
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in names:
            left.append(arg)
        elif name in OFF_ON and (command, name) != ("plan", "json"):
            found[name] = "yes"
        else:
            value = value if equals else next(arguments, "")
            if not value or value.startswith("--"):
                raise InputError(f"--{name} needs a value: {flag_help(command, name)}")
            if command == "serve" and name == "retriever":
                many, value = name, f"{found.get(name, '')} {value}"
            found[name] = value
    return found, left


def _check_flags(command: str, found: dict[str, str]) -> None:
    """Raises InputError where a flag is missing that a command needs."""
    names = COMMANDS[command].flags
    for name in ("workdir", "out", "topology", "repo"):
        if name in names and name not in found and not (command == "ask" and "url" in found):
            usage = "usage: dpr plan CONFIG.py --topology NAME" if name == "topology" else USAGE
            raise InputError(f"--{name} is missing; {usage.replace('workdir', name)}")


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
    args = _pairs(args)
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


def _pairs(args: list[str]) -> list[str]:
    """Writes `--data.columns question=query` with name and value apart, as tyro takes them.

    Raises:
      InputError: what follows is not ROLE=COLUMN.
    """
    flag = "--data.columns"
    if flag not in (arg.split("=")[0] for arg in args):
        return args
    at = next(at for at, arg in enumerate(args) if arg.split("=")[0] == flag)
    end = next((n for n in range(at + 1, len(args)) if args[n].startswith("--")), len(args))
    given = [args[at].removeprefix(flag).removeprefix("="), *args[at + 1 : end]]
    pairs = [one for given_one in given for one in given_one.split() if one]
    if not pairs or not all(re.fullmatch(r"[\w.]+=.+", pair) for pair in pairs):
        raise InputError(
            f"{flag} takes ROLE=COLUMN, as in {flag} question=query positive=3; see docs/data.md"
        )
    spelled = [part for pair in pairs for part in pair.split("=", 1)]
    return [*args[:at], flag, *spelled, *args[end:]]


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
    for pattern, words in _IN_WORDS.items():
        text = re.sub(pattern, words, text)
    return f"{text.rstrip('.')}; see --help-all"


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    close += [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    names = list(dict.fromkeys(close))[:3]
    return f" (near: {', '.join(name.replace('_', '-') for name in names)})" if names else ""
