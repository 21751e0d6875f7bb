"""Search from Python: a finished work directory, asked in a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data.changes import open_corpus
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.retrieval import search


class Found(NamedTuple):
    """A passage and its score; scores of one search compare with each other, not with those of
    another way to search.
    """

    id: str
    title: str
    text: str
    score: float


class Retriever:
    """Questions to passages, by what a work directory holds: data/, model/, and index/ unless it
    searches by words alone.

    >>> from dpr_jax import Retriever
    >>> retriever = Retriever.load("runs/rivers")
    >>> [found] = retriever.search(["which river flows through Paris?"], k=3)
    >>> len(found), found[0].title
    (3, 'Paris')
    """

    def __init__(self, corpus: Corpus, way: search.Search) -> None:
        self._corpus, self._way = corpus, way

    @classmethod
    def load(cls, folder: str | Path, config: Config | None = None) -> "Retriever":
        """Opens a work directory for searching; the files of the index are checked against their
        checksums.

        Args:
          folder: the work directory.
          config: its config, where another than the default is wanted of: `retrieve.kind` (dense,
            bm25, hybrid), `retrieve.model` and `retrieve.index` (which encoder and index), `bm25`,
            `encode.dtype`.

        Raises:
          InputError: the folder is no work directory, or what is needed is missing, damaged, or
            does not belong together.
        """
        workdir = WorkDir(Path(folder).absolute())
        if not (workdir.root / "workdir.json").exists():
            raise InputError(
                f"{folder} is not a work directory (no workdir.json); give the --workdir of a"
                " finished run"
            )
        config = config or Config()
        corpus = open_corpus(workdir, search.searched(config, workdir))
        embedder = search.question_tower(config, workdir)
        return cls(corpus, search.open_search(config, workdir, corpus, embedder))

    def search(self, questions: Sequence[str], k: int = 20) -> list[list[Found]]:
        """The best passages of every question, best first.

        Args:
          questions: texts; many at once are faster than one by one.
          k: passages a question; fewer come back where no more are found.

        Raises:
          InputError: `questions` is one text instead of a list, one of them is empty, or k is below
            1.
        """
        if isinstance(questions, str) or not all(text.strip() for text in questions):
            raise InputError(
                f"questions are {questions!r}; they must be a list of texts that are not empty"
            )
        if k < 1:
            raise InputError(f"k is {k}; it must be 1 or more")
        if not questions:
            return []
        k = min(k, len(self._corpus))
        # as `dpr prepare` has it: DPR's questions know the straight apostrophe alone
        plain = [text.replace("’", "'") for text in questions]
        scores_QK, rows_QK = self._way.find(self._way.encode(plain), k)
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
