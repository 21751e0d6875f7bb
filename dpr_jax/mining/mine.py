"""The stage that finds hard negatives: what ranks high for a question and is no answer to it.

A passage that is gold, holds an answer, or repeats much of a gold passage is passed over: trained
  on as a negative, it would teach
the opposite of the truth.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dpr_jax import artifacts, console
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, Teacher
from dpr_jax.config_file import describe
from dpr_jax.data import store
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Corpus, Question
from dpr_jax.mining import rules, sources
from dpr_jax.mining.report import Report
from dpr_jax.mining.rules import Ranking, Rules
from dpr_jax.mining.sources import Search

QUESTIONS_AT_ONCE = 1024


def run(config: Config, workdir: WorkDir) -> None:
    """workdir.data -> workdir.mined: the train and dev questions with their hard negatives replaced
    by mined ones.

    Memory does not grow with the questions: they pass through in batches.

    Raises:
      InputError: the prepared data are missing or damaged; the dense source lacks its model or
        index, or these do not belong together.
    """
    settings = config.mine
    data = workdir.data / "manifest.json"
    corpus = store.open_corpus(workdir)
    embedder = sources.question_tower(config, workdir)

    # --- is there anything to do? --------------------------------------------
    origin = _origin(config, *sources.depend_on(config, workdir, embedder))
    origin["inputs"]["data"] = artifacts.fingerprint(data)
    artifacts.restore_dir(workdir.mined)
    if artifacts.is_fresh(workdir.mined / "manifest.json", origin):
        console.say("mine: up to date")
        return

    # --- search, and pick ----------------------------------------------------
    searches = sources.open_sources(config, workdir, corpus, embedder)
    allowed = Rules(
        settings.depth,
        config.evaluate.answer_match,
        settings.near_duplicate,
        settings.filter,
    )
    reports: dict[str, Report] = {}

    def mined(split: str) -> Iterator[Question]:
        report = reports[split] = Report(split)
        teacher = settings.teacher if split == "train" else None
        questions = store.open_questions(workdir, split)
        with console.progress(f"mine {split}", len(questions), "questions") as advance:
            left = iter(questions)
            while batch := list(itertools.islice(left, QUESTIONS_AT_ONCE)):
                proposed = _proposed(config, searches, batch, report.questions)
                passage_of = _passages(corpus, batch, proposed, 2 * settings.depth)
                for question, rows in zip(batch, proposed, strict=True):
                    yield _mine(question, rows, passage_of, allowed, teacher, report)
                advance(len(batch))

    present = artifacts.read_json(data)["questions"]
    splits = [split for split in ("train", "dev") if split in present]
    with artifacts.atomic_dir(workdir.mined) as partial:
        files = store.write_questions(partial, {name: mined(name) for name in splits})
        artifacts.write_manifest(
            partial / "manifest.json",
            origin,
            files,
            questions={name: report.questions for name, report in reports.items()},
            mined={name: report.facts() for name, report in reports.items()},
        )
    for split, report in reports.items():
        report.show(samples=split == "train")


def _proposed(
    config: Config, searches: list[Search], batch: list[Question], first: int
) -> list[dict[int, bool]]:
    """Each question's candidates in the order to try them, from `rules.candidates`; `first` is the
    number of the batch's first question.
    """
    settings = config.mine
    asked = [question.question for question in batch]
    found = [search(asked, settings.window) for search in searches]
    proposed = []
    for i, question in enumerate(batch):
        candidates = rules.candidates(
            [Ranking(scores_QK[i], rows_QK[i]) for scores_QK, rows_QK in found],
            question.positives[0],
            skip=settings.skip,
            absolute_margin=settings.absolute_margin,
            relative_margin=settings.relative_margin,
        )
        if settings.sample:
            candidates = _shuffled(candidates, config.seed, first + i)
        proposed.append(candidates)
    return proposed


def _mine(
    question: Question,
    candidates: dict[int, bool],
    passage_of: Callable[[int], Passage],
    allowed: Rules,
    teacher: Teacher | None,
    report: Report,
) -> Question:
    """The question with mined hard negatives, and what the teacher says of them; without one, what
    the file said of the same passages.
    """

    def passed_over(rule: str, row: int) -> None:
        report.pass_over(rule, question, row, passage_of)

    rows = rules.hard_negatives(question, candidates, passage_of, allowed, passed_over)
    report.keep(question, rows, passage_of)
    scores = question.teacher_scores
    if teacher is not None:
        scored = (*question.positives, *rows)
        scores = rules.teacher_scores(teacher, question, scored, passage_of)
    elif scores and not {row for row, _ in scores} & {*rows}:
        report.without_teacher += 1
    return question._replace(hard_negatives=rows, teacher_scores=scores)


def _origin(
    config: Config, of_sources: dict[str, object], inputs: dict[str, str]
) -> dict[str, dict[str, object]]:
    """What the mined questions depend on."""
    mine = config.mine
    settings = {
        "depth": mine.depth,
        "skip": mine.skip,
        "window": mine.window,
        "sample_seed": config.seed if mine.sample else None,
        "absolute_margin": mine.absolute_margin,
        "relative_margin": mine.relative_margin,
        "near_duplicate": mine.near_duplicate,
        "filter": describe(mine.filter) if mine.filter else None,
        "answer_match": config.evaluate.answer_match,
    }
    if mine.teacher:  # absent without, as it was before there were teachers
        settings["teacher"] = describe(mine.teacher)
    settings |= of_sources
    return artifacts.made_from("mine", settings, inputs, form=store.FORM)


def _shuffled(candidates: dict[int, bool], seed: int, number: int) -> dict[int, bool]:
    """The same in an order of chance that depends on the seed and the question's number alone: the
    first that pass are then a sample.
    """
    rows = np.random.default_rng([seed, number]).permutation(list(candidates))
    return {row: candidates[row] for row in rows.tolist()}


def _passages(
    corpus: Corpus, batch: list[Question], proposed: list[Iterable[int]], ahead: int
) -> Callable[[int], Passage]:
    """Passages by row: gold ones and the first `ahead` candidates of each question read at once,
    others when asked for.
    """
    likely = {row for question in batch for row in question.positives}
    likely |= {row for rows in proposed for row in itertools.islice(rows, ahead)}
    in_order = sorted(likely)
    known = dict(zip(in_order, corpus.rows(in_order), strict=True))

    def passage_of(row: int) -> Passage:
        if row not in known:
            known[row] = corpus[row]
        return known[row]

    return passage_of
