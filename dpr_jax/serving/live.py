"""Opens a retriever to serve, if its parts belong together and its certificate stands."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts, recipes
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, bm25_words
from dpr_jax.index.open import MANIFEST, built_of
from dpr_jax.retrieval.retriever import dev_figure
from dpr_jax.retrieval.searcher import Opened, Ranking, Searcher, open_retriever
from dpr_jax.serving.batches import Batcher
from dpr_jax.serving.shapes import QuestionEncoder
from dpr_jax.workdir import RetrieverDir, WorkDir

# exact search is compiled for these numbers of hits and of questions
DEPTHS = (100, 1000)
SIZES = (1, 4, 16, 32)


@dataclasses.dataclass(frozen=True)
class Served:
    """A live retriever over one state of the corpus; immutable.

    Attributes:
      name: in its work directory.
      state: what its artifacts are, to know whether another opening would give the same.
      opened: its parts.
      encoders: the question towers of it and of its parts, by name of the retriever.
      corpus: the passages.
      batcher: answers questions.
      facts: what /v1/info says of it.
      written_s: when its index was written, seconds since 1970.
      manifests: of all that it is served from.
      language: returns that of the corpus, by which BM25 cuts words.
    """

    name: str
    state: str
    opened: Opened
    encoders: dict[str, QuestionEncoder]
    corpus: Corpus
    batcher: Batcher
    facts: dict[str, Any]
    written_s: float
    manifests: tuple[Path, ...]
    language: Callable[[], str]

    @property
    def encoder(self) -> QuestionEncoder | None:
        """The question tower; of a hybrid that of its first dense part."""
        return next(iter(self.encoders.values()), None)

    def warm_first(self) -> None:
        """Answers one question, so that the programs for one are compiled."""
        for encoder in self.encoders.values():
            encoder.warm_first()
        searcher = self.opened.start()
        searcher.find(searcher.encode(["what"]), DEPTHS[0])

    def warm(self, stopping: threading.Event) -> None:
        """Compiles the programs for all lengths and numbers of questions."""
        for encoder in self.encoders.values():
            encoder.warm(stopping)
        searcher = self.opened.start()
        for size in SIZES:
            for depth in DEPTHS:
                if stopping.is_set():
                    return
                searcher.find(searcher.encode(["what"] * size), depth)


def state_of(retriever: RetrieverDir, corpus: str) -> str:
    """Returns a text of all that a retriever and its parts are opened from: pointers and settings.

    Args:
      retriever: there or not.
      corpus: fingerprint of the corpus with its changes.
    """
    found = retriever.read()
    state = repr((corpus, found.get("kind"), found.get("source"), found.get("current")))
    state += repr(found.get("recipe"))
    if retriever.kind == "hybrid":
        parts = recipes.load(retriever).retrieve.parts
        state += "".join(state_of(retriever.workdir.retriever(name), corpus) for name in parts)
    return state


def open_certified(
    retriever: RetrieverDir,
    corpus: Corpus,
    opened: dict[str, Opened],
    encoders: dict[str, QuestionEncoder],
    *,
    min_recall: float,
) -> tuple[Opened, dict[str, Any]]:
    """Opens a retriever whose index, embeddings, model and corpus belong together.

    Args:
      retriever: its folder.
      corpus: as it is now.
      opened: retrievers that are open already, by name; those opened here join them.
      encoders: their question towers, likewise.
      min_recall: least recall@100 that its certificate must state.

    Returns:
      (the retriever, what /v1/info says of it).

    Raises:
      InputError: a part is missing, damaged, of another model or corpus, or the certificate does
        not stand.
    """
    if not retriever.file.exists():
        raise recipes.unknown(retriever.workdir, retriever.name)
    facts: dict[str, Any] = {"kind": retriever.kind}
    figure = dev_figure(retriever)
    if figure is not None:
        facts["dev_mrr_at_10"] = figure
    if retriever.kind == "hybrid":
        names = recipes.load(retriever).retrieve.parts
        others = [retriever.workdir.retriever(one) for one in names if one != retriever.name]
        parts = [
            open_certified(one, corpus, opened, encoders, min_recall=min_recall) for one in others
        ]
        facts["parts"] = list(names)
        facts["recall_at_100"] = min((one["recall_at_100"] for _, one in parts), default=0.0)
    elif retriever.kind == "dense":
        facts |= _certificate(retriever, min_recall)
    else:
        facts |= {"recall_at_100": 1.0, "engine": "bm25s"}
    if retriever.name not in opened:
        found = open_retriever(retriever, corpus, opened=opened)
        if found.embedder is not None:
            encoder = encoders[retriever.name] = QuestionEncoder(found.embedder)
            found.embedder.encode = encoder.encode  # which its searcher asks
        opened[retriever.name] = found._replace(start=_started_once(found))
    facts["fingerprint"] = opened[retriever.name].fingerprint
    return opened[retriever.name], facts


def _started_once(opened: Opened) -> Callable[..., Searcher]:
    """Returns a `start` that opens the index once and then returns the same searcher."""

    @functools.cache
    def once() -> Searcher:
        searcher = opened.start()
        return searcher if opened.embedder is None else fixed_shapes(searcher)

    return lambda *, everywhere=False: once()


def _certificate(retriever: RetrieverDir, min_recall: float) -> dict[str, Any]:
    """Checks the certificate of a dense retriever, and returns its facts."""
    folder = retriever.current("index")
    again = f"run `dpr index {retriever.flags}`"
    with artifacts.hash_later():
        facts = artifacts.verify(folder / MANIFEST)
    recall = facts.get("recall_at_100")
    if not isinstance(recall, int | float) or not facts.get("recall_queries"):
        raise InputError(f"{folder / MANIFEST} certifies no recall; {again}")
    if recall < min_recall:
        raise InputError(
            f"the index of retriever {retriever.name} has recall@100 {recall:.4f}, and"
            f" serve.min_recall is {min_recall:g}; give `dpr index` an index.target_recall, or"
            " lower it"
        )
    embeddings = retriever.find("embeddings")
    if embeddings is not None and embeddings.exists():
        mine = artifacts.fingerprint(embeddings / "manifest.json")
        if facts["made_from"]["inputs"]["embeddings"] != mine:
            raise InputError(
                f"the index of retriever {retriever.name} is of other embeddings than {embeddings};"
                f" {again}"
            )
    return {
        "engine": facts["kind"],
        "dimension": facts["dimension"],
        "recall_at_100": recall,
        "recall_queries": facts["recall_queries"],
        "recall_queries_from": facts["recall_queries_from"],
        "encoder": retriever.source or "trained here",
        "versions": facts["versions"],
    }


def language_of(workdir: WorkDir, corpus: Corpus, fingerprint: str) -> str:
    """Returns the language of a corpus: that of its BM25 index, else found from its passages."""
    for manifest in workdir.root.glob(f"bm25-*/{bm25.MANIFEST}"):
        facts = artifacts.read_json(manifest)
        if facts["made_from"]["inputs"]["corpus"] == fingerprint:
            return facts["language"]
    rows = bm25_words.evenly(len(corpus))
    return bm25_words.find_language(one.title_and_text for one in corpus.rows(rows))


def written_at(retriever: RetrieverDir) -> float:
    """Returns when the index was written, seconds since 1970; for a hybrid, its older part's."""
    if retriever.kind == "hybrid":
        parts = recipes.load(retriever).retrieve.parts
        return min(written_at(retriever.workdir.retriever(name)) for name in parts)
    manifest = retriever.current("index") / (
        MANIFEST if retriever.kind == "dense" else "manifest.json"
    )
    return manifest.stat().st_mtime if manifest.exists() else time.time()


