"""`dpr compare RUN_A RUN_B`: two runs on the same questions, on stdout."""

from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from dpr_jax.config import Config
from dpr_jax.console import results_console
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.evaluation import score
from dpr_jax.evaluation.examples import EXAMPLES, Choice, Example, Shown, choose_examples
from dpr_jax.evaluation.judged import Judged, judge
from dpr_jax.evaluation.table import TITLES, percent, points, verdict
from dpr_jax.workdir import WorkDir

SNIPPET_CHARS = 200


def run(config: Config, workdir: WorkDir, run_a: str, run_b: str) -> None:
    """Prints the metrics of both with their paired differences, wins and losses at each cutoff, and
    some of these to read.

    Args:
      config: cutoffs, resamplings, seed, and how many questions to show are those of `evaluate`.
      workdir: whose test questions both answer.
      run_a: a retriever by name, an imported run, or any file in TREC's form.
      run_b: the one that it is compared with.

    Raises:
      InputError: a run is missing, malformed, or of other data, or both are the same.
    """
    if run_a == run_b:
        raise InputError(f"both runs are {run_a!r}; give two to compare")
    sets = store.test_sets(workdir)
    if not sets:
        raise InputError("there are no test questions to compare on; set data.test")
    for question_set in sets:
        files = {name: _file(workdir, question_set, name) for name in (run_a, run_b)}
        judged = judge(workdir, question_set, files, config.evaluate)
        if judged is None:
            raise InputError(
                f"the questions of {question_set} have neither gold passages nor answers; set"
                " data.test_qrels"
            )
        for error in judged.refused.values():
            raise error
        if len(sets) > 1:
            results_console().print(f"\n{question_set}", style="bold")
        _compare(config, judged, run_a, run_b)


def _compare(config: Config, judged: Judged, run_a: str, run_b: str) -> None:
    console = results_console()
    for view in judged.views:
        scored, base = (judged.scored[name][view.name] for name in (run_a, run_b))
        facts = score.summary(
            view,
            scored,
            {run_b: base},
            samples=score.SAMPLES,
            seed=config.seed,
        )
        console.print(_metrics(facts, base, view, run_a, run_b))
        ranks = scored.rank_Q[view.judged], base.rank_Q[view.judged]
        console.print(_wins(*ranks, config.evaluate.cutoffs, run_a, run_b))
    choice = _wins_and_losses(config, judged, run_b)
    for why, count in (("win", choice.wins), ("loss", choice.losses)):
        shown = [example for example in choice.examples if example.why == why]
        right, wrong = (run_a, run_b) if why == "win" else (run_b, run_a)
        if shown:
            title = (
                f"\n{right} right and {wrong} wrong at rank 1: {len(shown)} of {count:,} questions,"
                f" drawn by seed {config.seed}"
            )
            console.print(Text(title))
        for example in shown:
            console.print(_to_read(example))


def _file(workdir: WorkDir, question_set: str, name: str) -> Path:
    """Returns a retriever's run, an imported one, or a file that is one."""
    folders = workdir.runs(question_set), workdir.imported_runs(question_set)
    for path in (*(folder / f"{name}.trec" for folder in folders), Path(name).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for one in folders for path in one.glob("*.trec")))
    raise InputError(
        f"no run {name!r}: neither a file nor a retriever that answered the questions of"
        f" {question_set} ({known or 'none did'}); a retriever answers them by `dpr retrieve"
        f" --retriever NAME {workdir.flag}`"
    )


def _metrics(facts: dict, base: score.Scored, view: score.View, run_a: str, run_b: str) -> Table:
    table = Table(
        title=(
            f"{TITLES[view.name]}, % of {facts['questions']:,} questions (MRR, nDCG, MAP times 100)"
        ),
        title_justify="left",
    )
    table.add_column("metric", no_wrap=True)
    for name in (run_a, run_b):  # may be long paths, over narrow figures
        table.add_column(Text(name), justify="right", overflow="fold")
    for name in ("difference \\[95 %]", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for metric, found in facts["metrics"].items():
        gap = facts["difference"][run_b][metric]
        value, low, high = (points(gap[key]) for key in ("value", "low", "high"))
        table.add_row(
            metric,
            percent(found["value"]),
            percent(base.values[metric].mean()),
            f"{value} \\[{low}, {high}]",
            f"{gap['p_value']:.4f}",
            verdict(gap),
        )
    return table


def _wins(
    rank_J: np.ndarray,
    base_J: np.ndarray,
    cutoffs: tuple[int, ...],
    run_a: str,
    run_b: str,
) -> Table:
    """Counts the questions in which one, both or neither of two runs has a hit in the first k."""
    table = Table(title="Questions with a hit among the first k", title_justify="left")
    for name in ("k", "both", f"only {run_a}", f"only {run_b}", "neither"):
        table.add_column(Text(name), justify="right", overflow="fold")
    for k in cutoffs:
        right, base_right = ((0 < rank) & (rank <= k) for rank in (rank_J, base_J))
        groups = (
            right & base_right,
            right & ~base_right,
            ~right & base_right,
            ~right & ~base_right,
        )
        table.add_row(f"{k:,}", *(f"{group.sum():,}" for group in groups))
    return table


def _wins_and_losses(config: Config, judged: Judged, run_b: str) -> Choice:
    """As in the report, but wins and losses alone."""
    first = judged.views[0]
    return choose_examples(
        judged.questions,
        judged.corpus,
        judged.ranked,
        {name: views[first.name].rank_Q for name, views in judged.scored.items()},
        judged=first.judged,
        baseline=run_b,
        match=config.evaluate.answer_match,
        count=2 * EXAMPLES,
        seed=config.seed,
    )


def _to_read(example: Example) -> Text:
    """Shows a question, its answers, and each run's first passage."""
    lines = Text(f"\n  {example.question}\n", style="bold")
    if example.answers:
        lines.append(f"    answer: {' · '.join(example.answers)}\n", style="not bold")
    if example.gold:
        lines.append(f"    gold: {_short(example.gold)}\n", style="not bold green")
    for name, (rank, passages) in example.runs.items():
        first = _short(passages[0]) if passages else "no passages for this question"
        hit = f"first hit at rank {rank}" if rank else "not found"
        lines.append(f"    {name} ({hit}): {first}\n", style="not bold")
    return lines


def _short(shown: Shown) -> str:
    text = " ".join("".join(piece for piece, _ in shown.parts).split())
    if len(text) > SNIPPET_CHARS:
        text = text[:SNIPPET_CHARS].rsplit(" ", 1)[0] + " …"
    return f"{shown.title or '(no title)'}: {text}"
