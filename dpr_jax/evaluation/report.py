"""The report: one HTML page that needs nothing else, from what the stage measured."""

import datetime
import json
import platform
from pathlib import Path
from typing import Any

from markupsafe import Markup

import dpr_jax
from dpr_jax import artifacts, pages
from dpr_jax.config import Config
from dpr_jax.config_file import keys, to_dict
from dpr_jax.evaluation import plots
from dpr_jax.evaluation.examples import Choice
from dpr_jax.evaluation.metrics import Estimate
from dpr_jax.evaluation.table import TITLES, percent, points, verdict

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(
    config: Config,
    *,
    title: str,
    corpus_size: int,
    summaries: list[dict[str, Any]],
    curves: dict[str, dict[str, list[Estimate]]],
    examples: Choice,
    training: dict[str, list[dict[str, float]]],
    indexes: dict[str, dict[str, Any]],
    manifests: dict[str, dict[str, Any]],
) -> str:
    """Returns the page as text.

    Args:
      config: whose settings are shown, those that differ from the defaults first.
      title: of the page.
      corpus_size: number of passages.
      summaries: what metrics/NAME.json holds, in the order to show.
      curves: view -> run -> top-k accuracy for k = 1, 2, ...
      examples: questions with their passages.
      training: run -> the lines of metrics.jsonl of the training before it; none: no training
        curves.
      indexes: folder -> its index.json.
      manifests: run -> its manifest; empty for a run of another tool.
    """
    environment = pages.environment()
    environment.filters.update(
        percent=percent,
        points=lambda value: points(value).replace("-", "\N{MINUS SIGN}"),
        verdict=verdict,
        json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    cutoffs = config.evaluate.cutoffs
    return template.render(
        config=config,
        title=title,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        corpus_size=corpus_size,
        summaries=summaries,
        views={view: TITLES[view] for view in curves},
        columns={view: _columns(summaries[0][view]["metrics"]) for view in curves},
        compared=any(facts["compared_with"] for facts in summaries),
        colours={f["run"]: plots.colour(i) for i, f in enumerate(summaries)},
        accuracy_plots={
            view: Markup(plots.accuracy_over_k(runs, cutoffs)) for view, runs in curves.items()
        },
        training_plots={
            run: [Markup(svg) for svg in plots.training(lines, run)]
            for run, lines in training.items()
        },
        validations={run: _last_validation(lines) for run, lines in training.items()},
        choice=examples,
        indexes=indexes,
        tuning_plots={
            folder: Markup(plots.recall_and_speed(facts))
            for folder, facts in indexes.items()
            if "tried" in facts
        },
        made_from={
            run: {key: facts[key] for key in facts if key not in ("files", "versions")}
            for run, facts in manifests.items()
        },
        settings=_settings(config),
        versions={
            **artifacts.versions(),
            "dpr_jax": dpr_jax.__version__,
            "python": platform.python_version(),
        },
    )


def _last_validation(lines: list[dict[str, float]]) -> dict[str, float]:
    return next((line for line in lines[::-1] if "validation_nll" in line), {})


def _columns(metrics: dict[str, Any]) -> list[str]:
    """Returns the metrics that the page has room for: of the recalls only the last."""
    recalls = [name for name in metrics if name.startswith("recall@")]
    return [name for name in metrics if name not in recalls[:-1]]


def _settings(config: Config) -> list[tuple[str, Any, bool]]:
    """Returns (dotted name, value, whether it is not the default), those that are not first."""
    values, defaults = to_dict(config), to_dict(Config())
    rows = []
    for key in keys():
        value, default = values, defaults
        for part in key.split("."):
            value, default = value[part], default[part]
        rows.append((key, json.dumps(value, ensure_ascii=False), value != default))
    return sorted(rows, key=lambda row: not row[2])