def manifests_of(retriever: RetrieverDir) -> list[Path]:
    """Returns the manifests of a retriever's index, model and weight."""
    if retriever.kind == "hybrid":
        parts = recipes.load(retriever).retrieve.parts
        own = [retriever.current("weight") / "manifest.json"] if retriever.find("weight") else []
        found = [manifests_of(retriever.workdir.retriever(name)) for name in parts]
        return own + [manifest for one in found for manifest in one]
    folder = retriever.current("index")
    if retriever.kind == "bm25":
        return [folder / "manifest.json"]
    found = [folder / MANIFEST, *(other / MANIFEST for other in built_of(folder))]
    model = Path(retriever.encoder) / "manifest.json"
    return [*found, model] if model.exists() else found


def fixed_shapes(searcher: Searcher) -> Searcher:
    """Returns a searcher that pads its questions and k to few shapes, since JAX compiles each.

    Only an index on JAX's devices takes questions instead of vectors; others are left as they are.
    """

    def find(queries: Any, k: int) -> Ranking:
        if not isinstance(queries, list) or not queries:
            return searcher.find(queries, k)
        size = next((size for size in SIZES if size >= len(queries)), len(queries))
        depth = next((depth for depth in DEPTHS if depth >= k), 1 << (k - 1).bit_length())
        padded = queries + queries[-1:] * (size - len(queries))
        scores_QK, rows_QK = searcher.find(padded, depth)
        count = len(queries)
        return np.ascontiguousarray(scores_QK[:count, :k]), rows_QK[:count, :k]

    return searcher._replace(find=find)
