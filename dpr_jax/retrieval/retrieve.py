"""The stage `dpr retrieve`: questions to a run, through the question tower and the index, or through BM25."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data.answers import has_answer
from dpr_jax.data.store import Corpus, Question, open_corpus, open_questions
from dpr_jax.errors import InputError
from dpr_jax.index import bm25
from dpr_jax.index.engines import MANIFEST, open_index
from dpr_jax.logging import progress, say
from dpr_jax.model.embed import Embedder, load_embedder
from dpr_jax.retrieval.runs import Hit, JsonRun, falling, write_trec

# (questions, k) -> (scores float32 [Q, k], rows int64 [Q, k]), missing hits with row -1 at the end
Search = Callable[[list[str], int], tuple[np.ndarray, np.ndarray]]


def run(config: Config, workdir: WorkDir) -> None:
    """Answers every question of a split with its best passages: runs/NAME.trec, runs/NAME.json, runs/NAME.manifest.json.

    Raises:
      InputError: no questions, no model or index, an index that another model's vectors are in, or a bad run name.
    """
    settings = config.retrieve
    name = settings.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"retrieve.name is {name!r}; it names files, so it must begin with a letter or digit and hold only letters, digits, '.', '_' and '-'"
        )
    corpus = open_corpus(workdir)
    questions = open_questions(workdir, settings.split)
    if len(questions) == 0:
        raise InputError(
            f"the split {settings.split!r} has no questions; check data.{settings.split}"
        )
    embedder = _question_tower(config, workdir) if settings.kind == "dense" else None

    # --- is there anything to do? ---
    manifest = workdir.runs / f"{name}.manifest.json"
    origin = _origin(config, workdir, embedder)
    if artifacts.is_fresh(manifest, origin):
        say(f"retrieve: {name} is up to date")
        return
    search = (
        _bm25(config, workdir, corpus)
        if embedder is None
        else _dense(config, workdir, corpus, embedder)
    )

    # --- search, and write as we go ---
    workdir.runs.mkdir(parents=True, exist_ok=True)
    trec_path, json_path = workdir.runs / f"{name}.trec", workdir.runs / f"{name}.json"
    with (
        artifacts.atomic_file(trec_path) as trec_partial,
        artifacts.atomic_file(json_path) as json_partial,
        trec_partial.open("w", encoding="utf-8") as trec_file,
        json_partial.open("w", encoding="utf-8") as json_file,
        progress(f"retrieve {name}", len(questions), "questions") as advance,
    ):
        json_run = JsonRun(json_file)
        for start in range(0, len(questions), settings.batch_size):
            stop = min(start + settings.batch_size, len(questions))
            batch = [questions[row] for row in range(start, stop)]
            scores_QK, rows_QK = search(
                [question.question for question in batch],
                min(settings.top_k, len(corpus)),
            )
            for question, hits in zip(
                batch,
                _hits(batch, corpus, scores_QK, rows_QK, config.evaluate.answer_match),
                strict=True,
            ):
                write_trec(trec_file, question, hits, tag=name)
                json_run.add(question, hits)
            advance(len(batch))
        json_run.end()
        # the old run is no longer whole once the first of the two files is replaced
        manifest.unlink(missing_ok=True)
    artifacts.write_manifest(
        manifest,
        origin,
        [trec_path, json_path],
        kind=settings.kind,
        split=settings.split,
        count=len(questions),
        top_k=settings.top_k,
    )
    say(f"retrieve: {name}, {len(questions):,} questions ({trec_path})")


def _question_tower(config: Config, workdir: WorkDir) -> Embedder:
    return load_embedder(
        config.retrieve.model,
        workdir,
        "question",
        model=config.model,
        batch_tokens=config.encode.batch_tokens,
        dtype=config.encode.dtype,
    )


def _origin(
    config: Config, workdir: WorkDir, embedder: Embedder | None
) -> dict[str, Any]:
    """What the run depends on."""
    settings: dict[str, Any] = {
        "kind": config.retrieve.kind,
        "split": config.retrieve.split,
        "top_k": config.retrieve.top_k,
        "answer_match": config.evaluate.answer_match,
    }
    inputs = {"data": artifacts.fingerprint(workdir.data / "manifest.json")}
    if embedder is None:
        settings |= dataclasses.asdict(config.bm25)
    else:
        settings["dtype"] = config.encode.dtype
        index = workdir.inside(config.retrieve.index)
        inputs["index"] = artifacts.fingerprint(index / MANIFEST)
        inputs["model"] = embedder.fingerprint
    return artifacts.made_from("retrieve", settings, inputs)


def _bm25(config: Config, workdir: WorkDir, corpus: Corpus) -> Search:
    """BM25 over titles and texts, of the index that mining uses too."""
    return bm25.of_corpus(
        workdir.bm25,
        (passage.title_and_text for passage in corpus),
        count=len(corpus),
        corpus=artifacts.fingerprint(workdir.data / "manifest.json", "corpus/"),
        k1=config.bm25.k1,
        b=config.bm25.b,
    ).search


def _dense(
    config: Config, workdir: WorkDir, corpus: Corpus, embedder: Embedder
) -> Search:
    """The question tower and the index, after checking that they belong together."""
    folder = workdir.inside(config.retrieve.index)
    index = open_index(folder)
    if index.model_fingerprint != embedder.model_fingerprint:
        raise InputError(
            f"{folder} was built with another model than retrieve.model={config.retrieve.model}; run encode and index with that model, or give the model that the index was built with"
        )
    if index.count != len(corpus):
        raise InputError(
            f"{folder} holds {index.count:,} passages, the corpus {len(corpus):,}; run encode and index again"
        )
    return lambda texts, k: index.search(embedder.encode(texts), k)


def _hits(
    batch: list[Question],
    corpus: Corpus,
    scores_QK: np.ndarray,
    rows_QK: np.ndarray,
    answer_match: str,
) -> list[list[Hit]]:
    """The passages of every question, best first; what an engine did not find is left out."""
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
