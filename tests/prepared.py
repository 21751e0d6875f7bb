"""A small prepared work directory, and encoders that stand in for a model where a test is not about one."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.data import store
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import Question

WIDTH = 64


def prepare(
    root: Path,
    passages: Sequence[Passage],
    questions: Sequence[Question] = (),
    *,
    dev: Sequence[Question] = (),
) -> WorkDir:
    """Writes `data/` as the prepare stage does, with `questions` as the test split."""
    workdir = artifacts.open_workdir(root, "test")
    files = store.write_corpus(workdir.data, passages)
    splits = {"test": questions, "dev": dev}
    splits = {name: split for name, split in splits.items() if split}
    if splits:
        files += store.write_questions(workdir.data, splits)
    artifacts.write_manifest(
        workdir.data / "manifest.json",
        artifacts.made_from("prepare", {}, {}),
        files,
        questions={name: len(split) for name, split in splits.items()},
    )
    return workdir


class WordEmbedder:
    """A text's vector is the sum of its words' random vectors, so texts that share words are near each other."""

    width = WIDTH

    def __init__(self, model: str = "words") -> None:
        self.fingerprint = self.model_fingerprint = model
        self.encoded: list[object] = []

    def encode(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        advance: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        self.encoded += texts
        if advance is not None:
            advance(len(texts))
        joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
        return np.array([self._vector(text) for text in joined], np.float32)

    def _vector(self, text: str) -> np.ndarray:
        vector_D = np.zeros(self.width)
        for word in text.lower().replace("?", " ").replace(".", " ").split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            vector_D += np.random.default_rng(seed).normal(size=self.width)
        return vector_D / np.sqrt(self.width)
