"""The passages and vectors of a retriever, in corpus order, a block at a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import ROWS_PER_READ, Corpus
from dpr_jax.errors import InputError
from dpr_jax.index import embeddings, sample
from dpr_jax.index.open import MANIFEST
from dpr_jax.retrieval.retriever import best
from dpr_jax.retrieval.searcher import open_corpus, open_retriever
from dpr_jax.workdir import RetrieverDir, WorkDir

ROWS_PER_FILE = 65536


class ExportSource(NamedTuple):
    """A dense retriever over the passages that its corpus has now.

    A position counts the passages that are left, in corpus order, from 0. So it is the row of the
    corpus less the removed rows before it.

    Attributes:
      retriever: its folder.
      config: its settings.
      corpus: with its changes.
      shards: vectors of all rows, removed ones too, in corpus order, float16 [rows, D].
      index: what index.json says.
      inputs: fingerprints of what an export is made from.
    """

    retriever: RetrieverDir
    config: Config
    corpus: Corpus
    shards: list[np.ndarray]
    index: dict[str, Any]
    inputs: dict[str, str]

    @property
    def count(self) -> int:
        """Passages that are left."""
        return len(self.corpus) - len(self.corpus.removed_R)

    @property
    def width(self) -> int:
        """D, the size of a vector."""
        return self.shards[0].shape[1]

    @property
    def is_unchanged(self) -> bool:
        """True where no passage was added or removed since the corpus was prepared."""
        return len(self.corpus) == self.index["prepared"] and not len(self.corpus.removed_R)

    def rows(self, positions: range) -> np.ndarray:
        """Returns the corpus rows at some positions, int64."""
        return sample.corpus_rows(np.arange(positions.start, positions.stop), self.corpus.removed_R)

    def passages(self, positions: range) -> Iterator[Passage]:
        """Yields the passages at some positions; few of them are in memory at a time."""
        for start in range(positions.start, positions.stop, ROWS_PER_READ):
            part = range(start, min(start + ROWS_PER_READ, positions.stop))
            yield from self.corpus.rows(self.rows(part))

    def vectors(self, positions: range) -> np.ndarray:
        """Returns the vectors at some positions: float16 [len(positions), D].

        Raises:
          InputError: a vector holds NaN or infinity.
        """
        rows_B = self.rows(positions)
        if not len(rows_B):
            return np.zeros((0, self.width), np.float16)
        first = int(rows_B[0])
        block_BD = embeddings.read_rows(self.shards, first, int(rows_B[-1]) + 1)
        if len(block_BD) > len(rows_B):  # without those that were removed
            block_BD = block_BD[rows_B - first]
        if not np.isfinite(block_BD).all():
            at = int(np.argmin(np.isfinite(block_BD).all(axis=1)))
            raise InputError(
                f"row {int(rows_B[at]):,} of the embeddings of {self.retriever.name} holds NaN or"
                " infinity; delete them and run `dpr encode` again with a sound model"
            )
        return block_BD


def parts(count: int, rows_per_file: int = ROWS_PER_FILE) -> list[range]:
    """Splits `count` positions into the ranges of files."""
    starts = range(0, count, rows_per_file)
    return [range(start, min(start + rows_per_file, count)) for start in starts]


def open_source(workdir: WorkDir, name: str | None) -> ExportSource:
    """Opens a retriever for export, after checking that its parts belong together.

    Args:
      workdir: a finished work directory.
      name: of the retriever; None takes the best on dev, of a hybrid its dense part.

    Raises:
      InputError: it is not there, has no vectors, is behind the corpus, or a file is damaged.
    """
    retriever = workdir.retriever(name) if name else _best_dense(workdir)
    if not retriever.file.exists():
        raise recipes.unknown(workdir, retriever.name)
    if retriever.kind != "dense":
        dense = [one.name for one in workdir.retrievers() if one.kind == "dense"]
        raise InputError(
            f"retriever {retriever.name} is {retriever.kind}, and an export takes the vectors of a"
            f" dense one; give --retriever with one of: {', '.join(dense) or 'none yet'}"
        )
    corpus, config = open_corpus(workdir), recipes.load(retriever)
    opened = open_retriever(retriever, corpus, config)
    index = retriever.current("index")
    facts = artifacts.verify(index / MANIFEST)
    folder = retriever.current("embeddings")
    shards, made = embeddings.open_embeddings(folder)
    fingerprint = artifacts.fingerprint(folder / "manifest.json")
    added = [np.load(index / file, mmap_mode="r") for file in _added(facts)]
    rows = made["count"] + sum(map(len, added))
    if facts["made_from"]["inputs"]["embeddings"] != fingerprint or rows != len(corpus):
        raise InputError(
            f"the index of {retriever.name} is of other vectors than {folder}; run `dpr index"
            f" --retriever {retriever.name} {workdir.flag}`"
        )
    return ExportSource(retriever, config, corpus, [*shards, *added], facts, opened.inputs)


def _added(facts: dict[str, Any]) -> list[str]:
    return [name for name in sorted(facts["files"]) if name.startswith("added-")]


def _best_dense(workdir: WorkDir) -> RetrieverDir:
    retriever = workdir.retriever(best(workdir)[0])
    if retriever.kind == "hybrid":
        parts_of = map(workdir.retriever, recipes.load(retriever).retrieve.parts)
        return next((one for one in parts_of if one.kind == "dense"), retriever)
    return retriever
