"""The stage that finds hard negatives: passages that rank high for a question and do not answer it.

A passage that is gold, holds an answer, or repeats much of a gold passage is passed over: used as a
negative, it would teach the opposite of the truth.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from dpr_jax import artifacts, console
from dpr_jax.config import Config, Teacher
from dpr_jax.config_file import describe
from dpr_jax.data import store
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Corpus, Question
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, bm25_words
from dpr_jax.mining import rules
from dpr_jax.mining.report import Report
from dpr_jax.mining.rules import Ranking, Rules
from dpr_jax.retrieval.searcher import Opened, Searcher, prepared_dense, words_searcher
from dpr_jax.workdir import RetrieverDir

QUESTIONS_AT_ONCE = 1024


def run(config: Config, retriever: RetrieverDir) -> None:
    """Writes mined-HASH: the train and dev questions with mined hard negatives.

    Memory does not grow with the questions: they pass through in batches.

    Raises:
      InputError: the prepared data are missing or damaged; a source lacks its model or index, or
        these do not belong together.
    """
    settings, workdir = config.mine, retriever.workdir
    data = workdir.data / "manifest.json"
    corpus = store.open_corpus(workdir)
    sources = [_open_source(config, retriever, name, corpus) for name in settings.sources]

    # --- is there anything to do? ---
    origin = _origin(config, sources)
    origin["inputs"]["data"] = artifacts.fingerprint(data)
    out = retriever.place("mined", origin)
    if artifacts.is_fresh(out / "manifest.json", origin):
        retriever.point("mined", out)
        console.say(f"mine: up to date ({out})")
        return

    # --- search, and pick ----------------------------------------------------
    searchers = [source.start() for source in sources]
    allowed = Rules(settings.depth, config.evaluate.answer_match, settings.filter)
    reports: dict[str, Report] = {}

    def mined(split: str) -> Iterator[Question]:
        report = reports[split] = Report(split)
        teacher = settings.teacher if split == "train" else None
        questions = store.open_questions(workdir, split)
        with console.progress(f"mine {split}", len(questions), "questions") as advance:
            left = iter(questions)
            while batch := list(itertools.islice(left, QUESTIONS_AT_ONCE)):
                proposed = _proposed(config, searchers, batch, report.questions)
                passage_of = _passages(corpus, batch, proposed, 2 * settings.depth)
                for question, rows in zip(batch, proposed, strict=True):
                    yield _mine(question, rows, passage_of, allowed, teacher, report)
                advance(len(batch))

    present = artifacts.read_json(data)["questions"]
    splits = [split for split in ("train", "dev") if split in present]
    if not splits:
        raise InputError(
            f"{data.parent} has no questions to mine for; name some: `dpr prepare --data.train FILE"
            f" {workdir.flag}`"
        )
    with artifacts.atomic_dir(out) as partial:
        files = store.write_questions(partial, {name: mined(name) for name in splits})
        artifacts.write_manifest(
            partial / "manifest.json",
            origin,
            files,
            questions={name: report.questions for name, report in reports.items()},
            mined={name: report.facts() for name, report in reports.items()},
        )
    retriever.point("mined", out)
    for split, report in reports.items():
        report.show(samples=split == "train")


def _open_source(config: Config, retriever: RetrieverDir, name: str, corpus: Corpus) -> Opened:
    """Opens a retriever that ranks passages for mining; bm25 is built where it is missing."""
    workdir = retriever.workdir
    if name != "bm25":
        source = workdir.retriever(name)
        if not source.file.exists():
            raise InputError(
                f"mine.sources names {name}, which is no retriever of {workdir.root} yet; run `dpr"
                f" encode --from ENCODER {source.flags}` and `dpr index {source.flags}` first"
            )
        return prepared_dense(source, corpus)

    def start() -> Searcher:
        folder = bm25.build_if_missing(
            workdir,
            (passage.title_and_text for passage in corpus),
            count=len(corpus),
            corpus=fingerprint,
            sample=(corpus[row].title_and_text for row in bm25_words.evenly(len(corpus))),
            **settings,
        )
        workdir.point("bm25", folder)
        return words_searcher(bm25.load(folder), corpus)

    fingerprint = artifacts.fingerprint(workdir.data / "manifest.json", "corpus/")
    settings = bm25.settings_of(config.bm25)
    return Opened(settings, {}, start)


def _proposed(
    config: Config, searchers: list[Searcher], batch: list[Question], first: int
) -> list[dict[int, bool]]:
    """Returns each question's candidates in the order to try them; the batch starts at question
    `first`."""
    settings = config.mine
    asked = [question.question for question in batch]
    found = [searcher.search(asked, settings.window) for searcher in searchers]
    proposed = []
    for i, question in enumerate(batch):
        candidates = rules.candidates(
            [Ranking(scores_QK[i], rows_QK[i]) for scores_QK, rows_QK in found],
            question.positives[0],
            skip=settings.skip,
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
    """Returns the question with mined hard negatives and their teacher scores, if there are any."""

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


def _origin(config: Config, sources: list[Opened]) -> dict[str, dict[str, Any]]:
    """Returns what the mined questions depend on."""
    mine = config.mine
    settings = {
        "depth": mine.depth,
        "skip": mine.skip,
        "window": mine.window,
        "sample_seed": config.seed if mine.sample else None,
        "relative_margin": mine.relative_margin,
        "filter": describe(mine.filter) if mine.filter else None,
        "teacher": describe(mine.teacher) if mine.teacher else None,
        "answer_match": config.evaluate.answer_match,
        "sources": [source.settings for source in sources],
    }
    inputs = {
        f"{name} {number}": value
        for number, source in enumerate(sources, 1)
        for name, value in source.inputs.items()
    }
    return artifacts.made_from("mine", settings, inputs, form=store.FORM)


def _shuffled(candidates: dict[int, bool], seed: int, number: int) -> dict[int, bool]:
    """Returns the candidates shuffled by the seed and the question's number alone: the
    first that pass are then a sample.
    """
    rows = np.random.default_rng([seed, number]).permutation(list(candidates))
    return {row: candidates[row] for row in rows.tolist()}


def _passages(
    corpus: Corpus, batch: list[Question], proposed: list[Iterable[int]], ahead: int
) -> Callable[[int], Passage]:
    """Returns passages by row; gold and the first `ahead` candidates are read at once."""
    likely = {row for question in batch for row in question.positives}
    likely |= {row for rows in proposed for row in itertools.islice(rows, ahead)}
    in_order = sorted(likely)
    known = dict(zip(in_order, corpus.rows(in_order), strict=True))

    def passage_of(row: int) -> Passage:
        if row not in known:
            known[row] = corpus[row]
        return known[row]

    return passage_of
