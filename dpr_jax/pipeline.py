"""The stages in order, for one config and one work directory."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax import artifacts, host, lease, parallel, preflight, recipes
from dpr_jax.config import Config, DataConfig
from dpr_jax.console import say
from dpr_jax.data import named, prepare, store
from dpr_jax.encoding import encode
from dpr_jax.errors import InputError, Preempted
from dpr_jax.evaluation import evaluate
from dpr_jax.index import update
from dpr_jax.inspection import overview
from dpr_jax.mining import mine
from dpr_jax.retrieval import retrieve
from dpr_jax.training import loop
from dpr_jax.workdir import RetrieverDir, WorkDir, is_name, kind_by_name

ORDER = ("prepare", "mine", "train", "encode", "index", "retrieve", "evaluate")
MAIN, UNTRAINED = recipes.MAIN, "untrained"


class Step(NamedTuple):
    """One stage for one retriever, or for the work directory.

    Attributes:
      stage: its name.
      owner: the retriever; the work directory for prepare and evaluate.
      config: the settings of that retriever.
      source: the encoder that the retriever uses as it comes, if it does.
      as_in: the retriever whose encoder and weight this one takes, which answers the questions of
        a test set with its own corpus.
    """

    stage: str
    owner: WorkDir | RetrieverDir
    config: Config
    source: str | None = None
    as_in: RetrieverDir | None = None

    @property
    def retriever(self) -> RetrieverDir | None:
        """The owner, if it is one."""
        return self.owner if isinstance(self.owner, RetrieverDir) else None

    @property
    def workdir(self) -> WorkDir:
        """The work directory that the stage writes to."""
        return self.owner.workdir if isinstance(self.owner, RetrieverDir) else self.owner


def run(config: Config, workdir: WorkDir, *, first: str = ORDER[0], last: str = ORDER[-1]) -> None:
    """Runs all stages, from raw files to the report; each is skipped whose result is there.

    Trains where there are training questions, and searches with the trained retriever, with those
    of `compare`, and with both BM25 and vectors. A test set that has a corpus of its own (a BEIR
    folder) gets a work directory of its own, `sets/NAME`, where the same retrievers answer it.

    Args:
      config: of the work directory and its trained retriever.
      workdir: where.
      first: the stage to begin with; what comes before must be there.
      last: the stage to end with.

    Raises:
      InputError: as the stages do; or `first` comes after `last`.
    """
    begin, end = ORDER.index(first), ORDER.index(last)
    if begin > end:
        order = ", ".join(ORDER)
        raise InputError(f"--from {first} comes after --until {last}; the order is {order}")
    wanted = [step for step in plan(config, workdir) if begin <= ORDER.index(step.stage) <= end]
    parallel.on_main(lambda: preflight.check_encoders(wanted))
    told: list[Path] = []
    for number, step in enumerate(wanted, 1):
        at = step.workdir
        if step.retriever and at.root not in told:
            there = [one for one in wanted if one.workdir.root == at.root]
            parallel.on_main(functools.partial(preflight.say_needs, config, at, there))
            told.append(at.root)
        of = f" {step.retriever.name}" if step.retriever else ""
        on = f" on {at.set_name}" if at.set_name else ""
        say(f"stage {number} of {len(wanted)}: {step.stage}{of}{on}")
        step = _as_measured(step)
        run_stage(step.stage, step.config, at, step.retriever, source=step.source)
    if last == ORDER[-1]:
        _say_what_is_next(config, workdir)


def run_stage(
    stage: str,
    config: Config,
    workdir: WorkDir,
    retriever: RetrieverDir | None,
    *,
    source: str | None = None,
    like: RetrieverDir | None = None,
) -> None:
    """Runs one stage while holding the lease on what it writes, and keeps the settings.

    Args:
      stage: one of STAGES.
      config: the settings of the retriever, or of the work directory.
      workdir: where.
      retriever: None for prepare, inspect and evaluate.
      source: an encoder that the retriever uses as it comes.
      like: the retriever whose artifacts a new one starts with.

    Raises:
      InputError: as the stage does; a retriever that was not there is not there after it.
      Busy: another process is writing there.
    """
    if retriever is None:
        with lease.held(workdir.home, workdir.remote), _sent(workdir):
            STAGES[stage](config, workdir)
            prepares = stage == "prepare"
            parallel.on_main(lambda: recipes.store_workdir(workdir, config, data=prepares))
        return
    parallel.on_main(lambda: recipes.store_workdir(workdir, config, data=False))
    with (
        lease.held(retriever.home, workdir.remote),
        _sent(workdir),
        _stored(retriever, config, source, like),
    ):
        STAGES[stage](config, retriever)


@contextlib.contextmanager
def _sent(workdir: WorkDir) -> Iterator[None]:
    """Sends what the block wrote to the object storage that the work directory is a copy of."""
    workdir.exchange()
    try:
        yield
    except Preempted:
        if workdir.remote and parallel.is_main():
            workdir.remote.push()
        raise
    if workdir.remote:
        parallel.on_main(workdir.remote.push)


@contextlib.contextmanager
def _stored(
    retriever: RetrieverDir, config: Config, source: str | None, like: RetrieverDir | None
) -> Iterator[None]:
    """Stores the recipe of a retriever; a new one is forgotten where its first stage is refused."""
    is_new = not retriever.file.exists()
    parallel.on_main(lambda: recipes.store(retriever, config, source=source, like=like))
    retriever.workdir.exchange()
    try:
        yield
    except Preempted:
        raise
    except Exception:
        if is_new and parallel.is_main() and retriever.read().get("current", {}) == {}:
            retriever.file.unlink(missing_ok=True)
        raise


def add(config: Config, workdir: WorkDir, passages: str) -> None:
    """Adds passages to the corpus and to every index; run again, it goes on where it was killed.

    Raises:
      InputError: as `update.add` does.
      Busy: another process is writing a retriever.
    """
    _change(workdir, lambda: update.add(config, workdir, passages))


def remove(config: Config, workdir: WorkDir, ids: str) -> None:
    """Takes passages out of the corpus and out of every index; see `add`."""
    _change(workdir, lambda: update.remove(config, workdir, ids))


def _change(workdir: WorkDir, change: Callable[[], None]) -> None:
    with contextlib.ExitStack() as stack:
        for owner in (workdir, *workdir.retrievers()):
            stack.enter_context(lease.held(owner.home, workdir.remote))
        stack.enter_context(_sent(workdir))
        parallel.on_main(change)


def plan(config: Config, workdir: WorkDir) -> list[Step]:
    """Returns the steps of a pipeline in order."""
    data, trains = config.data, bool(config.data.train_files)
    steps = [Step("prepare", workdir, config)]
    for name, source in compared(config, trains).items():
        own = config if name in ("bm25", UNTRAINED) else recipes.for_encoder(config)
        steps += _search(own, workdir.retriever(name), source)
    last = UNTRAINED
    if trains:
        last = MAIN
        steps += _train_and_search(config, workdir.retriever(MAIN))
        for number in range(2, config.rounds + 1):
            own = later_round(config, before=last)
            last = f"round-{number}"
            steps += _train_and_search(own, workdir.retriever(last))
    if config.data.dev:  # where the weight of the two is found
        parts = config.retrieve.parts
        if not trains:
            parts = tuple(UNTRAINED if part == MAIN else part for part in parts)
        own = replace(config, retrieve={"kind": "hybrid", "parts": parts})
        if {*parts} <= {step.retriever.name for step in steps if step.retriever}:
            steps.append(Step("retrieve", workdir.retriever("hybrid"), own))
    own_corpora = _own_corpora(data)
    elsewhere = [
        step
        for name, folder in own_corpora.items()
        for step in _set_steps(config, workdir.question_set(name), folder, steps)
    ]
    only_those = own_corpora.keys() == named.all_test_sets(data).keys()
    if elsewhere and only_those and not (data.passages or trains or data.dev):
        steps = []
    return [*steps, *elsewhere, Step("evaluate", workdir, config)]


def _own_corpora(data: DataConfig) -> dict[str, str]:
    """Returns the test sets that have a corpus of their own, as process 0 sees its files."""
    sets = named.all_test_sets(data)
    own = named.own_corpora(data) if sets and parallel.is_main() else {}
    flags = parallel.of_main(np.array([name in own for name in sets] or [False], np.uint8))
    return {name: path for (name, path), flag in zip(sets.items(), flags, strict=False) if flag}


def _set_steps(config: Config, inside: WorkDir, folder: str, steps: list[Step]) -> list[Step]:
    """Returns the steps that ask the questions of a BEIR folder of its corpus.

    They are those of the pipeline with the same retrievers, without training.

    Args:
      config: of the pipeline.
      inside: the work directory of the set.
      folder: the BEIR folder.
      steps: of the pipeline.
    """
    data = DataConfig(passages=folder, test=folder, on_missing=config.data.on_missing)

    def of_set(own: Config) -> Config:
        return dataclasses.replace(replace(own, index={"queries": None}), data=data, rounds=1)

    found = [Step("prepare", inside, of_set(config))]
    for step in steps:
        if step.retriever and step.stage in ("encode", "index", "retrieve"):
            own, retriever = of_set(step.config), step.retriever
            if step.source is None and retriever.name != "bm25":
                own = own if own.retrieve.kind == "hybrid" else recipes.for_encoder(own)
            here = inside.retriever(retriever.name)
            found.append(Step(step.stage, here, own, step.source, retriever))
    return [*found, Step("evaluate", inside, of_set(config))]


def _as_measured(step: Step) -> Step:
    """Fills in the encoder, or the weight of a hybrid, of the retriever that a step follows."""
    if step.as_in is None:
        return step
    if step.as_in.kind == "hybrid":
        weight = step.config.retrieve.fusion_weight
        if step.config.retrieve.fusion == "linear" and not weight:
            weight = artifacts.read_json(step.as_in.current("weight") / "manifest.json")["weight"]
        return step._replace(config=replace(step.config, retrieve={"fusion_weight": weight}))
    if step.as_in.kind == "dense" and step.source is None:
        return step._replace(source=step.as_in.encoder)
    return step


def compared(config: Config, trains: bool) -> dict[str, str | None]:
    """Returns the names of the retrievers of `compare` with the encoders that they use.

    Without training the encoder as it comes is always among them.

    Raises:
      InputError: an encoder's name is taken, or cannot name files.
    """
    own = {"bm25": None, UNTRAINED: config.model.init}
    found: dict[str, str | None] = {}
    for entry in config.compare if trains else dict.fromkeys([*config.compare, UNTRAINED]):
        if entry in own:
            found[entry] = own[entry]
            continue
        name, equals, source = entry.rpartition("=")
        if not equals:
            name = Path(source).name.split(":")[-1]
        taken = name in (*found, *own, MAIN, "hybrid") or re.fullmatch(r"round-\d+", name)
        if taken or not is_name(name):
            why = "which is taken" if taken else "which cannot name files"
            raise InputError(
                f"compare: {entry} would be named {name!r}, {why}; write NAME={source}, with"
                " another NAME of letters, digits, '.', '_' and '-'"
            )
        found[name] = source
    return found


def later_round(config: Config, *, before: str) -> Config:
    """Returns the settings of a round that mines with the retriever before it, and trains that on.

    ANCE, Xiong et al., 2020, arXiv 2007.00808.
    """
    return replace(
        config,
        mine={"sources": (before,), "enabled": True},
        model={"init": f"retriever:{before}"},
    )


def replace(config: Config, **parts: dict[str, object]) -> Config:
    """Returns the config with some values of some parts replaced."""
    changed = {
        part: dataclasses.replace(getattr(config, part), **values) for part, values in parts.items()
    }
    return dataclasses.replace(config, **changed)


def _train_and_search(config: Config, retriever: RetrieverDir) -> list[Step]:
    learn = [Step(stage, retriever, config) for stage in ("mine", "train")]
    return learn + _search(config, retriever, None)


def _search(config: Config, retriever: RetrieverDir, source: str | None) -> list[Step]:
    """Returns the steps from a retriever's encoder to its runs."""
    is_bm25 = kind_by_name(retriever.name) == "bm25"
    stages = ("index", "retrieve") if is_bm25 else ("encode", "index", "retrieve")
    return [Step(stage, retriever, config, source) for stage in stages]


