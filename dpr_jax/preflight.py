"""Checks before the first stage of a pipeline: encoders, disk and memory."""

import shutil
from collections.abc import Sequence
from typing import Protocol

from dpr_jax import artifacts, console, host, needs
from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.index import build
from dpr_jax.model import hf
from dpr_jax.workdir import RetrieverDir, WorkDir


class PlannedStep(Protocol):
    """One stage for one retriever, as `pipeline.Step` has it."""

    stage: str
    retriever: RetrieverDir | None
    config: Config
    source: str | None


def check_encoders(steps: Sequence[PlannedStep]) -> None:
    """Finds the encoders of all steps, before the first of them takes hours.

    Raises:
      InputError: an encoder is missing, or is not one.
    """
    sources = [step.source for step in steps if step.stage == "encode"]
    sources += [step.config.model.init for step in steps if step.stage == "train"]
    for source in dict.fromkeys(filter(None, sources)):
        if not source.startswith("retriever:"):  # which may be made on the way
            hf.resolve(source, "passage")


def say_needs(config: Config, workdir: WorkDir, steps: Sequence[PlannedStep]) -> None:
    """Prints what disk and memory the steps take, beside what is free; warns where it is too
    little.

    Vectors and weights are taken to be as large as those of `model.init`.
    """
    data = workdir.data
    facts = artifacts.read_json(data / "manifest.json")
    passages, answered = facts["passages"], {"dev", *facts["test_sets"]}
    named = {
        stage: {s.retriever.name for s in steps if s.stage == stage and s.retriever}
        for stage in ("train", "encode", "retrieve")
    }
    width, tower_bytes = 0, 0
    if named["encode"]:
        try:
            folder = hf.resolve(workdir.model_source(config.model.init), "passage")
            width = hf.read_shape(folder).hidden_size
            tower_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        except (InputError, OSError):
            return  # the stage that needs the encoder says it better
    found = needs.estimate(
        data_bytes=sum(file.stat().st_size for file in data.rglob("*") if file.is_file()),
        passages=passages,
        questions=sum(count for name, count in facts["questions"].items() if name in answered),
        top_k=config.retrieve.top_k,
        json_runs=config.retrieve.json_run,
        engine=build.choose_kind(config.index.kind, passages)[0],
        width=config.index.dimensions or width,
        dense=len(named["encode"]),
        runs=len(named["retrieve"]),
        tower_bytes=tower_bytes,
        trained=len(named["train"]),
        towers=1 if config.model.shared_towers else 2,
        weights_kept=2 if config.train.validate_every_steps else 1,
    )
    there = sum(file.stat().st_size for file in workdir.root.rglob("*") if file.is_file())
    disk, free = sum(found.disk.values()), shutil.disk_usage(workdir.root).free
    size = console.size_in_words
    more = f" (and up to {size(found.passing)} while training)" if found.passing else ""
    say(
        f"pipeline: {passages:,} passages take about {size(disk)} of disk{more}, of which"
        f" {size(there)} are there; {size(free)} are free"
    )
    memory, available = found.memory, min([*host.available_bytes(), 2**62])
    if memory:
        say(f"pipeline: an index takes about {size(memory)} of memory; {size(available)} are free")
    if disk + found.passing - there > free or memory > available:
        say(
            "WARNING: that is more than is free: give --workdir on a larger disk, a larger machine,"
            " or --index.dimensions (narrower vectors)"
        )
