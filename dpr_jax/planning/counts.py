"""Memory and cycles of a program: read from it, or extrapolated from shallower towers."""

import re
from typing import Any, NamedTuple

import jax

from dpr_jax.planning import compiled
from dpr_jax.planning.machine import Machine

COST_MODEL, PUBLIC = "by XLA's cost model", "a bound from public figures"


class Counts(NamedTuple):
    """One run of a program on a device.

    Attributes:
      state_bytes: what stays from run to run: weights, moments, inputs.
      temporary_bytes: what a run needs besides.
      traffic_bytes: read and written by all kernels.
      collectives: by kind.
      cycles: by the compiler, by part; None where it gives none.
      fits: whether the compiler found room for it; where not, all but the sum of the bytes is
        unknown.
    """

    state_bytes: int
    temporary_bytes: int
    traffic_bytes: int = 0
    collectives: tuple[compiled.Collective, ...] = ()
    cycles: compiled.Cycles | None = None
    fits: bool = True

    @property
    def peak_bytes(self) -> int:
        """State and temporaries."""
        return self.state_bytes + self.temporary_bytes

    def per_layer(self, two: "Counts", layers: int) -> "Counts":
        """Foretells a tower of so many layers by a line through this one, of one layer, and `two`.

        The last layer of a [CLS] tower is cheaper than the others; `two` has one of each.
        """

        def line(one: float, other: float) -> float:
            return one + (layers - 1) * (other - one)

        kinds = {one.kind: one for one in self.collectives}
        cycles = None
        if self.cycles and two.cycles:
            parts = {*self.cycles.by_part, *two.cycles.by_part}
            by_part = {
                part: line(self.cycles.by_part.get(part, 0), two.cycles.by_part.get(part, 0))
                for part in sorted(parts)
            }
            known = self.cycles.total is not None and two.cycles.total is not None
            cycles = two.cycles._replace(
                total=line(self.cycles.total, two.cycles.total) if known else None,
                by_part=by_part,
                charged_cycles=line(self.cycles.charged_cycles, two.cycles.charged_cycles),
            )
        return Counts(
            int(line(self.state_bytes, two.state_bytes)),
            int(line(self.temporary_bytes, two.temporary_bytes)),
            int(line(self.traffic_bytes, two.traffic_bytes)),
            tuple(
                one._replace(bytes=int(line(kinds.get(one.kind, one).bytes, one.bytes)))
                for one in two.collectives
            ),
            cycles,
            self.fits and two.fits,
        )


def read(lowered: jax.stages.Lowered, target: Machine) -> Counts:
    """Compiles a program for `target`, and counts what its text says."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "Used 18.2G of 15.7G hbm", or "temporaries (64.00G) exceeds available HBM (15.75G)"
        used = re.search(r"([\d.]+)([KMGT])(?: of|\) exceeds) ", str(error))
        size = float(used[1]) * 1024 ** "_KMGT".index(used[2]) if used else target.chip.memory_bytes
        return Counts(0, int(size), fits=False)
    memory = program.memory_analysis()
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = compiled.Text(program.as_text())
    chip = target.chip
    cycles = None
    if target.platform == "tpu":
        cycles = compiled.cycles(
            text,
            bytes_per_cycle=chip.memory_rate / chip.clock_hz,
            flops_per_cycle=chip.peak_flops / chip.clock_hz,
        )
    return Counts(
        memory.argument_size_in_bytes,
        extra,
        compiled.traffic(text),
        tuple(compiled.collectives(text)),
        cycles,
    )


def facts(
    counts: Counts, target: Machine, devices: int, flops: float, *, float32: bool = False
) -> dict[str, Any]:
    """Returns what the JSON says of a program, for one run on a device.

    Args:
      counts: of the program.
      target: what it is compiled for.
      devices: that it is mapped over.
      flops: of its matrix products on a device.
      float32: whether they are float32, which GPUs compute at a rate of its own.
    """
    chip = target.chip
    peak = chip.float32_flops if float32 and chip.float32_flops else chip.peak_flops
    found: dict[str, Any] = {
        "state_bytes": counts.state_bytes,
        "temporary_bytes": counts.temporary_bytes,
        "peak_bytes": counts.peak_bytes,
        "memory_bytes": int(chip.memory_bytes),
        "cycles": None,
        "peak_share": None,
        "seconds": None,
        "flops": flops,
        "collectives": [one._asdict() for one in counts.collectives],
        "source": COST_MODEL if target.platform == "tpu" else PUBLIC,
    }
    if not counts.fits:
        return found
    links = sum(_link_seconds(one, devices, chip.link_rate) for one in counts.collectives)
    found["link_seconds"] = links
    if counts.cycles is None:
        by_memory = counts.traffic_bytes / chip.memory_rate
        by_products = flops / peak
        found |= {
            "traffic_bytes": counts.traffic_bytes,
            "memory_seconds": by_memory,
            "product_seconds": by_products,
            "seconds": max(by_memory, by_products) + links,
        }
    else:
        counted = counts.cycles
        found |= {
            "cycles": counted.total,
            "by_part": counted.by_part,
            "charged": [one._asdict() for one in counted.charged],
            "charged_cycles": counted.charged_cycles,
            "unknown": counted.unknown,
        }
        if counted.total is not None:
            found["compute_seconds"] = counted.total / chip.clock_hz
            found["seconds"] = found["compute_seconds"] + links
            # of the matrix units while they are kept busy: without the links
            found["peak_share"] = flops / peak / found["compute_seconds"]
    if found["seconds"]:
        found["link_share"] = links / found["seconds"]
        if found["peak_share"] is None:
            found["peak_share"] = flops / peak / found["seconds"]
    return found


def _link_seconds(one: compiled.Collective, devices: int, rate: float) -> float:
    """Returns the time on the links at their published rate, as if nothing else ran beside it.

    In a ring each device sends its part of what it does not keep; bytes are those of results.
    """
    crossed = (devices - 1) / devices
    times = {"all-reduce": 2 * crossed, "reduce-scatter": devices - 1}.get(one.kind, crossed)
    return times * one.bytes / rate
