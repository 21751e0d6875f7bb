"""A small prepared work directory, and encoders that stand in for a model where a test is not about
one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiny

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.data.fields import Collected
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.model.embed import Vectors
from dpr_jax.model.tokenizer import Text
from dpr_jax.workdir import RetrieverDir, WorkDir, kind_by_name, open_workdir

WIDTH = 64


def prepare(
    root: Path,
    passages: Sequence[Passage],
    questions: Sequence[Question] = (),
    *,
    dev: Sequence[Question] = (),
) -> WorkDir:
    """Writes `data-HASH/` as the prepare stage does, with `questions` as the test split."""
    workdir = open_workdir(root)
    splits = {"test": questions, "dev": dev}
    splits = {name: split for name, split in splits.items() if split}
    content = hashlib.sha256(repr((list(passages), splits)).encode()).hexdigest()
    origin = artifacts.made_from("prepare", {"content": content}, {}, form=store.FORM)
    data = workdir.place("data", origin)
    with artifacts.atomic_dir(data) as partial:
        fields = Collected()
        for passage in passages:
            fields.add(passage)
        files = store.write_corpus(partial, passages) + fields.write(partial)
        if splits:
            files += store.write_questions(partial, splits)
        artifacts.write_manifest(
            partial / "manifest.json",
            origin,
            files,
            questions={name: len(split) for name, split in splits.items()},
        )
    workdir.point("data", data)
    return workdir


def retriever(
    workdir: WorkDir, name: str, config: Config, *, source: str | None = "words"
) -> RetrieverDir:
    """Stores a retriever's recipe; a dense one uses an encoder that a test stands in for."""
    found = workdir.retriever(name)
    kind = config.retrieve.kind or kind_by_name(name)
    recipes.store(found, config, source=source if kind == "dense" else None)
    return found


class WordRows(NamedTuple):
    """What stands for tokenized texts."""

    texts: list[Text]
    lengths_N: np.ndarray


class WordEmbedder:
    """A text's vector is the sum of its words' random vectors, so texts that share words are near
    each other.
    """

    width, shape, pooling = WIDTH, tiny.SHAPE, "mean"

    def __init__(self, model: str = "words") -> None:
        self.fingerprint = self.passage_fingerprint = model
        self.encoded: list[object] = []

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> np.ndarray:
        self.encoded += texts
        joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
        return np.array([self._vector(text) for text in joined], np.float32)

    def tokenize(self, texts: Sequence[Text]) -> WordRows:
        return WordRows(list(texts), np.ones(len(texts), np.int32))

    def vectors(self, rows: WordRows) -> Iterator[Vectors]:
        for start in range(0, len(rows.texts), 3):  # the last ones first
            rows_B = np.arange(len(rows.texts))[::-1][start : start + 3]
            emb_BD = self.encode([rows.texts[row] for row in rows_B])
            yield Vectors(rows_B, emb_BD, slots=3)

    def _vector(self, text: str) -> np.ndarray:
        vector_D = np.zeros(self.width)
        for word in text.lower().replace("?", " ").replace(".", " ").split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            vector_D += np.random.default_rng(seed).normal(size=self.width)
        return vector_D / np.sqrt(self.width)
