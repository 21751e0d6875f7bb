"""The table of results on stdout."""

from typing import Any

from rich.table import Table

from dpr_jax.console import results_console

TITLES = {"gold": "Gold passage found", "answer": "Answer found in the text"}
SIGNIFICANT = 0.05
WIDE = 100  # columns of a terminal that holds the default metrics with blanks around each


def show(summaries: list[dict[str, Any]], question_set: str = "") -> None:
    """Prints the metrics of all runs and their differences from the baseline, in percent.

    Args:
      summaries: what metrics/SET/NAME.json holds, in the order to show.
      question_set: which of several sets; "" for a single one.
    """
    console = results_console()
    if question_set:
        console.print(f"\n{question_set}", style="bold", markup=False)
    for view, title in TITLES.items():
        shown = [facts for facts in summaries if view in facts]
        if shown:
            console.print(_metrics(shown, view, title, console.width))
        if any(facts["compared_with"] for facts in shown):
            console.print(_differences(shown, view))


def show_macro_average(averages: dict[str, dict[str, dict[str, float]]], sets: int) -> None:
    """Prints the means over several sets of questions, in percent.

    Args:
      averages: from `score.macro_average`.
      sets: how many sets there are.
    """
    console = results_console()
    for view, runs in averages.items():
        table = _table(f"{TITLES[view]}, macro-average of {sets} sets", console.width)
        names = _shown_names(next(iter(runs.values())))
        table.add_column("run", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for run, values in runs.items():
            table.add_row(run, *(percent(values[name]) for name in names))
        console.print(table)


def _table(title: str, width: int) -> Table:
    """Returns an empty table; on a narrow terminal its cells have no blanks around them."""
    return Table(title=title, title_justify="left", padding=(0, 1 if width >= WIDE else 0))


def verdict(difference: dict[str, float]) -> str:
    """Names what a paired difference shows: `beats`, `is behind` or `no clear difference`.

    A difference is clear where its 95 % interval leaves out 0 and p is below 0.05. The interval
    alone is too narrow where few questions differ: with 5 wins and no loss it leaves out 0, at
    p = 0.06.
    """
    if difference["p_value"] >= SIGNIFICANT:
        return "no clear difference"
    if difference["low"] > 0:
        return "beats"
    if difference["high"] < 0:
        return "is behind"
    return "no clear difference"


def _metrics(summaries: list[dict[str, Any]], view: str, title: str, width: int) -> Table:
    lead, *names = _shown_names(summaries[0][view]["metrics"])
    questions = summaries[0][view]["questions"]
    table = _table(f"{title}, % of {questions:,} questions", width)
    table.add_column("run", no_wrap=True)
    table.add_column(f"{lead} \\[95 %]", justify="right", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for facts in summaries:
        found = facts[view]["metrics"]
        value, low, high = (percent(found[lead][k]) for k in ("value", "low", "high"))
        table.add_row(
            facts["run"] + (" *" if facts.get("stale") else ""),
            f"{value} \\[{low}, {high}]",
            *(percent(found[name]["value"]) for name in names),
        )
    return table


def _differences(summaries: list[dict[str, Any]], view: str) -> Table:
    names = _shown_names(summaries[0][view]["metrics"])[:2]
    table = Table(
        title="Differences on the same questions, in points \\[95 %]",
        title_justify="left",
    )
    for name in ("run", *names):
        table.add_column(name, no_wrap=True)
    for facts in summaries:
        for other, found in facts[view]["difference"].items():
            cells = []
            for name in names:
                value, low, high = (points(found[name][k]) for k in ("value", "low", "high"))
                cells.append(f"{value} \\[{low}, {high}]\n{verdict(found[name])}")
            table.add_row(f"{facts['run']} against {other}", *cells)
    return table


def _shown_names(metrics: dict[str, Any]) -> list[str]:
    """Returns all but the shallower recalls and MAP, which are in metrics/SET/NAME.json."""
    top = [name for name in metrics if name.startswith("top-")]
    recalls = [name for name in metrics if name.startswith("recall@")]
    return [*top, *(name for name in ("MRR@10", "nDCG@10") if name in metrics), *recalls[-1:]]


def percent(value: float) -> str:
    """Formats a share in percent: 0.8275 -> 82.8."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Formats a difference in points: 0.4575 -> +45.8."""
    return f"{100 * value:+.1f}"
