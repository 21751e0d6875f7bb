"""Shows a plan, as tables on stdout and as a page."""

import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

import dpr_jax
from dpr_jax import pages
from dpr_jax.console import results_console

TEMPLATE = Path(__file__).with_name("plan.html.jinja")
PROGRAMS = {"train": "an update", "encode": "a batch of passages", "search": "a block of vectors"}


def page(facts: dict[str, Any]) -> str:
    """The page as text; `facts` is what the JSON holds."""
    environment = pages.environment()
    environment.filters.update(size=size, percent=percent, number=number)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        facts=facts,
        rows=rows(facts),
        verdicts=verdicts(facts),
        programs=PROGRAMS,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=dpr_jax.__version__,
    )


def tables(facts: dict[str, Any]) -> None:
    """Prints the plan."""
    console = results_console()
    title = f"{facts['topology']}: {facts['devices']} x {facts['chip']['name']}"
    table = Table(title=title, title_justify="left")
    for name in ("per chip", *PROGRAMS):
        table.add_column(name, justify="left" if name == "per chip" else "right")
    for row in rows(facts):
        table.add_row(*row)
    console.print(table)
    parts = facts["train"].get("by_part")
    if parts:
        total = sum(parts.values())
        shown = sorted(parts.items(), key=lambda item: -item[1])
        line = ", ".join(f"{name} {percent(value / total)}" for name, value in shown)
        console.print(f"an update by part: {line}", soft_wrap=True)
    for name in PROGRAMS:
        for one in facts[name]["collectives"]:
            console.print(
                f"{name}: {one['count']} {one['kind']}, {size(one['bytes'])}", soft_wrap=True
            )
    for line in (*verdicts(facts), *(f"assumed: {one}" for one in facts["assumptions"])):
        console.print(line, soft_wrap=True)


def rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table: what is said, of train, encode, search."""
    parts = [facts[name] for name in PROGRAMS]

    def row(title: str, key: str, show: Any) -> tuple[str, ...]:
        values = [part.get(key) for part in parts]
        return (title, *("–" if value is None else show(value) for value in values))

    return [
        ("one run is", *PROGRAMS.values()),
        row("state", "state_bytes", size),
        row("temporaries", "temporary_bytes", size),
        row("peak", "peak_bytes", size),
        row("the chip has", "memory_bytes", size),
        row("fits", "fits", lambda value: "yes" if value else "NO"),
        row("cycles", "cycles", lambda value: f"{value / 1e6:.1f} M"),
        row("milliseconds", "seconds", lambda value: f"{1000 * value:.1f}"),
        row("of them on the links", "link_share", percent),
        row("share of peak", "peak_share", percent),
        row("memory traffic", "traffic_bytes", size),
        row("hours in all", "hours", lambda value: f"{value:.2f}"),
        row("passages per second", "passages_per_second", number),
        row("questions per second", "questions_per_second", number),
        row("source", "source", str),
    ]


def verdicts(facts: dict[str, Any]) -> list[str]:
    """Sentences that say what follows from the figures."""
    train, encode, search = (facts[name] for name in PROGRAMS)
    said = []
    batch = train["largest_batch"]
    if train["advice"]:
        advice = train["advice"]
        remedy = "no remat, chunk_size or shard_optimizer helps: take chips of more memory"
        if advice["change"]:
            confirmed = "confirmed" if advice["confirmed"] else "not confirmed"
            change = ", ".join(f"train.{name} {value}" for name, value in advice["change"].items())
            remedy = f"it does with {change} ({confirmed} by compiling it whole)"
        said.append(
            f"train does not fit as it is ({size(train['asked_bytes'])} needed,"
            f" {size(train['usable_bytes'])} may be used); {remedy}"
        )
    said.append(
        f"train: the largest batch that fits is about {batch['questions']:,} questions"
        f" ({batch['questions_per_device']} per device; extrapolated, gradients and activations in"
        " a line)"
    )
    if encode.get("limited_by"):
        said.append(
            f"encode: {number(facts['passages'])} passages, held up by {encode['limited_by']}"
        )
    if not search["fits"]:
        said.append("search: the vectors do not stay in the devices' memory; they are streamed")
    for name in PROGRAMS:
        charged = facts[name].get("charged") or []
        named = [f"{one['what']} x {one['count']}" for one in charged if one["bytes"] > 1e6]
        if named:
            share = facts[name]["charged_cycles"] / (facts[name]["cycles"] or 1)
            said.append(
                f"{name}: {percent(share)} of the cycles are of what the cost model leaves out,"
                f" counted at its memory traffic: {', '.join(named)}"
            )
        said += [f"{name}: cycles unknown: {one}" for one in facts[name].get("unknown", [])]
    said += [f"train: a collective that it could do without: {one}" for one in train["needless"]]
    host = facts["host"]
    said.append(
        f"host: prepare {size(host['prepare_memory_bytes'])}, building the index"
        f" {size(host['index_build_memory_bytes'])}, serving"
        f" {size(host['serving_memory_bytes'])} of memory;"
        f" {size(sum(host['disk_bytes'].values()))} of disk"
    )
    return said


def size(count: float) -> str:
    """Bytes in words."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count / 1e3:.1f} kB"


def percent(value: float) -> str:
    """0.8275 -> 82.8 %"""
    return f"{100 * value:.1f} %"


def number(value: float) -> str:
    """With thousands separated."""
    return f"{value:,.0f}"
