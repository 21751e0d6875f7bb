"""The stages in order, for one config and one work directory."""

import dataclasses
from collections.abc import Callable

from dpr_jax import host, parallel
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data import changes, prepare
from dpr_jax.encoding import added, encode
from dpr_jax.errors import InputError
from dpr_jax.evaluation import evaluate
from dpr_jax.index import refresh
from dpr_jax.inspection import overview
from dpr_jax.mining import mine
from dpr_jax.retrieval import retrieve
from dpr_jax.training import loop

Stage = Callable[[Config, WorkDir], None]

UNTRAINED = "untrained"  # folder and run name of the encoder as it came


def on_main(stage: Stage) -> Stage:
    """Runs a stage on one process while the others wait for what it leaves on disk."""

    def run(config: Config, workdir: WorkDir) -> None:
        parallel.on_main(lambda: stage(config, workdir))

    return run


def encode_all(config: Config, workdir: WorkDir) -> None:
    """The corpus as it was prepared, by all processes, and its changes; or questions, where some
    are named.
    """
    encode.run(config, workdir)
    if not config.encode.questions:
        on_main(added.run)(config, workdir)


def train(config: Config, workdir: WorkDir) -> None:
    """By all processes; the stages after it may need the memory that it took."""
    loop.run(config, workdir)
    host.give_back_memory()


STAGES: dict[str, Stage] = {
    "prepare": on_main(prepare.run),
    "inspect": on_main(overview.run),
    "mine": on_main(mine.run),
    "train": train,
    "encode": encode_all,
    "index": on_main(refresh.run),
    "retrieve": on_main(retrieve.run),
    "evaluate": on_main(evaluate.run),
}


def run(config: Config, workdir: WorkDir) -> None:
    """From raw files to the report: BM25, the encoder as it came, the trained one, and it with
    BM25, on the same questions.

    Every stage is skipped whose inputs and settings are those of what is on disk.

    Raises:
      InputError: as the stages do; or encode.questions is set, which would leave the corpus without
        vectors.
    """
    if config.encode.questions:
        raise InputError(
            f"encode.questions is {config.encode.questions!r}; it is for `dpr encode` alone, leave"
            " it empty in a pipeline"
        )
    STAGES["prepare"](config, workdir)
    if config.mine.enabled:
        STAGES["mine"](config, workdir)
    STAGES["retrieve"](_with(config, retrieve={"kind": "bm25", "name": "bm25"}), workdir)
    if config.compare_untrained:
        _search(untrained(config), workdir)
    STAGES["train"](config, workdir)
    _search(config, workdir)
    for number in range(2, config.rounds + 1):
        here = dataclasses.replace(workdir, round=number)
        before = dataclasses.replace(workdir, round=number - 1)
        for stage in ("mine", "train"):
            STAGES[stage](later_round(config, before), here)
        _search(_with(config, retrieve={"name": f"round-{number}"}), here)
    if config.data.dev:  # where the weight of the two is found
        hybrid = _with(config, retrieve={"kind": "hybrid", "name": "hybrid"})
        STAGES["retrieve"](hybrid, workdir)
    STAGES["evaluate"](config, workdir)


def add(config: Config, workdir: WorkDir, passages: str) -> None:
    """New passages into the corpus that is searched, its embeddings and its index; run again, it
    goes on where it was killed.
    """

    def record(config: Config, workdir: WorkDir) -> None:
        changes.add(config, workdir, passages)

    _change(config, workdir, record)


def remove(config: Config, workdir: WorkDir, ids: str) -> None:
    """Passages out of the corpus that is searched, by a file of their ids; run again, it goes on
    where it was killed.
    """

    def record(config: Config, workdir: WorkDir) -> None:
        changes.remove(workdir, ids)

    _change(config, workdir, record)


def rebalance(config: Config, workdir: WorkDir) -> None:
    """The index built anew of the passages there are now."""
    for stage in (added.run, refresh.rebalance):
        on_main(stage)(config, workdir)


def _change(config: Config, workdir: WorkDir, record: Stage) -> None:
    for stage in (refresh.check, record, added.run, refresh.follow):
        on_main(stage)(config, workdir)


def untrained(config: Config) -> Config:
    """The same config for the encoder before training, in folders and under a name of its own."""
    embeddings, index = f"{UNTRAINED}/embeddings", f"{UNTRAINED}/index"
    return _with(
        config,
        encode={"model": config.model.init, "out": embeddings},
        index={"embeddings": embeddings, "out": index},
        retrieve={"name": UNTRAINED, "model": config.model.init, "index": index},
    )


def later_round(config: Config, before: WorkDir) -> Config:
    """The same config for a round that mines with the model of the round before, and trains it on
    (ANCE, Xiong et al., 2020, arXiv 2007.00808).
    """
    return _with(
        config,
        mine={
            "sources": config.mine.later_sources,
            "model": str(before.model),
            "index": str(before.inside(config.index.out)),
        },
        model={"init": str(before.model)},
    )


def _search(config: Config, workdir: WorkDir) -> None:
    for name in ("encode", "index", "retrieve"):
        STAGES[name](config, workdir)


def _with(config: Config, **parts: dict[str, object]) -> Config:
    """The config with some values of some parts replaced."""
    changed = {
        part: dataclasses.replace(getattr(config, part), **values) for part, values in parts.items()
    }
    return dataclasses.replace(config, **changed)
