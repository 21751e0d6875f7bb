"""`dpr plan`: compiles what a config runs on a machine that is not here, and says what it takes.

No figure here is a time on the clock. TPUs: by XLA's cost model. GPUs: a bound from public figures.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpr_jax import artifacts, needs
from dpr_jax.config import Config, TrainConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.model.flops import forward_flops
from dpr_jax.planning import counts, machine, programs, show
from dpr_jax.planning.counts import Counts
from dpr_jax.planning.machine import Machine
from dpr_jax.planning.programs import Model
from dpr_jax.training import setup
from dpr_jax.training.chunking import RESERVE

# what is planned for, where the command line says nothing: the paper's Wikipedia, and Natural
# Questions, which matter where a config gives epochs
COUNTS = {"passages": 21_015_324, "questions": 58_880}
# of accelerators that reading and tokenizing feed, per process (docs/scaling.md, measured)
READ_PER_S = 20_000


def run(
    config: Config,
    topology: str,
    *,
    passages: int,
    questions: int,
    quick: bool = False,
    out: str | None = None,
) -> None:
    """Compiles the programs of `config` for a topology; prints the plan and writes it.

    Args:
      config: of a retriever.
      topology: such as v5e:2x4 or gpu:h100:8.
      passages: of the corpus.
      questions: of training, where the config gives epochs.
      quick: foretell deep towers by one and two layers alone.
      out: JSON file to write; a page goes beside it. None prints alone.

    Raises:
      InputError: an unknown topology or encoder, a missing compiler, or a batch that the devices
        cannot share.
    """
    target = machine.parse(topology)
    _check_output(out)
    model = programs.read_model(config)
    devices = machine.devices(target)
    count = len(devices)
    if config.train.batch_size % count:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, which {count} devices cannot share"
            f" evenly; make it a multiple, such as --train.batch-size {16 * count}"
        )
    hosts = (
        len({device.process_index for device in devices})
        if target.platform == "tpu"
        else (target.shape[0])
    )
    schedule = setup.schedule(config.train, questions)
    say(f"plan: {count} x {target.chip.name}, {hosts} host(s); compiling takes minutes")

    facts: dict[str, Any] = {
        "topology": topology,
        "chip": target.chip._asdict(),
        "devices": count,
        "hosts": hosts,
        "model": {side: shape.__dict__ for side, shape in model.shapes.items()},
        "passages": passages,
    }
    with ThreadPoolExecutor(2) as threads:  # XLA compiles beside Python
        common = (config, model, target, devices)
        search = threads.submit(_search, *common, passages)
        encode = threads.submit(_encode, *common, hosts=hosts, passages=passages, quick=quick)
        facts["train"] = _train(*common, schedule, quick=quick)
        facts["encode"], facts["search"] = encode.result(), search.result()
    width = config.index.dimensions or model.width
    facts["host"] = needs.of_corpus(passages, width, config.index.kind)
    facts["assumptions"] = _assumptions(config, model, facts)
    show.tables(facts)
    if out is not None:
        artifacts.write_json(Path(out), facts)
        page = Path(out).with_suffix(".html")
        with artifacts.atomic_file(page) as partial:
            partial.write_text(show.page(facts), encoding="utf-8")
        say(f"plan: {out} and {page}")


def _check_output(out: str | None) -> None:
    """Raises InputError where the plan could not be written, before minutes of compiling."""
    if out is None:
        return
    path = Path(out)
    if path.suffix != ".json":
        raise InputError(f"--json {out} must end in .json; the page goes beside it as .html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--json {out} cannot be written: {path.absolute().parent} is no folder")


# --- the three programs ----------------------------------------------------------


def _train(
    config: Config,
    model: Model,
    target: Machine,
    devices: list[jax.Device],
    schedule: setup.Schedule,
    *,
    quick: bool,
) -> dict[str, Any]:
    """Plans the update, compiled whole; where it does not fit, with the change that makes it."""
    deep = model.layers > 2
    usable = _usable(target)

    def compile_update(train: TrainConfig, layers: int) -> Counts:
        say(f"plan: compiling the update with {layers} layer(s), {_how(train)}")
        changed = dataclasses.replace(config, train=train)
        cut = model if layers == model.layers else model.cut(layers)
        return counts.read(programs.train(changed, cut, devices, schedule=schedule), target)

    def foretell(train: TrainConfig) -> Counts:
        return compile_update(train, 1).per_layer(compile_update(train, 2), model.layers)

    def compile_whole(train: TrainConfig) -> Counts:
        return foretell(train) if deep and quick else compile_update(train, model.layers)

    def holds(found: Counts) -> bool:
        return found.fits and found.peak_bytes <= usable

    train = config.train
    best = asked = compile_whole(train)
    advice = None
    if not holds(asked):
        advice = _advise(train, len(devices), foretell if deep else compile_whole, usable)
        if advice["change"]:
            train = dataclasses.replace(train, **advice["change"])
            best = compile_whole(train)
        advice["confirmed"] = bool(advice["change"]) and not (deep and quick) and holds(best)

    found = counts.facts(best, target, len(devices), 3 * _flops(model, config, len(devices)))
    seconds = found["seconds"]
    return found | {
        "fits": holds(asked),
        "usable_bytes": int(usable),
        "asked_bytes": asked.peak_bytes,
        "extrapolated": deep and quick,
        "chunk_size": train.chunk_size,
        "remat": train.remat,
        "shard_optimizer": train.shard_optimizer,
        "advice": advice,
        "steps": schedule.total_steps,
        "hours": None if seconds is None else schedule.total_steps * seconds / 3600,
        "largest_batch": _largest_batch(config, best, usable, len(devices)),
        "needless": _needless(found["collectives"], split=train.shard_optimizer),
    }


def _how(train: TrainConfig) -> str:
    """Names what decides the memory of an update."""
    names = [name for name in ("remat", "shard_optimizer") if getattr(train, name)]
    return ", ".join([f"chunk_size {train.chunk_size or 'all'}", *names])


def _advise(
    train: TrainConfig, devices: int, foretell: Callable[[TrainConfig], Counts], usable: float
) -> dict[str, Any]:
    """Finds the change of settings, least costly first, with which an update is foretold to fit.

    Split moments cost time on the links; `remat` and chunks a second forward pass, and chunks fill
    the matrix units less. The largest chunk is foretold by a line through two sizes.
    """

    def foretold(change: dict[str, Any]) -> int:
        found = foretell(dataclasses.replace(train, **change))
        return found.peak_bytes if found.fits else int(max(found.peak_bytes, usable + 1))

    split = {"shard_optimizer": True} if devices > 1 and not train.shard_optimizer else {}
    again = {} if train.chunk_size or train.remat else {"remat": True}
    tried: list[dict[str, Any]] = [{}]  # what was asked for
    for change in (split, again, again | split):
        if change in tried:
            continue
        tried.append(change)
        if (size := foretold(change)) <= usable:
            return {"change": change, "foretold_bytes": size}

    texts = train.batch_size * (1 + train.hard_negatives) // devices
    sizes = [size for size in range(texts - 1, 0, -1) if texts % size == 0] or [1]
    small = sizes[min(len(sizes) - 1, 2)]
    changes = {size: {"chunk_size": size, "remat": False} | split for size in sizes}
    at = {size: foretold(changes[size]) for size in {sizes[0], small}}
    per_text = (at[sizes[0]] - at[small]) / max(sizes[0] - small, 1)
    for size in sizes:
        expected = int(at[small] + per_text * (size - small))
        if expected <= usable:
            return {"change": changes[size], "foretold_bytes": expected}
    return {"change": {}, "foretold_bytes": None}


def _largest_batch(config: Config, best: Counts, usable: float, devices: int) -> dict[str, Any]:
    """Returns the largest global batch that fits: activations grow with it in a line."""
    # as large as the weights, which stand beside two moments; of adapters next to nothing
    gradients = 0 if config.train.lora_rank else best.state_bytes / 3
    per_question = max(best.temporary_bytes - gradients, 1) * devices / config.train.batch_size
    each = max(0, int((usable - best.state_bytes - gradients) / per_question))
    return {"questions_per_device": each, "questions": each * devices, "extrapolated": True}


def _encode(
    config: Config,
    model: Model,
    target: Machine,
    devices: list[jax.Device],
    *,
    hosts: int,
    passages: int,
    quick: bool,
) -> dict[str, Any]:
    """Plans encoding the corpus; every host encodes shards of its own."""
    layers = model.shapes["passage"].num_hidden_layers
    here = machine.of_one_host(target, devices, hosts)
    if quick and layers > 2:
        one, program = (programs.encode(config, model.cut(n), here) for n in (1, 2))
        best = counts.read(one.lowered, target).per_layer(
            counts.read(program.lowered, target), layers
        )
    else:
        program = programs.encode(config, model, here)
        best = counts.read(program.lowered, target)
    lengths = np.full(program.rows // len(here), program.length)
    flops = forward_flops(model.shapes["passage"], lengths, model.own["passage"].pooling)
    found = counts.facts(best, target, len(here), flops)
    seconds = found["seconds"]
    rate = seconds and hosts * program.rows / seconds
    fed = rate and min(rate, READ_PER_S * hosts)
    return found | {
        "fits": best.fits and best.peak_bytes <= _usable(target),
        "extrapolated": quick and layers > 2,
        "rows": program.rows,
        "length": program.length,
        "passages_per_second": rate,
        "device_hours": rate and len(devices) * passages / rate / 3600,
        "hours": fed and passages / fed / 3600,
        "limited_by": fed and ("the host, which reads" if fed < rate else "the devices"),
    }


def _search(
    config: Config, model: Model, target: Machine, devices: list[jax.Device], passages: int
) -> dict[str, Any]:
    """Plans exact search over the whole corpus."""
    width = config.index.dimensions or model.width
    lowered, blocks = programs.search(config, width, passages, devices)
    best = counts.read(lowered, target)
    queries = lowered.args_info[0][1].shape[0]
    rows = -(-passages // blocks // len(devices))
    flops = 2.0 * queries * rows * width
    found = counts.facts(best, target, len(devices), flops, float32=True)
    held = 2 * passages * width // len(devices)
    stays = held <= target.chip.allocated * target.chip.memory_bytes / 2
    seconds = found["seconds"]
    return found | {
        "state_bytes": held,
        "peak_bytes": held + best.temporary_bytes,
        "fits": stays,
        "blocks": blocks,
        "queries": queries,
        "questions_per_second": queries / (seconds * blocks) if stays and seconds else None,
    }


def _usable(target: Machine) -> float:
    """Returns the memory that `dpr train` would use of a chip."""
    return (1 - RESERVE) * target.chip.allocated * target.chip.memory_bytes


# --- what follows ----------------------------------------------------------------


def _needless(found: list[dict[str, Any]], *, split: bool) -> list[str]:
    """Names collectives of an update that it could do without; split weights are gathered."""
    said = []
    for one in found:
        if one["kind"] not in ("all-reduce", "all-gather", "reduce-scatter"):
            said.append(f"{one['count']} {one['kind']} ({', '.join(one['of'])})")
        elif one["kind"] == "all-gather" and one["count"] > 3 and not split:
            said.append(
                f"{one['count']} all-gathers, where vectors and text keys need two or three"
            )
    return said


def _flops(model: Model, config: Config, devices: int) -> float:
    """Returns the operations of one forward pass of both towers on a device.

    Padding is included, but not that of packed rows.
    """
    questions = config.train.batch_size // devices
    rows = {"question": questions, "passage": questions * (1 + config.train.hard_negatives)}
    packed = config.train.pack_rows
    return sum(
        forward_flops(
            model.shapes[side],
            np.full(count, programs.tokens_of(model, side) if packed else own.max_tokens),
            own.pooling,
        )
        for side, own in model.own.items()
        for count in (rows[side],)
    )


def _assumptions(config: Config, model: Model, facts: dict[str, Any]) -> list[str]:
    """Returns what the figures take for granted."""
    means = [programs.tokens_of(model, side) for side in ("question", "passage")]
    limits = [model.own[side].max_tokens for side in ("question", "passage")]
    packed = config.train.pack_rows
    encoded = facts["encode"]["length"]
    said = [
        f"training texts of {means[0]} and {means[1]} tokens are packed"
        if packed
        else f"training texts are padded to {limits[0]} and {limits[1]} tokens",
        f"passages of {means[1]} tokens are encoded in rows of {encoded}",
        f"a process reads {READ_PER_S:,} passages per second",
        "collectives run beside nothing, at the published rate of the links",
        f"{1 - RESERVE:.0%} of the memory that JAX takes may be used, as `dpr train` does",
    ]
    if config.train.total_steps is None and config.train.epochs is None:
        said.append("the number of updates is the default")
    return said
