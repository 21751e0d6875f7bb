"""The stage `dpr retrieve`: answers questions and writes a run."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
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

    Runs on every process: each takes every n-th batch, or all search an exact index together.
    Process 0 writes. The run is that of one process.

    Raises:
      InputError: no questions, or the retriever lacks a part, or its parts do not belong together.
    """
    settings, name, workdir = config.retrieve, retriever.name, retriever.workdir
    corpus = open_corpus(workdir)
    asked = open_asked(workdir, settings.questions or settings.split or "test")
    opened = open_retriever(retriever, corpus, config)
    if retriever.kind == "hybrid" and settings.fusion == "linear" and not settings.fusion_weight:
        parallel.on_main(lambda: weight.tune(retriever, opened, config, rows=len(corpus)))
        workdir.exchange()

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
    if _of_main(lambda: artifacts.is_fresh(manifest, origin)):
        if parallel.is_main():
            _keep_dev_figure(retriever, artifacts.read_json(manifest))
        say(f"retrieve: {name} is up to date on {asked.name}")
        return
    parallel.agree(origin["inputs"])
    searcher = opened.start(everywhere=jax.process_count() > 1)

    # --- search, and write as we go ---
    title = f"retrieve {name} on {asked.name}"
    with contextlib.ExitStack() as stack:
        files = None
        if parallel.is_main():
            run_files = RunFiles(folder, name, origin, with_json=settings.json_run)
            files = stack.enter_context(run_files)
        done = _of_main(lambda: files.done if files else 0)
        advance = stack.enter_context(progress(title, asked.count - done, "questions"))
        if done:
            say(f"retrieve: {done:,} questions are answered already")
        left = itertools.islice(asked.read(), done, None)
        k = min(settings.top_k, len(corpus))
        for batch, ranking in _found(searcher, left, k):
            if files is None:
                continue
            all_hits = _hits(batch, corpus, ranking, config.evaluate.answer_match)
            gold = [question.positives for question in batch]
            files.reciprocal_ranks += len(batch) * ranks.mean_reciprocal_rank(
                ranking[1][:, :DEV_CUTOFF], gold
            )
            for question, hits in zip(batch, all_hits, strict=True):
                files.add(question, hits)
            files.save()
            advance(len(batch))
        if files is not None:
            # the old run is no longer whole once the first of its files is replaced
            manifest.unlink(missing_ok=True)
            written = files.finish()
    if files is not None:
        facts = {"kind": retriever.kind, **searcher.facts, "questions": asked.name}
        if asked.name == "dev":
            facts[DEV_METRIC] = round(files.reciprocal_ranks / asked.count, 6)
        facts |= {"count": asked.count, "top_k": settings.top_k}
        artifacts.write_manifest(manifest, origin, written, **facts)
        _keep_dev_figure(retriever, facts)
        say(f"retrieve: {name}, {asked.count:,} questions of {asked.name} ({written[0]})")
    parallel.barrier(f"retrieve: {name} on {asked.name}")


def _of_main(value: Callable[[], int]) -> int:
    """Returns the value that process 0 computes, on every process."""
    return int(parallel.of_main(np.int32(value() if parallel.is_main() else 0)))


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
    if searcher.together:  # a collective, for which all processes have to come at the same time
        for batch in batches:
            yield batch, searcher.search([question.question for question in batch], k)
        return
    index, count = jax.process_index(), jax.process_count()
    groups = iter(lambda: list(itertools.islice(batches, count)), [])
    encoded = parallel.ahead(
        (group, searcher.encode([question.question for question in own]) if own else None)
        for group in groups
        for own in [group[index] if index < len(group) else []]
    )
    found = parallel.ahead(
        (group, None if queries is None else searcher.find(queries, k))
        for group, queries in encoded
    )
    for group, ranking in found:
        yield from zip(group, _gathered(group, ranking, k), strict=True)


def _gathered(group: list[list[Question]], own: Ranking | None, k: int) -> list[Ranking]:
    """Returns the rankings of all batches of a group, of which each process has found one."""
    if jax.process_count() == 1:
        return [own]
    scores_QK = np.full((QUESTIONS_AT_ONCE, k), -np.inf, np.float32)
    rows_QK = np.full((QUESTIONS_AT_ONCE, k), -1, np.int32)  # collectives have 32 bits
    if own is not None:
        scores_QK[: len(own[0])], rows_QK[: len(own[0])] = own
    all_scores = parallel.all_processes(scores_QK).reshape(-1, *scores_QK.shape)
    all_rows = parallel.all_processes(rows_QK).reshape(-1, *rows_QK.shape)
    return [
        (all_scores[at, : len(batch)], all_rows[at, : len(batch)].astype(np.int64))
        for at, batch in enumerate(group)
    ]


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
