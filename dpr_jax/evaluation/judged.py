"""Reads runs of the test questions and scores them by every view that the labels allow."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import EvaluateConfig
from dpr_jax.console import progress, say
from dpr_jax.data import changes
from dpr_jax.data.answers import Match, broken_patterns, is_unspaced
from dpr_jax.data.raw import comparable
from dpr_jax.data.store import Corpus, Question, open_questions
from dpr_jax.data.tally import NOTABLE_SHARE
from dpr_jax.errors import InputError
from dpr_jax.evaluation import score
from dpr_jax.evaluation.trec import read_run
from dpr_jax.workdir import WorkDir

OWN_PASSAGES_PROBED = 100


class Judged(NamedTuple):
    """Some runs over the same questions.

    Attributes:
      questions: the test questions.
      corpus: their passages.
      views: the ways to say that a passage is right.
      ranked: run -> corpus rows of every question, best first.
      scored: run -> view -> its values.
      refused: run -> why it is in neither: it is malformed, or of other questions or passages.
      stale: run -> how it is older than the corpus.
    """

    questions: list[Question]
    corpus: Corpus
    views: list[score.View]
    ranked: dict[str, list[np.ndarray]]
    scored: dict[str, dict[str, score.Scored]]
    refused: dict[str, InputError]
    stale: dict[str, str]


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
    log = changes.read(workdir)
    corpus = changes.open_corpus(workdir, log)
    passage_rows = {passage: row for row, passage in enumerate(corpus.ids())}
    questions = [
        changes.with_current(question, corpus, passage_rows)
        for question in open_questions(workdir, question_set)
    ]
    views = score.views(questions, corpus, settings.answer_match)
    if not views:
        return None
    _warn_of_answers(questions, settings.answer_match)
    own_rows = _own_passages(questions, corpus, passage_rows, drop=settings.drop_self)
    question_rows = {question.id: row for row, question in enumerate(questions)}
    ranked: dict[str, list[np.ndarray]] = {}
    scored: dict[str, dict[str, score.Scored]] = {}
    refused: dict[str, InputError] = {}
    stale: dict[str, str] = {}
    with progress("evaluate", len(run_files), "runs") as advance:
        for name, file in run_files.items():
            try:
                _check_questions(file, question_set)
                found = read_run(file, question_rows, passage_rows)
            except InputError as error:
                refused[name] = error
            else:
                if why := _staleness(file, log.fingerprint, found, corpus):
                    stale[name] = why
                ranked[name] = [
                    rows[rows != own] for rows, own in zip(found, own_rows, strict=True)
                ]
                scored[name] = {
                    view.name: score.score(view, ranked[name], settings.cutoffs) for view in views
                }
            advance(1, name)
    return Judged(questions, corpus, views, ranked, scored, refused, stale)


def _own_passages(
    questions: list[Question], corpus: Corpus, passage_rows: dict[str, int], *, drop: bool
) -> list[int]:
    """Returns the row of the passage to leave out for each question, -1 for none.

    A question and a passage of one id are the same text in ArguAna and Quora; ids that are numbers
    may be equal by chance.
    """
    rows = [passage_rows.get(question.id, -1) for question in questions]
    own = [number for number, row in enumerate(rows) if row != -1]
    probed = own[:OWN_PASSAGES_PROBED]
    texts = corpus.rows([rows[number] for number in probed])
    same = sum(
        comparable(questions[number].question) in (comparable(one.text), comparable(one.title))
        for number, one in zip(probed, texts, strict=True)
    )
    alike = bool(probed) and same > len(probed) / 2
    if alike and not drop:
        say(
            f"evaluate: WARNING: {len(own):,} of {len(questions):,} questions are passages of the"
            " corpus themselves and may be found; leave them out, as BEIR does, with"
            " --evaluate.drop-self"
        )
    if drop:
        unlike = "" if alike else "; WARNING: their texts differ, so the ids may be equal by chance"
        say(
            f"evaluate: {len(own):,} of {len(questions):,} questions have a passage of their own"
            f" id, which is left out of each ranking{unlike}"
        )
    return rows if drop else [-1] * len(rows)


def _warn_of_answers(questions: list[Question], match: Match) -> None:
    """Warns of answers that `evaluate.answer_match` cannot find."""
    if match == "regex":
        broken = [(one.id, bad) for one in questions for bad in broken_patterns(one.answers)]
        if broken:
            id_, pattern = broken[0]
            say(
                f"evaluate: WARNING: {len(broken):,} answers are no regular expressions and find"
                f" nothing, such as {pattern!r} of question {id_!r}"
            )
    if match == "string":
        unspaced = [one for one in questions if is_unspaced(one.answers)]
        if len(unspaced) > NOTABLE_SHARE * len(questions):
            say(
                f"evaluate: WARNING: {len(unspaced):,} of {len(questions):,} questions have answers"
                f" in scripts without spaces, such as {unspaced[0].answers[0]!r}; DPR's rule finds"
                " them only as whole runs of letters; find them anywhere with"
                " --evaluate.answer-match substring"
            )


def _staleness(run_file: Path, corpus_print: str, found: list[np.ndarray], corpus: Corpus) -> str:
    """Returns why a run is older than the corpus; "" if it is not."""
    removed = sum(int(np.isin(rows, corpus.removed_R).sum()) for rows in found)
    if removed:
        return f"it holds {removed:,} hits that were removed from the corpus since"
    inputs = manifest_of(run_file).get("made_from", {}).get("inputs", {})
    if inputs.get("corpus", corpus_print) != corpus_print:
        return "it was made before the corpus changed"
    return ""


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
