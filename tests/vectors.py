"""Retrievers whose embeddings are given, so that a test of indexes needs no encoder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prepared import WordEmbedder

from dpr_jax import artifacts
from dpr_jax.data import changes, store
from dpr_jax.workdir import RetrieverDir, WorkDir, open_workdir


def new_retriever(root: Path) -> RetrieverDir:
    """A dense retriever in a work directory whose corpus is never read."""
    workdir = open_workdir(root)
    origin = artifacts.made_from("prepare", {}, {})
    data = workdir.place("data", origin)
    with artifacts.atomic_dir(data) as partial:
        (partial / "corpus").mkdir()
        (partial / "corpus" / "nothing").write_text("nothing")
        files = [partial / "corpus" / "nothing"]
        artifacts.write_manifest(partial / "manifest.json", origin, files)
    workdir.point("data", data)
    return with_recipe(workdir)


def with_recipe(workdir: WorkDir, name: str = "trained", kind: str = "dense") -> RetrieverDir:
    """A retriever that has nothing yet."""
    retriever = workdir.retriever(name)
    retriever.update(kind=kind, source="words" if kind == "dense" else None)
    return retriever


def write_vectors(
    retriever: RetrieverDir,
    shards: Sequence[np.ndarray],
    *,
    stage: str = "embeddings",
    model: str = "a model",
) -> Path:
    """Writes what `dpr encode` leaves, and points to it."""
    content = hashlib.sha256(b"".join(shard.tobytes() for shard in shards)).hexdigest()
    corpus = changes.read(retriever.workdir).prints[0]
    origin = artifacts.made_from("encode", {"content": content}, {"corpus": corpus, "model": model})
    folder = retriever.place(stage, origin)
    with artifacts.atomic_dir(folder) as partial:
        files = []
        for number, shard in enumerate(shards):
            files.append(partial / f"shard-{number:05d}-of-{len(shards):05d}.npy")
            np.save(files[-1], shard)
        artifacts.write_manifest(
            partial / "manifest.json",
            origin,
            files,
            count=sum(map(len, shards)),
            width=shards[0].shape[1],
            model=model,
            computed_in="float32",
        )
    retriever.point(stage, folder)
    return folder


def encode_corpus(
    retriever: RetrieverDir, embedder: WordEmbedder, rows_per_shard: int = 16
) -> Path:
    """Embeds the prepared corpus."""
    texts = [(one.title, one.text) for one in store.open_corpus(retriever.workdir)]
    emb_ND = embedder.encode(texts).astype(np.float16)
    starts = range(rows_per_shard, len(emb_ND), rows_per_shard)
    shards = np.split(emb_ND, starts)
    return write_vectors(retriever, shards, model=embedder.passage_fingerprint)


def names_in(folder: Path) -> set[str]:
    """Artifacts of a retriever, by the part of their names before the hash; links left out."""
    return {path.name for path in folder.iterdir() if not path.is_symlink()}
