"""The stage `dpr evaluate`: every run of the test questions -> metrics/NAME.json, a table,
metrics/report.html.
"""

import json
from pathlib import Path
from typing import Any

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.config_file import to_dict
from dpr_jax.console import say
from dpr_jax.data import changes
from dpr_jax.errors import InputError
from dpr_jax.evaluation import report, score, table
from dpr_jax.evaluation.examples import choose_examples
from dpr_jax.evaluation.judged import judge, manifest_of

FIRST_IN_ORDER = ("bm25", "untrained", "trained", "hybrid")
FORMAT = 3  # of metrics/NAME.json and of the page; another one makes them anew


def run(config: Config, workdir: artifacts.WorkDir) -> None:
    """Evaluates every run in runs/, whoever wrote it, prints the table and writes the report.

    Raises:
      InputError: there is no run; one is malformed, or of other data; the test questions have
        neither gold passages nor answers.
    """
    settings = config.evaluate
    manifest = workdir.metrics / "manifest.json"
    page = workdir.metrics / "report.html"

    # --- inputs
    run_files = _run_files(workdir.runs)
    index_files = _index_files(workdir.root)
    training_files = _training_files(workdir)
    inputs = {"data": artifacts.fingerprint(workdir.data / "manifest.json")}
    log = changes.read(workdir)
    if log.folders:
        inputs["changes"] = log.fingerprint
    for file in [*run_files.values(), *index_files, *training_files.values()]:
        inputs[file.relative_to(workdir.root).as_posix()] = artifacts.checksum(file)
    for file in run_files.values():
        _check_unchanged(file, inputs[file.relative_to(workdir.root).as_posix()])
    # The page shows every setting, so each of them matters.
    shown = {**to_dict(config), "format": FORMAT}
    origin = artifacts.made_from("evaluate", shown, inputs)
    metrics_files = {name: workdir.metrics / f"{name}.json" for name in run_files}
    outputs = [*metrics_files.values(), page]
    if artifacts.is_fresh(manifest, origin) and all(map(Path.exists, outputs)):
        say(f"evaluate: up to date, report in {page}")
        table.show([artifacts.read_json(file) for file in metrics_files.values()])
        return

    # --- what each run found
    questions, corpus, views, ranked, scored = judge(workdir, run_files, settings)

    # --- means, intervals, differences
    if settings.baseline not in ranked:
        say(f"evaluate: no run {settings.baseline!r} to compare the others with")
    chance = {"samples": settings.bootstrap_samples, "seed": config.seed}
    summaries = []
    for name, views_scored in scored.items():
        depth = max(map(len, ranked[name]))
        if depth < min(max(settings.cutoffs), len(corpus)):
            say(
                f"evaluate: run {name} has at most {depth} passages a question; nothing is found"
                " beyond them"
            )
        others = [other for other in _compared_with(name, settings.baseline) if other in ranked]
        facts: dict[str, Any] = {
            "run": name,
            "questions": len(questions),
            "depth": depth,
            "compared_with": others,
        }
        for view in views:
            facts[view.name] = score.summary(
                view,
                views_scored[view.name],
                {other: scored[other][view.name] for other in others},
                **chance,
            )
        summaries.append(facts)
    curves = {
        view.name: {
            name: score.curve(view, scored[name][view.name], max(settings.cutoffs), **chance)
            for name in ranked
        }
        for view in views
    }

    # --- files
    workdir.metrics.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # from here on it would speak of other files
    for facts in summaries:
        with artifacts.atomic_file(metrics_files[facts["run"]]) as partial:
            partial.write_text(_json_by_line(facts), encoding="utf-8")
    examples = choose_examples(
        questions,
        corpus,
        ranked,
        {name: scored[name][views[0].name].rank_Q for name in ranked},
        judged=views[0].judged,
        baseline=settings.baseline,
        match=settings.answer_match,
        count=settings.examples,
        seed=config.seed,
    )
    text = report.render(
        config,
        corpus_size=len(corpus),
        summaries=summaries,
        curves=curves,
        examples=examples,
        training={name: _read_lines(file) for name, file in training_files.items()},
        indexes={
            file.parent.relative_to(workdir.root).as_posix(): artifacts.read_json(file)
            for file in index_files
        },
        manifests={name: manifest_of(file) for name, file in run_files.items()},
    )
    with artifacts.atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
    artifacts.write_manifest(manifest, origin, outputs)
    table.show(summaries)
    say(f"evaluate: report in {page}")


def _run_files(folder: Path) -> dict[str, Path]:
    """The runs by name, in the order they are shown."""
    found = {file.stem: file for file in sorted(folder.glob("*.trec"))}
    if not found:
        raise InputError(
            f"{folder} holds no run of the test questions (NAME.trec); run `dpr retrieve` first"
        )
    first = [name for name in FIRST_IN_ORDER if name in found]
    others = [name for name in found if name not in first]
    return {name: found[name] for name in first + others}


def _index_files(root: Path) -> list[Path]:
    """The indexes of the work directory; those of the untrained encoder and of later rounds lie
    deeper.
    """
    patterns = ("*/index.json", "*/*/index.json", "rounds/*/*/index.json")
    files = sorted(file for pattern in patterns for file in root.glob(pattern))
    # one inside another is the part of it that was built anew
    return [file for file in files if not (file.parents[1] / file.name).exists()]


def _training_files(workdir: artifacts.WorkDir) -> dict[str, Path]:
    """What each round of training recorded, by the name of the run that searches with its model."""
    found = {"trained": workdir.checkpoints / "metrics.jsonl"}
    later = workdir.root.glob("rounds/*/checkpoints/metrics.jsonl")
    numbered = {int(file.parents[1].name): file for file in later}
    found |= {f"round-{number}": numbered[number] for number in sorted(numbered)}
    return {name: file for name, file in found.items() if file.exists()}


def _compared_with(name: str, baseline: str) -> list[str]:
    """Each run is compared with the baseline, a trained encoder with its own start as well, a
    hybrid or a later round with the encoder that it builds on.
    """
    start = {"trained": "untrained", "hybrid": "trained", "round-2": "trained"}
    if name.startswith("round-") and name not in start:
        start[name] = f"round-{int(name.removeprefix('round-')) - 1}"
    others = [baseline, *([start[name]] if name in start else [])]
    return [other for other in dict.fromkeys(others) if other != name]


def _check_unchanged(run_file: Path, sha256: str) -> None:
    """Refuses a run that is not the one its manifest speaks of."""
    entry = manifest_of(run_file).get("files", {}).get(run_file.name)
    if entry and entry["sha256"] != sha256:
        raise InputError(
            f"{run_file} is damaged or was changed: its checksum is not the one in"
            f" {run_file.stem}.manifest.json; delete that manifest and run `dpr retrieve` again, or"
            " keep the file as a run of your own without a manifest"
        )


def _json_by_line(facts: dict[str, Any]) -> str:
    """JSON with one entry a line: lists of ranks stay on theirs."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read_lines(path: Path) -> list[dict[str, float]]:
    """The training metrics; a last line that is being written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
