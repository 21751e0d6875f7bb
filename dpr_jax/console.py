"""Messages and progress: a bar on a terminal, plain lines in a log file or pipe."""

import contextlib
import os
import sys
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

_quiet = False
_unread = False
_alias = ("", "")


class _Console(Console):
    """A console whose reader may leave: that ends the output, not the work."""

    def on_broken_pipe(self) -> None:
        global _unread
        self.quiet = _unread = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = _Console(stderr=True, highlight=False, soft_wrap=True)


def is_unread() -> bool:
    """Returns whether the reader of stdout or stderr left before the last line."""
    return _unread


def set_quiet(quiet: bool) -> None:
    """Silences this process (all but process 0 of a run of several)."""
    global _quiet
    _quiet = quiet


def set_alias(path: str, shown: str) -> None:
    """Shows a path under another name: the cache of a work directory as what it is a copy of."""
    global _alias
    _alias = (path, shown)


def _shown(line: str) -> str:
    return line.replace(*_alias) if _alias[0] else line


def results_console() -> Console:
    """Returns stdout, as wide as the terminal."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=PIPE_WIDTH)


def quiet_libraries() -> None:
    """Silences log lines of libraries that no user could act on; an own setting wins."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there


def say(message: str) -> None:
    """Writes one line for the user to stderr; stdout is for results."""
    if not _quiet:
        console.print(_shown(message), markup=False)


def size_in_words(count: float) -> str:
    """Returns bytes in words, such as "3.2 GB"; MB below a GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def complain(line: str) -> None:
    """Writes an error in one write, also where output is unbuffered: Gloo's threads write too."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"dpr: {_shown(line)}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def progress(
    title: str, total: int, unit: str, *, clock: Callable[[], float] | None = None
) -> Iterator[Callable[..., None]]:
    """Shows work going on; yields `advance(n, note="")`, to be called after every n units.

    On a terminal a bar with rate and time left, else a plain line at most every ten seconds, with
    the same facts. Both are measured from the first call on: the first units include compilation.

    Args:
      title: of the line.
      total: units to do.
      unit: what is counted, in the plural.
      clock: for rate and time left; it may leave out compilation. None: the wall's.
    """
    clock = clock or time.monotonic
    start_s = first_s = clock()
    last_s = time.monotonic()
    done = first_done = 0

    def count(n: int) -> None:
        nonlocal done, first_s, first_done
        done += n
        if not first_done:
            first_s, first_done = clock(), done

    def rate() -> float:
        """Returns units per second; 0 while nothing but the first call is known."""
        if done > first_done:
            return (done - first_done) / max(clock() - first_s, 1e-9)
        return done / max(clock() - start_s, 1e-9) if done >= total else 0.0

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
                count(n)
                bar.update(task, advance=n, rate=speed() if rate() else "", note=note)

            yield advance_bar
    else:

        def advance_lines(n: int = 1, note: str = "") -> None:
            nonlocal last_s
            count(n)
            if time.monotonic() - last_s >= PLAIN_LINE_EVERY_S or done >= total:
                last_s = time.monotonic()
                line = f"{title}: {done:,}/{total:,} {unit}"
                if rate():
                    line += f", {speed()}, {(total - done) / rate():.0f} s left"
                say(f"{line} {note}".rstrip())

        yield advance_lines
