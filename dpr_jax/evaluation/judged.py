"""Runs of the test questions, read and scored by every view that the questions' labels allow."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import EvaluateConfig
from dpr_jax.console import progress
from dpr_jax.data import changes
from dpr_jax.data.store import Corpus, Question, open_questions
from dpr_jax.errors import InputError
from dpr_jax.evaluation import score
from dpr_jax.evaluation.trec import read_run
from dpr_jax.workdir import WorkDir


class Judged(NamedTuple):
    """Some runs over the same questions.

    Attributes:
      questions: the test questions.
      corpus: their passages.
      views: the ways to say that a passage is right.
      ranked: run -> corpus rows of every question, best first.
      scored: run -> view -> its values.
    """

    questions: list[Question]
    corpus: Corpus
    views: list[score.View]
    ranked: dict[str, list[np.ndarray]]
    scored: dict[str, dict[str, score.Scored]]


def judge(
    workdir: WorkDir, question_set: str, run_files: dict[str, Path], settings: EvaluateConfig
) -> Judged | None:
    """Reads runs, whoever wrote them, and scores them.

    Args:
      workdir: whose test questions they answer.
      question_set: which of them.
      run_files: name -> a file in TREC's form.
      settings: cutoffs, and how answers are looked for.

    Returns:
      None where the questions have neither gold passages nor answers.

    Raises:
      InputError: no data, or a run that is malformed or of other data or questions.
    """
    for file in run_files.values():
        asked = manifest_of(file).get("questions", question_set)
        if asked != question_set:
            raise InputError(
                f"{file} answers the questions of {asked!r}, not {question_set!r}; runs lie under"
                " the name of their questions"
            )
    corpus = changes.open_corpus(workdir, changes.read(workdir))
    passage_rows = {passage: row for row, passage in enumerate(corpus.ids())}
    questions = [
        changes.with_current(question, corpus, passage_rows)
        for question in open_questions(workdir, question_set)
    ]
    views = score.views(questions, corpus, settings.answer_match)
    if not views:
        return None
    question_rows = {question.id: row for row, question in enumerate(questions)}
    ranked: dict[str, list[np.ndarray]] = {}
    scored: dict[str, dict[str, score.Scored]] = {}
    with progress("evaluate", len(run_files), "runs") as advance:
        for name, file in run_files.items():
            ranked[name] = read_run(file, question_rows, passage_rows)
            scored[name] = {
                view.name: score.score(view, ranked[name], settings.cutoffs) for view in views
            }
            advance(1, name)
    return Judged(questions, corpus, views, ranked, scored)


def manifest_of(run_file: Path) -> dict[str, Any]:
    """What `dpr retrieve` says of a run; empty for one that another tool wrote."""
    file = run_file.with_name(run_file.stem + ".manifest.json")
    return artifacts.read_json(file) if file.exists() else {}
