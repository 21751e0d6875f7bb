"""Questions to rows of the corpus: by vectors, by words, or by both."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data import changes
from dpr_jax.data.changes import Log
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.index import bm25
from dpr_jax.index.open import MANIFEST, changes_in, open_index
from dpr_jax.model.embed import Embedder, compute_dtype, load_embedder
from dpr_jax.retrieval import fusion, weight
from dpr_jax.retrieval.fusion import Ranking


class Search(NamedTuple):
    """A way to search, in two steps, so that a batch can be encoded while another is searched.

    Attributes:
      encode: questions -> queries.
      find: (queries, k) -> (scores float32 [Q, k], rows int64 [Q, k]), best first; missing hits
        have score -inf and row -1, at the end.
      facts: what the manifest of a run should say of it.
    """

    encode: Callable[[Sequence[str]], Any]
    find: Callable[[Any, int], Ranking]
    facts: dict[str, Any]


def depends_on(
    config: Config, workdir: WorkDir, embedder: Embedder | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings, and the fingerprints of inputs, that what a search finds depends on."""
    settings: dict[str, Any] = {"kind": config.retrieve.kind}
    inputs = {"data": artifacts.fingerprint(workdir.data / "manifest.json")}
    log = searched(config, workdir)
    if log.folders:
        inputs["changes"] = log.fingerprint
    if config.retrieve.kind != "dense":
        settings |= {"k1": config.bm25.k1, "b": config.bm25.b}
    if embedder is not None:
        settings["dtype"] = compute_dtype(config.encode.dtype)
        index = workdir.inside(config.retrieve.index)
        inputs["index"] = artifacts.fingerprint(index / MANIFEST)
        inputs["model"] = embedder.fingerprint
    if config.retrieve.kind == "hybrid":
        for name in ("fusion", "fusion_weight", "fusion_depth"):
            settings[name] = getattr(config.retrieve, name)
    return settings, inputs


def searched(config: Config, workdir: WorkDir) -> Log:
    """The changes of the corpus that a search knows: those that the index has, or all where words
    are all that counts.

    Raises:
      InputError: there is no index, or it has other changes than the corpus.
    """
    log = changes.read(workdir)
    if config.retrieve.kind == "bm25":
        return log
    folder = workdir.inside(config.retrieve.index)
    count, fingerprint = changes_in(folder)
    here = log.first(count)
    if count and (len(log.folders) < count or here.fingerprint != fingerprint):
        raise InputError(
            f"{folder} has other changes of the corpus than {workdir.changes}; run `dpr encode` and"
            " `dpr index`"
        )
    return here


def question_tower(config: Config, workdir: WorkDir) -> Embedder | None:
    """The encoder of questions; None where words are all that counts.

    Raises:
      InputError: it cannot be found or read.
    """
    if config.retrieve.kind == "bm25":
        return None
    return load_embedder(
        config.retrieve.model,
        workdir,
        "question",
        model=config.model,
        batch_tokens=config.encode.batch_tokens,
        dtype=config.encode.dtype,
    )


def open_search(
    config: Config, workdir: WorkDir, corpus: Corpus, embedder: Embedder | None
) -> Search:
    """The search that `retrieve.kind` names.

    Args:
      embedder: from `question_tower`.

    Raises:
      InputError: no index, one of another model or corpus, or no dev questions to find the weight
        of a hybrid with.
    """
    if embedder is None:
        return _words(config, workdir, corpus)
    dense = _dense(config, workdir, corpus, embedder)
    if config.retrieve.kind == "dense":
        return dense
    return _hybrid(config, workdir, corpus, embedder, _words(config, workdir, corpus), dense)


def _words(config: Config, workdir: WorkDir, corpus: Corpus) -> Search:
    """BM25 over titles and texts, of the index that mining uses too."""
    log = searched(config, workdir)
    live_N = np.delete(np.arange(len(corpus)), corpus.removed_R)
    index = bm25.of_corpus(
        # mining's is that of the corpus as it was prepared
        workdir.changes / "bm25" if log.folders else workdir.bm25,
        (passage.title_and_text for passage in corpus.live()),
        count=len(live_N),
        corpus=log.fingerprint,
        k1=config.bm25.k1,
        b=config.bm25.b,
    )

    def find(questions: Sequence[str], k: int) -> Ranking:
        scores_QK, at_QK = index.search(questions, k)
        return scores_QK, np.where(at_QK < 0, -1, live_N[at_QK])

    return Search(lambda questions: questions, find, {})


def _dense(config: Config, workdir: WorkDir, corpus: Corpus, embedder: Embedder) -> Search:
    """The question tower and the index, after checking that they belong together."""
    folder = workdir.inside(config.retrieve.index)
    index = open_index(folder)
    if index.passage_fingerprint != embedder.passage_fingerprint:
        raise InputError(
            f"{folder} holds passages that another model encoded than the passage encoder of"
            f" retrieve.model={config.retrieve.model}; run encode and index with that model, or"
            " give the model that the index was built with"
        )
    if index.count != len(corpus):
        raise InputError(
            f"{folder} holds {index.count:,} passages, the corpus {len(corpus):,}; run encode and"
            " index again"
        )
    if index.on_devices:
        # Both steps run on the accelerators; from two threads they could wait for each other there.
        return Search(
            lambda questions: questions,
            lambda questions, k: index.search(embedder.encode(questions), k),
            {},
        )
    return Search(embedder.encode, index.search, {})


def _hybrid(
    config: Config,
    workdir: WorkDir,
    corpus: Corpus,
    embedder: Embedder,
    words: Search,
    dense: Search,
) -> Search:
    """BM25 and vectors, made one ranking."""
    settings = config.retrieve

    def encode(questions: Sequence[str]) -> tuple[Any, Any]:
        return words.encode(questions), dense.encode(questions)

    def find_both(queries: tuple[Any, Any], k: int) -> tuple[Ranking, Ranking]:
        depth = min(max(k, settings.fusion_depth), len(corpus))
        return words.find(queries[0], depth), dense.find(queries[1], depth)

    if settings.fusion == "rrf":
        return Search(
            encode,
            lambda queries, k: fusion.reciprocal_rank(find_both(queries, k), k=k),
            {},
        )
    factor = settings.fusion_weight or weight.tuned(
        workdir,
        settings.name,
        depends_on(config, workdir, embedder),
        lambda questions: find_both(encode(questions), 1),
        batch_size=settings.batch_size,
    )

    def find(queries: tuple[Any, Any], k: int) -> Ranking:
        return fusion.linear(*find_both(queries, k), weight=factor, k=k)

    return Search(encode, find, {"weight": factor})
