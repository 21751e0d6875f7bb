"""Reads runs of the test questions and scores them by every view that the labels allow."""

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
      refused: run -> why it is in neither: it is malformed, or of other questions or passages.
    """

    questions: list[Question]
    corpus: Corpus
    views: list[score.View]
    ranked: dict[str, list[np.ndarray]]
    scored: dict[str, dict[str, score.Scored]]
    refused: dict[str, InputError]


def judge(
    workdir: WorkDir, question_set: str, run_files: dict[str, Path], settings: EvaluateConfig
) -> Judged | None:
    """Reads runs of any tool and scores them.

    Args:
      workdir: whose test questions they answer.
      question_set: which of them.
      run_files: name -> a file in TREC's form.
      settings: cutoffs, and how answers are looked for.

    Returns:
      None where the questions have neither gold passages nor answers.

    Raises:
      InputError: there are no prepared data.
    """
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
    refused: dict[str, InputError] = {}
    with progress("evaluate", len(run_files), "runs") as advance:
        for name, file in run_files.items():
            try:
                _check_questions(file, question_set)
                ranked[name] = read_run(file, question_rows, passage_rows)
            except InputError as error:
                refused[name] = error
            else:
                scored[name] = {
                    view.name: score.score(view, ranked[name], settings.cutoffs) for view in views
                }
            advance(1, name)
    return Judged(questions, corpus, views, ranked, scored, refused)


def _check_questions(run_file: Path, question_set: str) -> None:
    """Refuses a run over other questions; their ids may be the same, as row numbers are."""
    answered = manifest_of(run_file).get("questions", question_set)
    if answered != question_set:
        raise InputError(
            f"{run_file} answers the questions of {answered!r}, not {question_set!r}; runs lie"
            " under the name of their questions"
        )


def manifest_of(run_file: Path) -> dict[str, Any]:
    """Returns what `dpr retrieve` wrote about a run; empty for a run of another tool."""
    file = run_file.with_name(run_file.stem + ".manifest.json")
    return artifacts.read_json(file) if file.exists() else {}
