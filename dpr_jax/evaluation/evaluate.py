"""The stage `dpr evaluate`: runs of the test questions -> metrics, tables, reports."""

import json
from pathlib import Path
from typing import Any

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config
from dpr_jax.config_file import to_dict
from dpr_jax.console import say
from dpr_jax.data import changes, named, store
from dpr_jax.errors import InputError
from dpr_jax.evaluation import report, score, table
from dpr_jax.evaluation.examples import EXAMPLES, choose_examples
from dpr_jax.evaluation.judged import judge, manifest_of
from dpr_jax.workdir import RetrieverDir, WorkDir

FIRST_IN_ORDER = ("bm25", "untrained", "trained", "hybrid")
FORMAT = 6  # of metrics/SET/NAME.json and of the page; another one makes them anew


def run(config: Config, workdir: WorkDir) -> None:
    """Evaluates the runs of every set of test questions, prints the tables, writes the reports.

    With several sets a last table has the macro-average of each metric. Sets that have a corpus of
    their own count in it with the figures in their work directories.

    Raises:
      InputError: there is no run, none that can be read, or one that was changed after it was
        written.
    """
    others = [name for name in named.all_test_sets(config.data) if not workdir.set_name]
    elsewhere = {name: workdir.question_set(name) for name in others}
    elsewhere = {name: other for name, other in elsewhere.items() if other.file.exists()}
    sets = store.test_sets(workdir) if workdir.find("data") or not elsewhere else ()
    if not sets and not elsewhere:
        say("evaluate: there are no test questions (data.test), so there is nothing to evaluate")
        return
    of_sets: dict[str, list[dict[str, Any]]] = {}
    for name in sets:
        page = workdir.metrics / ("report.html" if len(sets) == 1 else f"{name}.html")
        if summaries := _evaluate_set(config, workdir, name, page):
            of_sets[name] = summaries
            is_alone = len(sets) + len(elsewhere) == 1
            table.show(summaries, workdir.set_name if is_alone else name)
            say(f"evaluate: report in {page}")
    for name, other in elsewhere.items():
        if (manifest := other.metrics / "test" / "manifest.json").exists():
            files = artifacts.read_json(manifest)["files"]
            of_sets[name] = [artifacts.read_json(manifest.with_name(file)) for file in files]
    if len(of_sets) > 1:
        averages = score.macro_average(of_sets)
        artifacts.write_json(workdir.metrics / "macro_average.json", averages)
        table.show_macro_average(averages, len(of_sets))


def _evaluate_set(
    config: Config, workdir: WorkDir, question_set: str, page: Path
) -> list[dict[str, Any]]:
    """Returns what metrics/SET/NAME.json holds of each run; none for questions without labels."""
    settings = config.evaluate
    out = workdir.metrics / question_set
    manifest = out / "manifest.json"

    # --- inputs
    run_files = _run_files(workdir, question_set)
    retrievers = [one for one in workdir.retrievers() if one.name in run_files]
    index_files = _current_files(retrievers, "index", "index.json")
    training_files = _current_files(retrievers, "checkpoints", "metrics.jsonl")
    inputs = {
        "data": artifacts.fingerprint(workdir.data / "manifest.json"),
        "corpus": changes.read(workdir).fingerprint,
    }
    for file in [*run_files.values(), *index_files.values(), *training_files.values()]:
        inputs[file.relative_to(workdir.root).as_posix()] = artifacts.checksum(file)
    for file in run_files.values():
        _check_unchanged(file, inputs[file.relative_to(workdir.root).as_posix()])
    # The page shows every setting, so each of them matters.
    shown = {**to_dict(config), "format": FORMAT, "questions": question_set}
    origin = artifacts.made_from("evaluate", shown, inputs)
    metrics_files = {name: out / f"{name}.json" for name in run_files}
    if artifacts.is_fresh(manifest, origin):
        left_out = artifacts.read_json(manifest)["left_out"]
        written = [file for name, file in metrics_files.items() if name not in left_out]
        if all(map(Path.exists, [*written, page])):
            _warn(left_out)
            say("evaluate: up to date")
            summaries = [artifacts.read_json(file) for file in written]
            _warn_of_stale({one["run"]: one["stale"] for one in summaries if one["stale"]})
            return summaries

    # --- what each run found
    judged = judge(workdir, question_set, run_files, settings)
    if judged is None:
        say(
            f"evaluate: the questions of {question_set} have neither gold passages nor answers, so"
            f" there is nothing to evaluate; what was found is in {workdir.runs(question_set)}"
        )
        return []
    questions, corpus, views, ranked, scored, refused, stale = judged
    if not ranked:
        raise next(iter(refused.values()))
    left_out = {name: str(error) for name, error in refused.items()}
    _warn(left_out)
    _warn_of_stale(stale)

    # --- means, intervals, differences
    if settings.baseline not in ranked:
        say(f"evaluate: no run {settings.baseline!r} to compare the others with")
    chance = {"samples": score.SAMPLES, "seed": config.seed}
    summaries = []
    for name, views_scored in scored.items():
        depth = max(map(len, ranked[name]))
        if not depth:
            say(f"evaluate: WARNING: run {name} has no passage for any question; it counts as 0")
        elif depth < min(max(settings.cutoffs), len(corpus)):
            say(
                f"evaluate: run {name} has at most {depth} passages per question; nothing is found"
                " beyond them"
            )
        against = _compared_with(workdir, name, settings.baseline)
        others = [other for other in against if other in ranked]
        facts: dict[str, Any] = {
            "run": name,
            "questions": len(questions),
            "depth": depth,
            "stale": stale.get(name, ""),
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
    manifest.unlink(missing_ok=True)  # from here on it would describe other files
    for name in left_out:
        metrics_files[name].unlink(missing_ok=True)
    for facts in summaries:
        metrics_files[facts["run"]].parent.mkdir(parents=True, exist_ok=True)
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
        count=EXAMPLES,
        seed=config.seed,
    )
    text = report.render(
        config,
        title=f"{workdir.root.name}, {question_set}",
        corpus_size=len(corpus),
        summaries=summaries,
        curves=curves,
        examples=examples,
        training={name: _read_lines(file) for name, file in training_files.items()},
        indexes={name: artifacts.read_json(file) for name, file in index_files.items()},
        manifests={name: manifest_of(run_files[name]) for name in ranked},
    )
    with artifacts.atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
    written = [metrics_files[facts["run"]] for facts in summaries]
    artifacts.write_manifest(manifest, origin, written, left_out=left_out)
    return summaries


