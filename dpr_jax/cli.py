"""`dpr`: parses the command line and calls one stage, the pipeline, or `info`."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from dpr_jax import artifacts, config_file, console, host
from dpr_jax.config import Config
from dpr_jax.config_rules import validate
from dpr_jax.errors import InputError, Preempted

COMMANDS = {
    "pipeline": "all stages in order, and the report",
    "prepare": "raw files -> data/",
    "split": (
        "--out FOLDER: documents -> passages on Apache Beam, for `prepare` to read; Beam's own"
        " options stand after --"
    ),
    "inspect": "what data/ holds: counts, lengths, repeats, overlap -> inspection/",
    "mine": "hard negatives by BM25 -> data/mined/",
    "train": "data/ -> checkpoints/, model/",
    "encode": "corpus (or questions) and model/ -> embeddings/",
    "index": "embeddings/ -> index/",
    "index add": "PASSAGES: a file of new passages into the corpus that is searched",
    "index remove": "IDS: a file of passage ids, one a line, that are not to be found any more",
    "index rebalance": "index/ built anew of the passages there are now",
    "retrieve": "questions, model/ and index/ -> runs/",
    "evaluate": "runs/ -> metrics/, metrics/report.html",
    "compare": (
        "RUN_A RUN_B: two runs on the same questions, a paired test, wins and losses to read"
    ),
    "info": "versions, devices, and which index backends work here",
}
USAGE = "usage: dpr COMMAND [CONFIG.py] --workdir DIR [--part.setting VALUE ...]"
OPERANDS = {
    "compare": ("RUN_A", "RUN_B"),
    "index add": ("PASSAGES",),
    "index remove": ("IDS",),
}
COMPUTING = ("pipeline", "mine", "train", "encode", "index", "retrieve")
USER_ERROR = 2
CLOSED_OUTPUT = 141  # as of a program that SIGPIPE ends
RUN_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


@dataclasses.dataclass(frozen=True)
class Call:
    """What a stage is called with."""

    workdir: Path
    """Folder that holds everything this run makes; made if missing."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class SplitCall:
    """What `dpr split` is called with."""

    out: str
    """Folder for the passages, on a file system that Apache Beam knows; without finished ones."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def entry() -> None:
    """What the program `dpr` is: `main` with what it takes of its host, for which the process may
    start again.
    """
    command = next(iter(sys.argv[1:]), "")
    if command in COMPUTING:
        host.want_huge_pages()
    if command == "encode":
        host.want_device_a_core()
    main()


def main() -> None:
    """Runs `dpr` and exits: 0 done, 1 a bug (with a traceback), 2 for bad input (one line on
    stderr), 75 stopped by SIGTERM and to be run again, 130 interrupted, 141 not read to its end.
    """
    try:
        run(sys.argv[1:])
    except InputError as error:
        _complain(str(error))
        _leave(USER_ERROR)
    except Preempted as error:
        _complain(str(error))
        sys.exit(RUN_AGAIN)
    except BrokenPipeError:  # `dpr train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _complain("not all of the output was read")
        _leave(CLOSED_OUTPUT)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        _leave(130)
    except Exception:  # noqa: BLE001 - a bug, or another process that is gone: this one has to leave quickly too
        traceback.print_exc()
        _leave(1)


def _complain(line: str) -> None:
    """In one write, also where output is unbuffered: Gloo's threads write to the same log."""
    sys.stderr.write(f"dpr: {line}\n")


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
        print(_overview())
        return
    command, rest = _command(args)
    if command in ("-V", "--version"):
        print(f"dpr_jax {artifacts.versions()['dpr_jax']}")
        return
    if command not in COMMANDS:
        raise InputError(f"no command {command!r}{_near(command, list(COMMANDS))}; {USAGE}")
    if command == "info":
        from dpr_jax import info

        print(info.describe())
        return
    if command == "split":
        args, beam_options = _before_dashes(rest)
        split = parse(command, args, SplitCall)
        from dpr_jax.data import beam_split

        beam_split.run(split.config, split.out, beam_options)
        return
    operands, rest = _operands(command, rest)
    call = parse(command, rest)
    _quiet_libraries()
    # the stages import JAX, which reads the environment: not before it is settled
    from dpr_jax import parallel, pipeline

    parallel.initialize()
    console.set_quiet(not parallel.is_main())
    parallel.on_main(lambda: artifacts.open_workdir(call.workdir, call.config.name))
    workdir = artifacts.open_workdir(call.workdir, call.config.name)
    if command == "compare":
        from dpr_jax.evaluation import compare

        compare.run(call.config, workdir, *operands)
        return
    stages = {
        "pipeline": pipeline.run,
        "index add": pipeline.add,
        "index remove": pipeline.remove,
        "index rebalance": pipeline.rebalance,
        **pipeline.STAGES,
    }
    stages[command](call.config, workdir, *operands)


