"""The stage `dpr evaluate`: every run of the test questions -> metrics/NAME.json, a table, metrics/report.html."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import Config, to_dict
from dpr_jax.data.store import open_corpus, open_questions
from dpr_jax.errors import InputError
from dpr_jax.evaluation import report, score, table
from dpr_jax.evaluation.examples import choose_examples
from dpr_jax.evaluation.trec import read_run
from dpr_jax.logging import progress, say

FIRST_IN_ORDER = ("bm25", "untrained", "trained")


def run(config: Config, workdir: artifacts.WorkDir) -> None:
    """Evaluates every run in runs/, whoever wrote it, prints the table and writes the report.

    Raises:
      InputError: there is no run; one is malformed, or of other data; the test questions have neither gold passages nor answers.
    """
    settings = config.evaluate
    manifest = workdir.metrics / "manifest.json"
    page = workdir.metrics / "report.html"

    # --- inputs
    run_files = _run_files(workdir.runs)
    index_files = sorted(workdir.root.glob("*/index.json"))
    training_file = workdir.checkpoints / "metrics.jsonl"
    inputs = {"data": artifacts.fingerprint(workdir.data / "manifest.json")}
    for file in [*run_files.values(), *index_files, training_file]:
        if file.exists():
            inputs[file.relative_to(workdir.root).as_posix()] = artifacts.checksum(file)
    for file in run_files.values():
        _check_unchanged(file, inputs[file.relative_to(workdir.root).as_posix()])
    # The page shows every setting, so each of them matters.
    origin = artifacts.made_from("evaluate", to_dict(config), inputs)
    metrics_files = {name: workdir.metrics / f"{name}.json" for name in run_files}
    outputs = [*metrics_files.values(), page]
    if artifacts.is_fresh(manifest, origin) and all(map(Path.exists, outputs)):
        say(f"evaluate: up to date, report in {page}")
        table.show([artifacts.read_json(file) for file in metrics_files.values()])
        return

    # --- what each run found
    corpus = open_corpus(workdir)
    questions = list(open_questions(workdir, "test"))
    views = score.views(questions, corpus, settings.answer_match)
    if not views:
        raise InputError(
            f"the {len(questions):,} test questions have neither gold passages nor answers; "
            "set data.test_qrels, or give a file with answers as data.test"
        )
    passage_rows = {passage: row for row, passage in enumerate(corpus.ids())}
    question_rows = {question.id: row for row, question in enumerate(questions)}
    ranked: dict[str, list[np.ndarray]] = {}
    scored: dict[str, dict[str, score.Scored]] = {}
    with progress("evaluate", len(run_files), "runs") as advance:
        for name, file in run_files.items():
            ranked[name] = read_run(file, question_rows, passage_rows)
            scored[name] = {
                view.name: score.score(view, ranked[name], settings.cutoffs)
                for view in views
            }
            advance(1, name)

    # --- means, intervals, differences
    if settings.baseline not in ranked:
        say(f"evaluate: no run {settings.baseline!r} to compare the others with")
    chance = {"samples": settings.bootstrap_samples, "seed": config.seed}
    summaries = []
    for name, views_scored in scored.items():
        depth = max(map(len, ranked[name]))
        if depth < min(max(settings.cutoffs), len(corpus)):
            say(
                f"evaluate: run {name} has at most {depth} passages a question; nothing is found beyond them"
            )
        others = [
            other
            for other in _compared_with(name, settings.baseline)
            if other in ranked
        ]
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
            name: score.curve(
                view, scored[name][view.name], max(settings.cutoffs), **chance
            )
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
        training=_read_lines(training_file),
        indexes={file.parent.name: artifacts.read_json(file) for file in index_files},
        made_from={
            name: _manifest(file).get("made_from", {})
            for name, file in run_files.items()
        },
    )
    with artifacts.atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
    artifacts.write_manifest(manifest, origin, outputs)
    table.show(summaries)
    say(f"evaluate: report in {page}")


def _run_files(folder: Path) -> dict[str, Path]:
    """The runs of the test questions by name, in the order they are shown."""
    found = {}
    for file in sorted(folder.glob("*.trec")):
        split = _manifest(file).get("split", "test")
        if split == "test":
            found[file.stem] = file
        else:
            say(f"evaluate: leaving out {file.name}, a run of the {split} questions")
    if not found:
        raise InputError(
            f"{folder} holds no run of the test questions (NAME.trec); run `dpr retrieve` first"
        )
    first = [name for name in FIRST_IN_ORDER if name in found]
    others = [name for name in found if name not in first]
    return {name: found[name] for name in first + others}


def _compared_with(name: str, baseline: str) -> list[str]:
    """Each run is compared with the baseline, a trained encoder with its own start as well."""
    others = [baseline, "untrained"] if name == "trained" else [baseline]
    return [other for other in dict.fromkeys(others) if other != name]


def _manifest(run_file: Path) -> dict[str, Any]:
    """What `dpr retrieve` says of a run; empty for one that another tool wrote."""
    file = run_file.with_name(run_file.stem + ".manifest.json")
    return artifacts.read_json(file) if file.exists() else {}


def _check_unchanged(run_file: Path, sha256: str) -> None:
    """Refuses a run that is not the one its manifest speaks of."""
    entry = _manifest(run_file).get("files", {}).get(run_file.name)
    if entry and entry["sha256"] != sha256:
        raise InputError(
            f"{run_file} is damaged or was changed: its checksum is not the one in {run_file.stem}.manifest.json; "
            "delete that manifest and run `dpr retrieve` again, or keep the file as a run of your own without a manifest"
        )


def _json_by_line(facts: dict[str, Any]) -> str:
    """JSON with one entry a line: lists of ranks stay on theirs."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            inner = ",\n".join(
                f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()
            )
            lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read_lines(path: Path) -> list[dict[str, float]]:
    """The training metrics; a last line that is being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
