"""Searches the corpus by vectors, by words, or by both; mining uses it too.

A searcher writes nothing: what a retriever lacks is an error that names the command which makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts, parallel, recipes
from dpr_jax.config import Config
from dpr_jax.data import changes
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.index import bm25
from dpr_jax.index.open import MANIFEST, open_index
from dpr_jax.index.removed import search_without
from dpr_jax.model.embed import Embedder, load_embedder
from dpr_jax.retrieval import fusion
from dpr_jax.retrieval.fusion import Ranking
from dpr_jax.workdir import RetrieverDir, WorkDir, digest

QUESTIONS_AT_ONCE = 256


class Searcher(NamedTuple):
    """Searches in two steps, so that a batch can be encoded while another is searched.

    Attributes:
      encode: questions -> queries.
      find: (queries, k) -> (scores float32 [Q, k], rows int64 [Q, k]), best first; missing hits
        have score -inf and row -1, at the end.
      facts: what the manifest of a run should say of it.
      together: whether all processes have to search together, with the same questions.
    """

    encode: Callable[[Sequence[str]], Any]
    find: Callable[[Any, int], Ranking]
    facts: dict[str, Any]
    together: bool = False

    def search(self, questions: Sequence[str], k: int) -> Ranking:
        """Returns the k best rows of every question."""
        return self.find(self.encode(questions), k)


def as_they_are(questions: Sequence[str]) -> Sequence[str]:
    """Returns the questions: the step `encode` of a searcher that has nothing to encode."""
    return questions


class Opened(NamedTuple):
    """A retriever that is ready to search.

    Attributes:
      settings: what its results depend on.
      inputs: fingerprints of what they depend on.
      start: opens the index and returns the searcher; takes seconds, and memory. With
        `everywhere=True` exact search uses the devices of all processes.
      parts: of a hybrid, the two that it fuses.
      embedder: of a dense retriever, its question tower.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    start: Callable[..., Searcher]
    parts: tuple["Opened", ...] = ()
    embedder: Embedder | None = None

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all that the results depend on."""
        return digest({"settings": self.settings, "inputs": self.inputs})


def open_retriever(
    retriever: RetrieverDir,
    corpus: Corpus,
    config: Config | None = None,
    *,
    opened: Mapping[str, Opened] | None = None,
) -> Opened:
    """Checks that the parts of a retriever belong together and to the corpus as it is now.

    Args:
      retriever: its folder.
      corpus: from `open_corpus`.
      config: its settings; None takes the stored ones.
      opened: retrievers that are open already, by name; a hybrid takes its parts from there.

    Raises:
      InputError: a part is missing, of another model, or behind the corpus.
    """
    config = config or recipes.load(retriever)
    if retriever.kind == "bm25":
        return _bm25(retriever, corpus)
    if retriever.kind == "dense":
        return _dense(retriever, corpus, config)
    return _hybrid(retriever, corpus, config, opened or {})


def open_corpus(workdir: WorkDir) -> Corpus:
    """Opens the corpus as it is now: as it was prepared, with its changes."""
    return changes.open_corpus(workdir, changes.read(workdir))


def _bm25(retriever: RetrieverDir, corpus: Corpus) -> Opened:
    folder = retriever.current("index")
    facts = artifacts.read_json(folder / "manifest.json")["made_from"]
    _check_corpus(retriever, facts["inputs"]["corpus"])

    def start(*, everywhere: bool = False) -> Searcher:
        return words_searcher(bm25.load(folder), corpus)

    return Opened({"kind": "bm25", **facts["settings"]}, facts["inputs"], start)


def words_searcher(index: bm25.Bm25, corpus: Corpus) -> Searcher:
    """Returns the searcher of a BM25 index over the passages of the corpus that are left."""
    live_N = np.delete(np.arange(len(corpus)), corpus.removed_R)

    def find(questions: Sequence[str], k: int) -> Ranking:
        scores_QK, at_QK = index.search(questions, k)
        return scores_QK, np.where(at_QK < 0, -1, live_N[at_QK])

    return Searcher(as_they_are, find, {})


def _dense(retriever: RetrieverDir, corpus: Corpus, config: Config) -> Opened:
    folder, facts, embedder = _checked(retriever, config)
    _check_corpus(retriever, facts["corpus"])

    def start(*, everywhere: bool = False) -> Searcher:
        index = open_index(folder, everywhere=everywhere)
        _check_rows(retriever, folder, index.count, corpus)
        if everywhere and index.kind == "exact":

            def find(questions: Sequence[str], k: int) -> Ranking:
                queries_QD = parallel.of_main(embedder.encode(questions))  # alike to the last bit
                return index.search(queries_QD, k)

            return Searcher(as_they_are, find, {}, together=True)
        if index.on_devices:
            # Both steps run on the accelerators; from two threads they could wait for each other.
            return Searcher(
                as_they_are, lambda questions, k: index.search(embedder.encode(questions), k), {}
            )
        return Searcher(embedder.encode, index.search, {})

    return Opened(
        {"kind": "dense", "dtype": config.encode.dtype},
        {"index": artifacts.fingerprint(folder / MANIFEST), "model": embedder.fingerprint},
        start,
        embedder=embedder,
    )


def _hybrid(
    retriever: RetrieverDir, corpus: Corpus, config: Config, there: Mapping[str, Opened]
) -> Opened:
    """Opens both parts, each with its own recipe, to fuse their rankings."""
    settings, workdir = config.retrieve, retriever.workdir
    for name in settings.parts:
        if name == retriever.name or not workdir.retriever(name).file.exists():
            raise recipes.unknown(workdir, name)
    parts = tuple(
        there.get(name) or open_retriever(workdir.retriever(name), corpus)
        for name in settings.parts
    )

    def find_both(searchers: list[Searcher], queries: tuple[Any, Any], k: int) -> list[Ranking]:
        depth = min(max(k, fusion.DEPTH), len(corpus))
        return [one.find(own, depth) for one, own in zip(searchers, queries, strict=True)]

    def start(*, everywhere: bool = False) -> Searcher:
        searchers = [part.start(everywhere=everywhere) for part in parts]
        together = any(searcher.together for searcher in searchers)

        def encode(questions: Sequence[str]) -> tuple[Any, ...]:
            return tuple(searcher.encode(questions) for searcher in searchers)

        if settings.fusion == "rrf":
            return Searcher(
                encode,
                lambda queries, k: fusion.reciprocal_rank(find_both(searchers, queries, k), k=k),
                {},
                together,
            )
        weight = settings.fusion_weight or stored_weight(retriever, opened)

        def find(queries: tuple[Any, Any], k: int) -> Ranking:
            return fusion.linear(*find_both(searchers, queries, k), weight=weight, k=k)

        return Searcher(encode, find, {"weight": weight}, together)

    names = ("parts", "fusion", "fusion_weight")
    opened = Opened(
        {"kind": "hybrid", **{name: getattr(settings, name) for name in names}},
        {name: part.fingerprint for name, part in zip(settings.parts, parts, strict=True)},
        start,
        parts,
    )
    return opened


def weight_origin(opened: Opened, dev: str = "") -> dict[str, Any]:
    """Returns what the weight of a hybrid is made from; `dev` is the dev questions' fingerprint."""
    return artifacts.made_from("fusion weight", opened.settings, opened.inputs | {"dev": dev})


