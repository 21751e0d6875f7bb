"""What long work says while it runs: rich progress on a terminal, plain lines in a log file or
pipe.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_LINE_EVERY_S = 10.0
PIPE_WIDTH = 110  # where there is no terminal to ask

console = Console(stderr=True, highlight=False, soft_wrap=True)
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silences this process (all but process 0 of a run of several)."""
    global _quiet
    _quiet = quiet


def results_console() -> Console:
    """Returns stdout, as wide as the terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def quiet_libraries() -> None:
    """Silences log lines of libraries that no user could act on; an own setting wins."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def say(message: str) -> None:
    """One line to the user, on stderr; stdout is for results."""
    if not _quiet:
        console.print(message, markup=False)


@contextlib.contextmanager
def progress(
    title: str, total: int, unit: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[..., None]]:
    """Shows work going on; yields `advance(n, note="")`, to be called with the units done since the
    last call.

    On a terminal a bar with rate and time left, else a plain line at most every ten seconds, with
    the same facts. Rates and time left are by `clock`, which may leave out compilation.
    """
    start_s, last_s = clock(), time.monotonic()
    done = 0

    def rate() -> float:
        return done / max(clock() - start_s, 1e-9)

    def speed() -> str:
        return f"{rate():.1f} {unit}/s" if rate() >= 1 else f"{rate():.3f} {unit}/s"

    if _quiet:
        yield lambda n=1, note="": None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, get_time=clock) as bar:
            task = bar.add_task(title, total=total, rate="", note="")

            def advance_bar(n: int = 1, note: str = "") -> None:
                nonlocal done
                done += n
                bar.update(task, advance=n, rate=speed(), note=note)

            yield advance_bar
    else:

        def advance_lines(n: int = 1, note: str = "") -> None:
            nonlocal done, last_s
            done += n
            if time.monotonic() - last_s >= PLAIN_LINE_EVERY_S or done >= total:
                last_s = time.monotonic()
                left_s = (total - done) / max(rate(), 1e-9)
                line = f"{title}: {done:,}/{total:,} {unit}, {speed()}, {left_s:.0f} s left {note}"
                say(line.rstrip())

        yield advance_lines
