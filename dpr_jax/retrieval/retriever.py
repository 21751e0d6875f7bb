"""Searches a finished work directory from Python."""

import operator
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dpr_jax import recipes
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.retrieval.searcher import Searcher, open_corpus, open_retriever
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir

WITHOUT_DEV = ("hybrid", "trained", "untrained", "bm25")  # the order where dev chose none
DEV_METRIC = "MRR@10"


class Found(NamedTuple):
    """A passage and its score; scores of one retriever compare with each other alone."""

    id: str
    title: str
    text: str
    score: float


class Retriever:
    """Answers questions with passages, exactly as the measured run of a work directory did.

    Attributes:
      name: of the retriever in its work directory.
      why: why `load` chose it.

    >>> from dpr_jax import Retriever
    >>> retriever = Retriever.load("runs/rivers", "trained")
    >>> [found] = retriever.search(["which river flows through Paris?"], k=3)
    >>> len(found), found[0].title
    (3, 'Paris')
    """

    def __init__(self, name: str, why: str, corpus: Corpus, searcher: Searcher) -> None:
        self.name, self.why = name, why
        self._corpus, self._searcher = corpus, searcher

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> "Retriever":
        """Opens a retriever of a work directory; writes nothing.

        Args:
          folder: the work directory.
          name: of the retriever; None takes the best on the dev questions (`best`).

        Raises:
          InputError: the folder is no work directory, it has no such retriever, or what the
            retriever needs is missing, damaged, or does not belong together.
        """
        workdir = open_workdir(folder, new=False)
        why = "as asked"
        if name is None:
            name, why = best(workdir)
        retriever = workdir.retriever(name)
        if not retriever.file.exists():
            raise recipes.unknown(workdir, name)
        corpus = open_corpus(workdir)
        return cls(name, why, corpus, open_retriever(retriever, corpus).start())

    def search(self, questions: Iterable[str], k: int = 20) -> list[list[Found]]:
        """Returns the best passages of every question, best first.

        Args:
          questions: texts; many at once are faster than one by one.
          k: passages per question; fewer come back where no more are found.

        Raises:
          InputError: `questions` is one text or no texts at all, one of them is empty, or k is
            below 1.
        """
        texts = questions_as_texts(questions)
        try:
            k = operator.index(k)
        except TypeError:
            raise InputError(f"k is {k!r}; it must be a whole number, 1 or more") from None
        if k < 1:
            raise InputError(f"k is {k}; it must be 1 or more")
        if not texts:
            return []
        k = min(k, len(self._corpus))
        # as `dpr prepare` has it: DPR's questions know the straight apostrophe alone
        plain = [text.replace("’", "'") for text in texts]
        scores_QK, rows_QK = self._searcher.search(plain, k)
        return [
            [
                Found(*passage, score)
                for passage, score in zip(
                    self._corpus.rows(rows_K[rows_K >= 0]),
                    scores_K[rows_K >= 0].tolist(),
                    strict=True,
                )
            ]
            for scores_K, rows_K in zip(scores_QK, rows_QK, strict=True)
        ]


def best(workdir: WorkDir) -> tuple[str, str]:
    """Returns the name of the retriever that is best on the dev questions, and why it was chosen.

    Test questions never choose. Where no retriever has figures on dev, it is the first that is
    there of hybrid, trained, untrained and bm25.

    Raises:
      InputError: no retriever has an index yet.
    """
    ready = {one.name: one for one in workdir.retrievers() if is_ready(one)}
    if not ready:
        raise InputError(
            f"{workdir.root} has no retriever with an index yet; run `dpr pipeline {workdir.flag}`"
        )
    on_dev = {name: dev_figure(one) for name, one in ready.items()}
    measured = {name: value for name, value in on_dev.items() if value is not None}
    if measured:
        in_order = [name for name in (*WITHOUT_DEV, *sorted(measured)) if name in measured]
        name = max(in_order, key=measured.__getitem__)  # the first of equals
        return name, f"best on the dev questions, {DEV_METRIC} {100 * measured[name]:.1f}"
    name = next((name for name in WITHOUT_DEV if name in ready), min(ready))
    return name, "no retriever has figures on dev questions"


def dev_figure(retriever: RetrieverDir) -> float | None:
    """Returns the figure that `best` compares; None where the retriever has none."""
    return retriever.read().get("dev", {}).get(DEV_METRIC)


def is_ready(retriever: RetrieverDir) -> bool:
    """Returns whether a retriever has all it needs to search."""
    if retriever.kind == "hybrid":
        parts = recipes.load(retriever).retrieve.parts
        return all(is_ready(retriever.workdir.retriever(name)) for name in parts)
    index = retriever.find("index")
    return index is not None and index.exists()


def questions_as_texts(questions: Iterable[str]) -> list[str]:
    """Returns the questions as a list; raises InputError if they are not texts."""
    rule = "questions must be texts that are not empty, in a list or another iterable"
    if isinstance(questions, str):
        raise InputError(f"questions are one text, {questions!r}; give a list: {rule}")
    try:
        texts = list(questions)
    except TypeError:
        raise InputError(f"questions are {type(questions).__name__}; {rule}") from None
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"question {number} is {str(text)[:80]!r} ({type(text).__name__}); {rule}"
            )
    return [str(text) for text in texts]