def stored_weight(retriever: RetrieverDir, opened: Opened) -> float:
    """Returns the weight that `dpr retrieve` found on the dev questions.

    Raises:
      InputError: none was found for the parts as they are now.
    """
    facts = artifacts.read_json(retriever.current("weight") / "manifest.json")
    dev = facts["made_from"]["inputs"]["dev"]
    if facts["made_from"] != artifacts.plain(weight_origin(opened, dev)):
        raise InputError(
            f"the weight of {retriever.name} was found for other parts than"
            f" {' and '.join(opened.settings['parts'])} are now; run `dpr retrieve "
            f"{retriever.flags}`"
        )
    return facts["weight"]


def question_tower(retriever: RetrieverDir, config: Config) -> Embedder:
    """Loads the encoder of questions.

    Raises:
      InputError: it cannot be found or read.
    """
    return load_embedder(
        retriever.encoder,
        "question",
        model=config.model,
        batch_tokens=config.encode.batch_tokens,
        dtype=config.encode.dtype,
    )


def prepared_dense(retriever: RetrieverDir, corpus: Corpus) -> Opened:
    """Opens a dense retriever over the corpus as it was prepared, for mining.

    Passages that were added since are left out, and nothing that comes or goes later changes the
    fingerprint.

    Raises:
      InputError: a part is missing, or of another model or corpus.
    """
    config = recipes.load(retriever)
    folder, facts, embedder = _checked(retriever, config)

    def start() -> Searcher:
        index = open_index(folder)
        _check_rows(retriever, folder, index.prepared_count, corpus)
        added_R = np.arange(len(corpus), index.count)  # training knows none of these

        def find(queries_QD: np.ndarray, k: int) -> Ranking:
            return search_without(index.search, added_R, queries_QD, k, count=index.count)

        return Searcher(embedder.encode, find, {})

    embeddings = retriever.current("embeddings") / "manifest.json"
    return Opened(
        {"kind": facts["kind"], "dtype": config.encode.dtype},
        {"embeddings": artifacts.fingerprint(embeddings), "model": embedder.fingerprint},
        start,
    )


def _checked(retriever: RetrieverDir, config: Config) -> tuple[Path, dict[str, Any], Embedder]:
    """Returns the index's folder, its manifest and the question tower that belongs to it."""
    folder = retriever.current("index")
    facts = artifacts.read_json(folder / MANIFEST)
    embedder = question_tower(retriever, config)
    if facts["model"] != embedder.passage_fingerprint:
        raise InputError(
            f"the index of retriever {retriever.name} holds passages of another encoder, or of the"
            f" same with another dpr_jax.json or model.* setting, than {retriever.encoder}; run"
            f" `dpr encode` and `dpr index {retriever.flags}`"
        )
    return folder, facts, embedder


def _check_rows(retriever: RetrieverDir, folder: Path, rows: int, corpus: Corpus) -> None:
    if rows != len(corpus):
        raise InputError(
            f"{folder} holds {rows:,} passages, the corpus {len(corpus):,}; run `dpr encode` and"
            f" `dpr index {retriever.flags}` again"
        )


def _check_corpus(retriever: RetrieverDir, corpus: str) -> None:
    if corpus != changes.read(retriever.workdir).fingerprint:
        raise InputError(
            f"retriever {retriever.name} is behind the corpus, which was prepared or changed since;"
            f" run `dpr pipeline {retriever.workdir.flag}`, or `dpr encode` and `dpr index"
            f" --retriever {retriever.name}`"
        )