def _warn(left_out: dict[str, str]) -> None:
    """Warns of runs that are not in the table, and says why."""
    for name, why in left_out.items():
        say(f"evaluate: WARNING: run {name} is left out: {why}")


def _warn_of_stale(stale: dict[str, str]) -> None:
    """Names the runs that are older than the corpus."""
    for name, why in stale.items():
        again = f"run `dpr retrieve --retriever {name}` with this --workdir again"
        say(f"evaluate: WARNING: run {name} is marked with *: {why}; {again}")


def _run_files(workdir: WorkDir, question_set: str) -> dict[str, Path]:
    """Returns the runs by name, in the order they are shown; imported ones last."""
    folder = workdir.runs(question_set)
    found = {file.stem: file for file in sorted(folder.glob("*.trec"))}
    for file in sorted(workdir.imported_runs(question_set).glob("*.trec")):
        found.setdefault(f"imported/{file.stem}" if file.stem in found else file.stem, file)
    if not found:
        raise InputError(
            f"{folder} holds no run of the test questions (NAME.trec); run `dpr retrieve` first"
        )
    first = [name for name in FIRST_IN_ORDER if name in found]
    others = [name for name in found if name not in first]
    return {name: found[name] for name in first + others}


def _current_files(retrievers: list[RetrieverDir], stage: str, name: str) -> dict[str, Path]:
    """Returns a file of each retriever's current artifact of a stage, where it is there."""
    folders = {one.name: one.find(stage) for one in retrievers}
    files = {own: folder / name for own, folder in folders.items() if folder is not None}
    return {own: file for own, file in files.items() if file.exists()}


def _compared_with(workdir: WorkDir, name: str, baseline: str) -> list[str]:
    """Returns the runs that one is compared with.

    Each is compared with the baseline, a trained encoder with its own start as well, a hybrid with
    its parts, a later round with the one before.
    """
    start = [{"trained": "untrained", "round-2": "trained"}.get(name, "")]
    if name.startswith("round-") and name != "round-2":
        start = [f"round-{int(name.removeprefix('round-')) - 1}"]
    retriever = next((one for one in workdir.retrievers() if one.name == name), None)
    if retriever is not None and retriever.kind == "hybrid":
        start = [*recipes.load(retriever).retrieve.parts]
    return [other for other in dict.fromkeys([baseline, *start]) if other not in ("", name)]


def _check_unchanged(run_file: Path, sha256: str) -> None:
    """Refuses a run whose checksum is not the one in its manifest."""
    entry = manifest_of(run_file).get("files", {}).get(run_file.name)
    if entry and entry["sha256"] != sha256:
        raise InputError(
            f"{run_file} is damaged or was changed: its checksum is not the one in"
            f" {run_file.stem}.manifest.json; delete that manifest and run `dpr retrieve"
            f" --retriever {run_file.stem}` with this --workdir again, or keep the file as a run of"
            " your own without a manifest"
        )


def _json_by_line(facts: dict[str, Any]) -> str:
    """Returns JSON with one entry per line; a list of ranks stays on one."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read_lines(path: Path) -> list[dict[str, float]]:
    """Reads training metrics; a last line that is still being written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
