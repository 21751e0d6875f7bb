"""`dpr plan`: compiles what a config runs on a machine that is not here, and says what it takes.

No figure here is a time on the clock. TPUs: by XLA's cost model. GPUs: a bound from public figures.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.model.flops import forward_flops
from dpr_jax.planning import compiled, machine, needs, programs, show
from dpr_jax.planning.machine import Machine
from dpr_jax.planning.programs import Model
from dpr_jax.training import setup
from dpr_jax.training.chunking import RESERVE

# what is planned for, where the command line says nothing: the paper's Wikipedia, and Natural
# Questions, which matter where a config gives epochs
COUNTS = {"passages": 21_015_324, "questions": 58_880}
# of accelerators that reading and tokenizing feed, per process (docs/scaling.md, measured)
READ_PER_S = 20_000
COST_MODEL, PUBLIC = "by XLA's cost model", "a bound from public figures"


class Reading(NamedTuple):
    """What a compiled program says.

    Attributes:
      state_bytes: arguments that stay from run to run, on a device.
      temporary_bytes: what a run needs besides.
      text: of the program; None where it did not fit into the memory of the compiler's device.
    """

    state_bytes: int
    temporary_bytes: int
    text: compiled.Text | None

    @property
    def peak_bytes(self) -> int:
        """State and temporaries."""
        return self.state_bytes + self.temporary_bytes


def run(config: Config, topology: str, *, passages: int, questions: int, out: str | None) -> None:
    """Compiles the programs of `config` for a topology; prints the plan and writes it.

    Args:
      config: of a retriever.
      topology: such as v5e:2x4 or gpu:h100:8.
      passages: of the corpus.
      questions: of training, where the config gives epochs.
      out: JSON file to write; a page goes beside it. None prints alone.

    Raises:
      InputError: an unknown topology or encoder, a missing compiler, or a batch that the devices
        cannot share.
    """
    target = machine.parse(topology)
    model = programs.read_model(config)
    devices = machine.devices(target)
    count = len(devices)
    if config.train.batch_size % count:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, which {count} devices cannot share"
            f" evenly; make it a multiple, such as --train.batch-size {16 * count}"
        )
    if out is not None and Path(out).suffix == ".html":
        raise InputError(f"--json {out} ends in .html, as the page beside it does; name FILE.json")
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
        "model": model.shape.__dict__,
        "passages": passages,
    }
    with ThreadPoolExecutor(2) as threads:  # XLA compiles beside Python
        search = threads.submit(_search, config, model, target, devices, passages)
        encode = threads.submit(_encode, config, model, target, devices, hosts, passages)
        facts["train"] = _train(config, model, target, devices, schedule)
        facts["encode"], facts["search"] = encode.result(), search.result()
    width = config.index.dimensions or model.shape.hidden_size
    facts["host"] = needs.of_host(passages, width, config.index.kind)
    facts["assumptions"] = _assumptions(config, model, facts)
    show.tables(facts)
    if out is not None:
        artifacts.write_json(Path(out), facts)
        page = Path(out).with_suffix(".html")
        with artifacts.atomic_file(page) as partial:
            partial.write_text(show.page(facts), encoding="utf-8")
        say(f"plan: {out} and {page}")


# --- the three programs ----------------------------------------------------------


def _train(
    config: Config,
    model: Model,
    target: Machine,
    devices: list[jax.Device],
    schedule: setup.Schedule,
) -> dict[str, Any]:
    """Plans the update: how it fits is foretold by one and two layers, then compiled whole."""
    layers = model.shape.num_hidden_layers
    usable = (1 - RESERVE) * target.chip.allocated * target.chip.memory_bytes

    def reading(layers: int, chunk_size: int | None) -> Reading:
        say(f"plan: compiling the update, {layers} layer(s), chunk {chunk_size or 'all'}")
        lowered = programs.train(
            config, model.cut(layers), devices, schedule=schedule, chunk_size=chunk_size
        )
        return _read(lowered)

    def foretold(chunk_size: int | None) -> Reading:
        if layers <= 2:
            return reading(layers, chunk_size)
        one, two = reading(1, chunk_size), reading(2, chunk_size)
        return Reading(
            *(int(a + (layers - 1) * (b - a)) for a, b in zip(one[:2], two[:2], strict=True)), None
        )

    asked = config.train.chunk_size
    expected = foretold(asked)
    chunk_size, advice = asked, None
    if expected.peak_bytes > usable:
        chunk_size, advice = _advice(config, devices, expected, foretold, usable)
    whole = reading(layers, chunk_size)
    confirmed = whole.text is not None and whole.peak_bytes <= usable

    flops = 3 * _flops(model, config, len(devices))
    facts = _facts(whole, target, len(devices), flops)
    seconds = facts["seconds"]
    facts |= {
        "fits": confirmed if advice is None else expected.peak_bytes <= usable,
        "usable_bytes": int(usable),
        "foretold_bytes": expected.peak_bytes,
        "chunk_size": chunk_size,
        "advice": advice and {**advice, "confirmed": confirmed},
        "steps": schedule.total_steps,
        "hours": None if seconds is None else schedule.total_steps * seconds / 3600,
        "largest_batch": _largest_batch(config, model, whole, usable, len(devices)),
        "needless": _needless(facts["collectives"]),
    }
    return facts


def _advice(
    config: Config,
    devices: list[jax.Device],
    expected: Reading,
    foretold: Any,
    usable: float,
) -> tuple[int | None, dict[str, Any]]:
    """Returns the largest chunk that is foretold to fit, by a line through two chunk sizes."""
    texts = config.train.batch_size * (1 + config.train.hard_negatives) // len(devices)
    sizes = [size for size in range(texts - 1, 0, -1) if texts % size == 0]
    if not sizes or expected.state_bytes > usable:
        return config.train.chunk_size, {
            "chunk_size": None,
            "why": "weights, gradients and moments alone do not fit: a smaller encoder, or chips"
            " with more memory",
        }
    low = sizes[-1]
    at_low = foretold(low).peak_bytes
    high = sizes[0]
    at_high = foretold(high).peak_bytes if high > low else at_low
    slope = (at_high - at_low) / max(high - low, 1)
    fitting = [size for size in sizes if at_low + slope * (size - low) <= usable]
    if not fitting:
        return low, {
            "chunk_size": None,
            "why": f"even one text at a time is foretold to take {at_low / 1e9:.1f} GB",
        }
    best = fitting[0]
    return best, {
        "chunk_size": best,
        "foretold_bytes": int(at_low + slope * (best - low)),
        "why": "all texts at once do not fit; with this chunk_size they do, for a second forward"
        " pass",
    }


def _largest_batch(
    config: Config, model: Model, whole: Reading, usable: float, devices: int
) -> dict[str, Any]:
    """Returns the largest global batch that fits, as activations grow with it in a line."""
    weights = whole.state_bytes / 3  # beside AdamW's two moments; gradients are as large
    per_question = max(whole.temporary_bytes - weights, 1) * devices / config.train.batch_size
    each = max(0, int((usable - whole.state_bytes - weights) / per_question))
    return {"questions_per_device": each, "questions": each * devices, "extrapolated": True}


def _encode(
    config: Config,
    model: Model,
    target: Machine,
    devices: list[jax.Device],
    hosts: int,
    passages: int,
) -> dict[str, Any]:
    """Plans encoding the corpus."""
    program = programs.encode(config, model, devices, hosts)
    whole = _read(program.lowered)
    here = len(devices) // hosts
    lengths = np.full(program.rows // here, program.length)
    flops = forward_flops(model.shape, lengths, model.passage.pooling)
    facts = _facts(whole, target, here, flops)
    usable = (1 - RESERVE) * target.chip.allocated * target.chip.memory_bytes
    seconds = facts["seconds"]
    rate = None if seconds is None else hosts * program.rows / seconds
    fed = None if rate is None else min(rate, READ_PER_S * hosts)
    return facts | {
        "fits": whole.text is not None and whole.peak_bytes <= usable,
        "rows": program.rows,
        "length": program.length,
        "passages_per_second": rate,
        "hours_of_devices": rate and passages / rate / 3600,
        "hours": fed and passages / fed / 3600,
        "limited_by": None
        if rate is None
        else ("the host's reading thread" if fed < rate else "the devices"),
    }


def _search(
    config: Config, model: Model, target: Machine, devices: list[jax.Device], passages: int
) -> dict[str, Any]:
    """Plans exact search over the whole corpus."""
    width = config.index.dimensions or model.shape.hidden_size
    lowered, blocks = programs.search(config, width, passages, devices)
    whole = _read(lowered)
    queries = lowered.args_info[0][1].shape[0]
    rows = -(-passages // blocks // len(devices))
    facts = _facts(whole, target, len(devices), 2.0 * queries * rows * width)
    held = 2 * passages * width // len(devices)
    free = target.chip.allocated * target.chip.memory_bytes
    seconds = facts["seconds"]
    stays = held <= free / 2
    return facts | {
        "state_bytes": held,
        "peak_bytes": held + whole.temporary_bytes,
        "fits": stays,
        "blocks": blocks,
        "queries": queries,
        "questions_per_second": queries / (seconds * blocks) if stays and seconds else None,
    }


# --- what all of them say --------------------------------------------------------


def _read(lowered: jax.stages.Lowered) -> Reading:
    """Compiles, and reads memory and text; a program too large for the device says its size."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        size = float(used[1]) * 1024 ** "_KMGT".index(used[2])
        return Reading(0, int(size), None)
    memory = program.memory_analysis()
    state = memory.argument_size_in_bytes
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Reading(state, extra, compiled.Text(program.as_text()))


