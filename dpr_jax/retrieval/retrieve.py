"""The stage `dpr retrieve`: questions to a run, by the index, by BM25, or by both."""

import itertools
import re
from collections.abc import Iterator

import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.console import progress, say
from dpr_jax.data.answers import has_answer
from dpr_jax.data.asked import open_asked
from dpr_jax.data.changes import open_corpus
from dpr_jax.data.store import Corpus, Question
from dpr_jax.errors import InputError
from dpr_jax.retrieval import search
from dpr_jax.retrieval.fusion import Ranking
from dpr_jax.retrieval.runs import Hit, RunFiles, falling


def run(config: Config, workdir: WorkDir) -> None:
    """Answers every question of a split or a file with its best passages: NAME.trec, NAME.json,
    NAME.manifest.json.

    They lie in runs/ for the test questions, else in runs/dev/ or runs/<name of the file>/. A
    killed run goes on with the batch that it was at.

    Raises:
      InputError: no questions, no model or index, an index that another model's vectors are in, or
        a bad run name.
    """
    settings = config.retrieve
    name = settings.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"retrieve.name is {name!r}; it names files, so it must begin with a letter or digit"
            " and hold only letters, digits, '.', '_' and '-'"
        )
    corpus = open_corpus(workdir, search.searched(config, workdir))
    asked = open_asked(workdir, split=settings.split, file=settings.questions)
    folder = workdir.runs / asked.place
    embedder = search.question_tower(config, workdir)

    # --- is there anything to do? --------------------------------------------
    manifest = folder / f"{name}.manifest.json"
    found_by, inputs = search.depends_on(config, workdir, embedder)
    origin = artifacts.made_from(
        "retrieve",
        {
            **found_by,
            "split": asked.name,
            "top_k": settings.top_k,
            "answer_match": config.evaluate.answer_match,
        },
        inputs | asked.inputs,
    )
    if artifacts.is_fresh(manifest, origin):
        say(f"retrieve: {name} is up to date")
        return
    way = search.open_search(config, workdir, corpus, embedder)

    # --- search, and write as we go ------------------------------------------
    with (
        RunFiles(folder, name, origin) as files,
        progress(f"retrieve {name}", asked.count - files.done, "questions") as advance,
    ):
        if files.done:
            say(f"retrieve: {files.done:,} questions are answered already")
        left = itertools.islice(asked.read(), files.done, None)
        k = min(settings.top_k, len(corpus))
        for batch, ranking in _found(way, left, settings.batch_size, k):
            all_hits = _hits(batch, corpus, ranking, config.evaluate.answer_match)
            for question, hits in zip(batch, all_hits, strict=True):
                files.add(question, hits)
            files.save()
            advance(len(batch))
        # the old run is no longer whole once the first of the two files is replaced
        manifest.unlink(missing_ok=True)
        written = files.finish()
    artifacts.write_manifest(
        manifest,
        origin,
        written,
        kind=settings.kind,
        **way.facts,
        split=asked.name,
        count=asked.count,
        top_k=settings.top_k,
    )
    say(f"retrieve: {name}, {asked.count:,} questions ({written[0]})")


def _found(
    way: search.Search, questions: Iterator[Question], batch_size: int, k: int
) -> Iterator[tuple[list[Question], Ranking]]:
    """Batches with what was found: while one is written, the next is searched, and the one after
    that encoded.
    """
    batches = iter(lambda: list(itertools.islice(questions, batch_size)), [])
    encoded = parallel.ahead(
        (batch, way.encode([question.question for question in batch])) for batch in batches
    )
    return parallel.ahead((batch, way.find(queries, k)) for batch, queries in encoded)


def _hits(
    batch: list[Question], corpus: Corpus, ranking: Ranking, answer_match: str
) -> list[list[Hit]]:
    """The passages of every question, best first; what an engine did not find is left out."""
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
