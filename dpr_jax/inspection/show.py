"""Shows what was measured, as tables on stdout and as a page."""

import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

import dpr_jax
from dpr_jax import pages
from dpr_jax.console import results_console

TEMPLATE = Path(__file__).with_name("inspection.html.jinja")
BAR_CELLS = 30


def page(facts: dict[str, Any]) -> str:
    """Returns the page as text; `facts` is what inspection.json holds."""
    environment = pages.environment()
    environment.filters["percent"] = percent
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    now = datetime.datetime.now(datetime.UTC)
    return template.render(
        **facts,
        warnings=warnings(facts),
        histograms={name: bars(tokens) for name, tokens in _lengths(facts).items()},
        lengths=_lengths(facts),
        date=now.strftime("%Y-%m-%d %H:%M UTC"),
        version=dpr_jax.__version__,
    )


def tables(facts: dict[str, Any]) -> None:
    """Prints the tables, the histogram of passages, and the warnings in red at the end."""
    console = results_console()
    if facts["splits"]:
        console.print(_splits(facts))
    console.print(_tokens(facts))
    tokens = facts["corpus"]["tokens"]
    console.print("\nTokens of passages", style="bold")
    for label, share in bars(tokens):
        bar = "█" * round(BAR_CELLS * share / max(tokens["bars"]))
        console.print(f"{label:>11} {bar:<{BAR_CELLS}} {percent(share):>5} %")
    corpus = facts["corpus"]
    console.print(
        f"\n{corpus['passages']:,} passages: {corpus['repeated_texts']:,} repeat another's text, "
        f"{corpus['without_text']:,} without text, {corpus['without_title']:,} without title"
    )
    for warning in warnings(facts):
        console.print(f"WARNING: {warning}", style="bold red", soft_wrap=True)


def warnings(facts: dict[str, Any]) -> list[str]:
    """Returns warnings: facts that make figures on these data look better than they are."""
    said = []
    for pair in facts["overlap"]:
        for count, what in (
            (pair["questions"], f"are also in {pair['seen']}"),
            (pair["with_seen_gold"], f"have a gold passage of {pair['seen']}"),
        ):
            if count:
                said.append(
                    f"{count:,} of {pair['of']:,} {pair['split']} questions"
                    f" ({percent(count / pair['of'])} %) {what}"
                )
    return said


def bars(tokens: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns (range of lengths, share of texts) of a histogram."""
    width, last = tokens["width"], len(tokens["bars"]) - 1
    labels = []
    for place in range(last + 1):
        low, high = place * width, (place + 1) * width - 1
        if place == last and tokens["max"] > high:
            labels.append(f"{low:,} or more")
        else:
            labels.append(f"{low:,}–{high:,}" if width > 1 else f"{low:,}")
    return list(zip(labels, tokens["bars"], strict=True))


def percent(value: float) -> str:
    """Formats a share in percent: 0.8275 -> 82.8."""
    return f"{100 * value:.1f}"


def _lengths(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    splits = {f"{name} questions": split["tokens"] for name, split in facts["splits"].items()}
    return {"passages": facts["corpus"]["tokens"], **splits}


def _splits(facts: dict[str, Any]) -> Table:
    table = Table(title=f"Questions of {facts['name']}", title_justify="left")
    names = ("split", "questions", "repeated", "with gold", "with answers")
    for name in (*names, "answer in gold", "hard negatives"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in facts["splits"].items():
        checked = split["checked_for_answers"]
        table.add_row(
            name,
            *(f"{split[key]:,}" for key in ("questions", "repeated", "with_gold", "with_answers")),
            f"{percent(split['answer_in_gold'] / checked)} %" if checked else "–",
            f"{split['hard_negatives']:.1f}",
        )
    return table


def _tokens(facts: dict[str, Any]) -> Table:
    table = Table(title=f"Tokens ({facts['model']})", title_justify="left")
    for name in ("texts", "looked at", "mean", "median", "95 %", "longest", "cut"):
        table.add_column(name, justify="left" if name == "texts" else "right")
    for name, tokens in _lengths(facts).items():
        table.add_row(
            name,
            f"{tokens['texts']:,}",
            f"{tokens['mean']:.0f}",
            *(f"{tokens[key]:,}" for key in ("median", "p95", "max")),
            f"{percent(tokens['over_limit'])} % at {tokens['limit']}",
        )
    return table