def _facts(whole: Reading, target: Machine, devices: int, flops: float) -> dict[str, Any]:
    """Returns what the text of a program says, for one run on a device.

    Args:
      whole: the program.
      target: what it is compiled for.
      devices: that it is mapped over.
      flops: of its matrix products on a device.
    """
    chip = target.chip
    facts: dict[str, Any] = {
        "state_bytes": whole.state_bytes,
        "temporary_bytes": whole.temporary_bytes,
        "peak_bytes": whole.peak_bytes,
        "memory_bytes": int(chip.memory_bytes),
        "cycles": None,
        "peak_share": None,
        "seconds": None,
        "collectives": [],
        "flops": flops,
        "source": COST_MODEL if target.platform == "tpu" else PUBLIC,
    }
    if whole.text is None:
        return facts
    found = compiled.collectives(whole.text)
    links = sum(_link_seconds(one, devices, chip.link_rate) for one in found)
    facts["collectives"] = [one._asdict() for one in found]
    facts["link_seconds"] = links
    if target.platform == "gpu":
        moved = compiled.traffic(whole.text)
        by_memory, by_products = moved / chip.memory_rate, flops / chip.peak_flops
        facts |= {
            "traffic_bytes": moved,
            "memory_seconds": by_memory,
            "product_seconds": by_products,
            "seconds": max(by_memory, by_products) + links,
        }
    else:
        counted = compiled.cycles(whole.text, bytes_per_cycle=chip.memory_rate / chip.clock_hz)
        facts |= {
            "cycles": counted.total,
            "by_part": counted.by_part,
            "charged": [one._asdict() for one in counted.charged],
            "charged_cycles": counted.charged_cycles,
            "unknown": counted.unknown,
        }
        if counted.total is not None:
            facts["compute_seconds"] = counted.total / chip.clock_hz
            facts["seconds"] = facts["compute_seconds"] + links
    if facts["seconds"]:
        facts["peak_share"] = flops / chip.peak_flops / facts["seconds"]
        facts["link_share"] = links / facts["seconds"]
    return facts


