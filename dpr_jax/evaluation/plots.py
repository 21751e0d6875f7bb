"""The report's plots as inline SVG: text stays text, and ink takes the page's colour, light or
dark.
"""

import html
import io
import re
import zlib
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dpr_jax.evaluation.metrics import Estimate

# Okabe and Ito's colours, told apart by colour-blind eyes, on white and on black; runs differ by
# marker too.
COLOURS = ("#e69f00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#d55e00")
MARKERS = ("o", "s", "D", "^", "v", "P")
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dpr_jax",
    "font.family": ["sans-serif"],
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colour(place: int) -> str:
    """Returns the colour of the run at this place of the order."""
    return COLOURS[place % len(COLOURS)]


def accuracy_over_k(curves: dict[str, list[Estimate]], cutoffs: Sequence[int]) -> str:
    """Draws top-k accuracy over k, one line per run with its 95 % band.

    Args:
      curves: run -> estimates for k = 1, 2, ...
      cutoffs: the k with a tick and a marker.

    Returns:
      An <svg> element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("k (passages looked at)", "top-k accuracy, %")
        for place, (name, curve) in enumerate(curves.items()):
            ks = range(1, len(curve) + 1)
            axes.fill_between(
                ks,
                [100 * point.low for point in curve],
                [100 * point.high for point in curve],
                color=colour(place),
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(
                ks,
                [100 * point.value for point in curve],
                color=colour(place),
                marker=MARKERS[place % len(MARKERS)],
                markevery=[k - 1 for k in sorted(set(cutoffs))],
                markersize=6,
                linewidth=2,
                label=name.replace("$", r"\$"),  # no formula
            )
        longest = max(map(len, curves.values()))
        axes.set_xscale("log")
        axes.set_xlim(0.93, max(longest, 2) * 1.07)
        axes.xaxis.set_major_locator(FixedLocator(sorted({1, longest, *cutoffs})))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        lowest = min(100 * curve[0].low for curve in curves.values())
        axes.set_ylim(max(0, 10 * (lowest // 10)), 101)
        axes.legend(loc="lower right", frameon=False)
        return _svg(figure, "Top-k accuracy over k for " + ", ".join(curves))


def training(lines: Sequence[dict[str, float]], run: str) -> list[str]:
    """Loss and accuracy over the steps: two <svg> elements, or one where only one was recorded.

    Args:
      lines: of checkpoints/metrics.jsonl.
      run: that searches with the model, for the plots' names.
    """
    panels = (
        ("loss", "loss", "validation_nll", "validation NLL"),
        ("in-batch accuracy, %", "accuracy", "validation_accuracy", "validation"),
    )
    found = []
    for title, key, validation_key, validation_name in panels:
        scale = 100 if key == "accuracy" else 1
        points, judged = (
            [(line["step"], scale * line[k]) for line in lines if k in line]
            for k in (key, validation_key)
        )
        if not points and not judged:
            continue
        with mpl.rc_context(_STYLE):
            figure, axes = _axes("step", title)
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=COLOURS[2], linewidth=1, alpha=0.35)
                axes.plot(
                    steps,
                    _smooth(values),
                    color=COLOURS[2],
                    linewidth=2,
                    label="training",
                )
            if judged:
                steps, values = zip(*judged, strict=True)
                axes.plot(steps, values, color=COLOURS[5], marker="D", label=validation_name)
            axes.legend(loc="best", frameon=False)
            found.append(_svg(figure, f"Training of {run}: {title} over the steps"))
    return found


def recall_and_speed(facts: dict[str, Any]) -> str:
    """Draws recall against speed for all settings that tuning tried: a colour per build, a ring for
    the one kept.

    Args:
      facts: an index.json with `tried` and `target_recall`.

    Returns:
      An <svg> element.
    """
    builds: dict[str, list[tuple[float, float]]] = {}
    for point in facts["tried"]:
        names = (
            name for name in ("leaves", "dimensions_per_block", "soar_lambda") if name in point
        )
        label = ", ".join(f"{name.replace('_', ' ')} {point[name]}" for name in names)
        found = (100 * point["recall_at_100"], point["queries_per_cpu_s"])
        builds.setdefault(label or facts["kind"], []).append(found)
    kept = next(
        point
        for point in facts["tried"]
        if all(facts["settings"].get(k, v) == v for k, v in point.items())
    )
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("recall@100, %", "queries a second of one core")
        for place, (label, points) in enumerate(builds.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=colour(place),
                marker=MARKERS[place % len(MARKERS)],
                markersize=5,
                linestyle="",
                label=label,
            )
        axes.plot(
            100 * kept["recall_at_100"],
            kept["queries_per_cpu_s"],
            color=_INK,
            marker="o",
            markersize=13,
            markerfacecolor="none",
            linestyle="",
            label="kept",
        )
        wanted = 100 * facts["target_recall"]
        axes.axvline(wanted, color=_INK, linestyle="--")
        # points far below the target were steps on the way to it
        axes.set_xlim(wanted - max(3, 3 * (100 - wanted)), 100.5)
        axes.set_yscale("log")
        axes.legend(loc="best", frameon=False)
        return _svg(figure, f"Recall and speed tried: {', '.join(builds)}")


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Returns a centred moving average over about a tenth of the curve, shorter at its ends."""
    window = np.ones(2 * (len(values) // 20) + 1)
    near = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / near


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Returns the figure as an <svg> element that scales, takes the page's ink and font, and has a
    title for screen readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r' width="[^"]*" height="[^"]*"', "", svg, count=1)
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",  # it would hold for the whole page
        r"font-family: [^;\"]*;? ?",
        r' id="(?![a-z][0-9a-f]{10}")[^"]*"',  # nothing refers to these
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    # Hashed names are alike in two plots with the same marker; an id must be there once in a page.
    mark = zlib.crc32(title.encode())
    svg = re.sub(r'(id="|#)([a-z][0-9a-f]{10})', rf"\g<1>p{mark:x}-\2", svg)
    label = html.escape(title, quote=True)
    return svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1)
