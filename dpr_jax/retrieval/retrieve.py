"""The stage `dpr retrieve`: questions to a run, by vectors, by words, or by both."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.config import Config
from dpr_jax.console import progress, say
from dpr_jax.data import changes, ranks
from dpr_jax.data.answers import has_answer
from dpr_jax.data.asked import open_asked
from dpr_jax.data.store import Corpus, Question
from dpr_jax.retrieval import weight
from dpr_jax.retrieval.fusion import Ranking
from dpr_jax.retrieval.retriever import DEV_METRIC
from dpr_jax.retrieval.runs import Hit, RunFiles, falling
from dpr_jax.retrieval.searcher import (
    QUESTIONS_AT_ONCE,
    Searcher,
    open_corpus,
    open_retriever,
)
from dpr_jax.workdir import RetrieverDir

DEV_CUTOFF = 10  # of DEV_METRIC


def run(config: Config, retriever: RetrieverDir) -> None:
    """Answers every question of a split or a file with its best passages.

    The run lies in runs/SET/: NAME.trec, NAME.json (if `retrieve.json_run`), NAME.manifest.json. On
    the dev questions the retriever's figure is kept in retriever.json too. A killed run goes on
    with the batch that it was at.

    Raises:
      InputError: no questions, or the retriever lacks a part, or its parts do not belong together.
    """
    settings, name, workdir = config.retrieve, retriever.name, retriever.workdir
    corpus = open_corpus(workdir)
    asked = open_asked(workdir, settings.questions or settings.split or "test")
    opened = open_retriever(retriever, corpus, config)
    if retriever.kind == "hybrid" and settings.fusion == "linear" and not settings.fusion_weight:
        weight.tune(retriever, opened, config, rows=len(corpus))

    # --- is there anything to do? ---
    folder = workdir.runs(asked.name)
    manifest = folder / f"{name}.manifest.json"
    origin = artifacts.made_from(
        "retrieve",
        {
            **opened.settings,
            "questions": asked.name,
            "top_k": settings.top_k,
            "answer_match": config.evaluate.answer_match,
            "json_run": settings.json_run,
        },
        opened.inputs | asked.inputs | {"corpus": changes.read(workdir).fingerprint},
    )
    if artifacts.is_fresh(manifest, origin):
        _keep_dev_figure(retriever, artifacts.read_json(manifest))
        say(f"retrieve: {name} is up to date on {asked.name}")
        return
    searcher = opened.start()

    # --- search, and write as we go ---
    title = f"retrieve {name} on {asked.name}"
    with (
        RunFiles(folder, name, origin, with_json=settings.json_run) as files,
        progress(title, asked.count - files.done, "questions") as advance,
    ):
        if files.done:
            say(f"retrieve: {files.done:,} questions are answered already")
        left = itertools.islice(asked.read(), files.done, None)
        k = min(settings.top_k, len(corpus))
        for batch, ranking in _found(searcher, left, k):
            all_hits = _hits(batch, corpus, ranking, config.evaluate.answer_match)
            gold = [question.positives for question in batch]
            files.reciprocal_ranks += len(batch) * ranks.mean_reciprocal_rank(
                ranking[1][:, :DEV_CUTOFF], gold
            )
            for question, hits in zip(batch, all_hits, strict=True):
                files.add(question, hits)
            files.save()
            advance(len(batch))
        # the old run is no longer whole once the first of its files is replaced
        manifest.unlink(missing_ok=True)
        written = files.finish()
    facts = {"kind": retriever.kind, **searcher.facts, "questions": asked.name}
    if asked.name == "dev":
        facts[DEV_METRIC] = round(files.reciprocal_ranks / asked.count, 6)
    facts |= {"count": asked.count, "top_k": settings.top_k}
    artifacts.write_manifest(manifest, origin, written, **facts)
    _keep_dev_figure(retriever, facts)
    say(f"retrieve: {name}, {asked.count:,} questions of {asked.name} ({written[0]})")


def _keep_dev_figure(retriever: RetrieverDir, facts: dict[str, Any]) -> None:
    """Writes the figure on the dev questions, which chooses the retriever, into retriever.json."""
    if facts["questions"] == "dev":
        figures = {DEV_METRIC: facts[DEV_METRIC], "questions": facts["count"]}
        retriever.update(dev=figures)


def _found(
    searcher: Searcher, questions: Iterator[Question], k: int
) -> Iterator[tuple[list[Question], Ranking]]:
    """Yields batches with their rankings.

    While one is written, the next is searched, and the one after that encoded.
    """
    batches = iter(lambda: list(itertools.islice(questions, QUESTIONS_AT_ONCE)), [])
    encoded = parallel.ahead(
        (batch, searcher.encode([question.question for question in batch])) for batch in batches
    )
    return parallel.ahead((batch, searcher.find(queries, k)) for batch, queries in encoded)


def _hits(
    batch: list[Question], corpus: Corpus, ranking: Ranking, answer_match: str
) -> list[list[Hit]]:
    """Returns the passages of every question, best first, as far as the engine found any."""
    scores_QK, rows_QK = ranking
    wanted_R = np.unique(rows_QK[rows_QK >= 0])
    passages = dict(zip(wanted_R.tolist(), corpus.rows(wanted_R), strict=True))
    batch_hits = []
    for question, scores_K, rows_K in zip(batch, scores_QK, rows_QK, strict=True):
        found_K = rows_K >= 0
        hits = []
        for row, score in zip(rows_K[found_K], falling(scores_K[found_K]), strict=True):
            passage = passages[int(row)]
            answered = has_answer(question.answers, passage.text, match=answer_match)
            hits.append(Hit(passage, float(score), answered))
        batch_hits.append(hits)
    return batch_hits