def _link_seconds(one: compiled.Collective, devices: int, rate: float) -> float:
    """Returns the time on the links at their published rate, as if nothing else ran beside it."""
    crossed = (devices - 1) / devices
    times = {"all-reduce": 2 * crossed, "reduce-scatter": devices - 1}.get(one.kind, crossed)
    return times * one.bytes / rate


def _needless(found: list[dict[str, Any]]) -> list[str]:
    """Names collectives of an update that it could do without."""
    said = []
    for one in found:
        if one["kind"] not in ("all-reduce", "all-gather", "reduce-scatter"):
            said.append(f"{one['count']} {one['kind']} ({', '.join(one['of'])})")
        elif one["kind"] == "all-gather" and one["count"] > 3:
            said.append(
                f"{one['count']} all-gathers, where vectors and text keys need two or three"
            )
    return said


def _flops(model: Model, config: Config, devices: int) -> float:
    """Operations of one forward pass of both towers on a device, padding included."""
    questions = config.train.batch_size // devices
    passages = questions * (1 + config.train.hard_negatives)
    return sum(
        forward_flops(model.shape, np.full(rows, own.max_tokens), own.pooling)
        for rows, own in ((questions, model.question), (passages, model.passage))
    )


def _assumptions(config: Config, model: Model, facts: dict[str, Any]) -> list[str]:
    """Returns what the figures take for granted."""
    said = [
        (
            f"every training text is padded to its limit ({model.question.max_tokens} and"
            f" {model.passage.max_tokens} tokens)"
        ),
        (
            f"passages of {programs.MEAN_TOKENS} tokens are encoded in rows of"
            f" {facts['encode']['length']}"
        ),
        f"a process reads {READ_PER_S:,} passages per second",
        "collectives run beside nothing, at the published rate of the links",
        f"{1 - RESERVE:.0%} of the memory that JAX takes may be used, as `dpr train` does",
    ]
    if config.train.total_steps is None and config.train.epochs is None:
        said.append("the number of updates is the default")
    return said