# --- stages, each with what the pipeline and the command line do around it


def _on_main(stage: Callable[..., None]) -> Callable[..., None]:
    """Runs a stage on one process while the others wait for its files."""
    return lambda *args: parallel.on_main(lambda: stage(*args))


def _mine(config: Config, retriever: RetrieverDir) -> None:
    if store.wants_mining(retriever.workdir, config.mine.enabled):
        mine.run(config, retriever)
    else:
        say("mine: the hard negatives of the training questions are used (mine.enabled)")


def _train(config: Config, retriever: RetrieverDir) -> None:
    """Trains on all processes; the stages after it may need the memory that it took."""
    loop.run(config, retriever)
    host.give_back_memory()


def _encode(config: Config, retriever: RetrieverDir) -> None:
    """Encodes the corpus, and the questions that the index is measured with."""
    encode.run(config, retriever)
    if config.index.queries and not config.encode.questions:
        encode.run(replace(config, encode={"questions": config.index.queries}), retriever)


def _retrieve(config: Config, retriever: RetrieverDir) -> None:
    """Retrieves what is asked for; without being asked, the dev questions and all test sets."""
    if config.retrieve.questions or config.retrieve.split:
        retrieve.run(config, retriever)
        return
    workdir = retriever.workdir
    if "dev" in store.splits(workdir):  # chooses the best retriever; nobody reads it
        own = {"split": "dev", "json_run": False}
        retrieve.run(replace(config, retrieve=own), retriever)
    for name in store.test_sets(workdir):
        retrieve.run(replace(config, retrieve={"split": name}), retriever)


STAGES: dict[str, Callable[..., None]] = {
    "prepare": prepare.run,
    "inspect": _on_main(overview.run),
    "mine": _on_main(_mine),
    "train": _train,
    "encode": _encode,
    "index": _on_main(update.run),
    "index rebalance": _on_main(update.rebalance),
    "retrieve": _retrieve,
    "evaluate": _on_main(evaluate.run),
}


def _say_what_is_next(config: Config, workdir: WorkDir) -> None:
    if not config.data.train_files:
        say(
            "pipeline: nothing was trained: that takes questions with their passages (data.train,"
            " and data.dev to choose by); docs/data.md has the layouts"
        )
    say(
        f'pipeline: done; next: `dpr ask "QUESTION" {workdir.flag}`, or `dpr compare'
        f" A B {workdir.flag}` with two of `dpr retriever list {workdir.flag}`"
    )
