"""What ranks passages for mining: BM25, and a dense index with its question tower."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.index import bm25
from dpr_jax.index.open import fingerprint_as_built, open_index
from dpr_jax.index.removed import search_without
from dpr_jax.model.embed import Embedder, load_embedder

# (questions, k) -> (scores float32 [Q, k], rows int64 [Q, k]), best first, missing hits with row -1
# at the end
Search = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


def question_tower(config: Config, workdir: WorkDir) -> Embedder | None:
    """The encoder of questions; None where no source needs it.

    Raises:
      InputError: it cannot be found or read.
    """
    if "dense" not in config.mine.sources:
        return None
    return load_embedder(
        config.mine.model,
        workdir,
        "question",
        model=config.model,
        batch_tokens=config.encode.batch_tokens,
        dtype=config.encode.dtype,
    )


def depend_on(
    config: Config, workdir: WorkDir, embedder: Embedder | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings, and the fingerprints of inputs, that what the sources find depends on."""
    settings: dict[str, Any] = {"sources": config.mine.sources}
    inputs: dict[str, str] = {}
    if "bm25" in config.mine.sources:
        settings |= {"k1": config.bm25.k1, "b": config.bm25.b}
    if embedder is not None:
        settings["dtype"] = config.encode.dtype
        index = workdir.inside(config.mine.index)
        inputs["index"] = fingerprint_as_built(index)
        inputs["model"] = embedder.fingerprint
    return settings, inputs


def open_sources(
    config: Config, workdir: WorkDir, corpus: Corpus, embedder: Embedder | None
) -> list[Search]:
    """One search a source, in the order of mine.sources.

    Raises:
      InputError: no index, or one of another model or corpus.
    """
    return [
        (
            _words(config, workdir, corpus)
            if source == "bm25"
            else _dense(config, workdir, corpus, embedder)
        )
        for source in config.mine.sources
    ]


def _words(config: Config, workdir: WorkDir, corpus: Corpus) -> Search:
    return bm25.of_corpus(
        workdir.bm25,
        (passage.title_and_text for passage in corpus),
        count=len(corpus),
        corpus=artifacts.fingerprint(workdir.data / "manifest.json", "corpus/"),
        k1=config.bm25.k1,
        b=config.bm25.b,
    ).search


def _dense(config: Config, workdir: WorkDir, corpus: Corpus, embedder: Embedder) -> Search:
    folder = workdir.inside(config.mine.index)
    index = open_index(folder)
    if (index.passage_fingerprint, index.prepared_count) != (
        embedder.passage_fingerprint,
        len(corpus),
    ):
        raise InputError(
            f"{folder} holds {index.count:,} passages encoded by another model than the passage"
            f" encoder of mine.model={config.mine.model}, or of another corpus; run encode and"
            " index again"
        )
    added_R = np.arange(len(corpus), index.count)  # training knows none of these

    def search(questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_QD = embedder.encode(questions)
        return search_without(index.search, added_R, queries_QD, k, count=index.count)

    return search