def _command(args: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, and what follows it."""
    both = " ".join(args[:2])
    return (both, args[2:]) if both in COMMANDS else (args[0], args[1:])


def _operands(command: str, args: list[str]) -> tuple[list[str], list[str]]:
    """What a command takes before its config, and the arguments that follow."""
    names = OPERANDS.get(command, ())
    if len(args) < len(names) or any(arg.startswith("-") for arg in args[: len(names)]):
        if {"-h", "--help"} & set(args):
            return [], args
        raise InputError(
            f"dpr {command} takes {' and '.join(names)} first; usage: dpr {command}"
            f" {' '.join(names)} [CONFIG.py] --workdir DIR"
        )
    return args[: len(names)], args[len(names) :]


def _before_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and what after it."""
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def parse(command: str, args: list[str], form: type[Call | SplitCall] = Call) -> Call | SplitCall:
    """[CONFIG.py] --workdir DIR [--part.setting VALUE ...], checked; `form` may ask for another
    folder than the work directory.

    Raises:
      InputError: an unknown setting (with near matches), a value of the wrong type or range, no
        work directory.
    """
    file = args[0] if args and not args[0].startswith("-") else None
    default = config_file.load(file) if file else Config()
    rest = args[1:] if file else args
    helping = bool({"-h", "--help"} & set(rest))
    folder = dataclasses.fields(form)[0].name
    if not helping:
        _check_names(rest, folder)
    said = io.StringIO()
    try:
        with contextlib.nullcontext() if helping else contextlib.redirect_stderr(said):
            call = tyro.cli(
                form,
                prog=f"dpr {command} [CONFIG.py]",
                description=(
                    f"{COMMANDS[command]}. Values shown are those of {file or 'the defaults'}."
                ),
                args=rest,
                default=form(tyro.MISSING, default),
            )
    except SystemExit:
        if helping:
            raise
        raise InputError(_one_line(said.getvalue())) from None
    validate(call.config)
    return call


def _check_names(args: list[str], folder: str) -> None:
    """One line for what tyro would say in a box."""
    known = [folder, *config_file.keys()]
    for arg in args:
        if not arg.startswith("--"):
            continue
        name = arg[2:].split("=")[0].replace("-", "_")
        head, _, tail = name.rpartition(".")
        positive = f"{head}.{tail}" if head else tail
        negated = positive.replace("no_", "", 1) if tail.startswith("no_") else positive
        if name not in known and negated not in known:
            raise InputError(f"no setting {arg.split('=')[0]}{_near(name, known)}; see --help")
    if not any(arg.split("=")[0] == f"--{folder}" for arg in args):
        raise InputError(f"--{folder} is missing; {USAGE.replace('workdir', folder)}")


def _one_line(box: str) -> str:
    """What tyro says between the first two rules of its box."""
    parts = re.split(r"[─-]{20,}", box)
    return " ".join((parts[1] if len(parts) > 1 else box).split()) + "; see --help"


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    close += [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    names = list(dict.fromkeys(close))[:3]
    return f" (near: {', '.join(name.replace('_', '-') for name in names)})" if names else ""


def _overview() -> str:
    lines = [f"  {name:<16}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "dpr: dense passage retrieval in JAX",
            USAGE,
            "",
            *lines,
            "",
            "example: dpr pipeline configs/quickstart.py --workdir runs/quickstart",
            "settings of a command: dpr train --help",
        ]
    )


def _quiet_libraries() -> None:
    """Other people's log lines, which say nothing that a user could act on; an own setting wins."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
