"""The table of results on stdout."""

from typing import Any

from rich.console import Console
from rich.table import Table

TITLES = {"gold": "Gold passage found", "answer": "Answer found in the text"}
_PIPE_WIDTH = 110  # where there is no terminal to ask


def show(summaries: list[dict[str, Any]]) -> None:
    """Prints one table a view, runs as rows, in percent.

    Args:
      summaries: what metrics/NAME.json holds, in the order to show.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    for view, title in TITLES.items():
        shown = [facts for facts in summaries if view in facts]
        if shown:
            console.print(_table(shown, view, title))


def verdict(difference: dict[str, float]) -> str:
    """What a paired difference says, by its 95 % interval."""
    if difference["low"] > 0:
        return "beats"
    if difference["high"] < 0:
        return "is behind"
    return "no clear difference"


def _table(summaries: list[dict[str, Any]], view: str, title: str) -> Table:
    first = summaries[0][view]
    names = [name for name in first["metrics"] if name.startswith("top-")] + ["MRR@10"]
    lead = names[0]
    baseline = next((f["baseline"] for f in summaries if f["baseline"]), None)
    table = Table(
        title=f"{title}, % of {first['questions']:,} questions", title_justify="left"
    )
    table.add_column("run", no_wrap=True)
    table.add_column(f"{lead} \\[95 %]", justify="right", no_wrap=True)
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    if baseline:
        table.add_column(f"{lead} against {baseline} \\[95 %]", no_wrap=True)
    for facts in summaries:
        metrics = facts[view]["metrics"]
        interval = metrics[lead]
        cells = [
            facts["run"],
            f"{percent(interval['value'])} \\[{percent(interval['low'])}, {percent(interval['high'])}]",
            *(percent(metrics[name]["value"]) for name in names[1:]),
        ]
        if facts["baseline"]:
            gap = facts[view]["difference"][lead]
            cells.append(
                f"{points(gap['value'])} \\[{points(gap['low'])}, {points(gap['high'])}] {verdict(gap)}"
            )
        table.add_row(*cells)
    return table


def percent(value: float) -> str:
    """0.8275 -> 82.8"""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """0.4575 -> +45.8"""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
