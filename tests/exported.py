"""A small work directory with a real encoder, to be exported."""

import dataclasses
from pathlib import Path

import tiny
from prepared import prepare, retriever

from dpr_jax import cli
from dpr_jax.config import Config, IndexConfig
from dpr_jax.data.readers.formats import Passage
from dpr_jax.data.store import Question
from dpr_jax.encoding import encode
from dpr_jax.index import update
from dpr_jax.model import hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.workdir import WorkDir

COUNT = 1200  # ScaNN makes a tree of 1,000 passages or more


def passages(count: int = COUNT) -> list[Passage]:
    """Passages of few words, no two alike, with characters that formats have to escape."""
    return [
        Passage(f"p-{at}", f'River "{at % 40}"', f"water\t{at} flows\nto café {at * at % 997} \\.")
        for at in range(count)
    ]


def finished(root: Path, index: IndexConfig, count: int = COUNT) -> WorkDir:
    """Encodes and indexes passages with a BERT of random weights, as retriever `trained`."""
    questions = [
        Question(f"q{at}", f"water {at} flows", (), (at,), (), ()) for at in range(0, count, 60)
    ]
    workdir = prepare(root / "w", passages(count), questions, dev=questions)
    template = tiny.write(root / "encoder")
    for side in ("question", "passage"):
        folder = root / "model" / f"{side}_encoder"
        folder.mkdir(parents=True)
        hf.write_encoder(
            folder,
            template=template,
            shape=tiny.SHAPE,
            params=tiny.params(),
            settings=EncoderSettings("mean", True, 32),
        )
    config = Config(index=dataclasses.replace(index, recall_queries=40))
    one = retriever(workdir, "trained", config, source=str(root / "model"))
    encode.run(config, one)
    update.run(config, one)
    return workdir


def export(workdir: WorkDir, out: Path, engine: str, *more: str) -> None:
    """Runs the command."""
    where = ["--workdir", str(workdir.root), "--retriever", "trained", "--out", str(out)]
    cli.run(["export", engine, *where, *more])
