"""Reads the text of a compiled program: the compiler's cycles, collectives, memory traffic.

A loop's body stands once in the text and runs as often as the loop turns, nested loops too. XLA's
TPU compiler gives an estimate of cycles for most instructions; one without an estimate is either
free, or is counted at least at its memory traffic, or makes the sum unknown.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DTYPE_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "token": 0}
NOTED_BYTES = 1 << 20  # of an instruction without an estimate, to be named
ABSURD_CYCLES = 1e15  # XLA's mark of what it cannot estimate
# computed by no unit, or part of another instruction's estimate
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id",
    "after-all", "iota", "broadcast", "copy-start", "copy-done", "slice-start", "slice-done",
    "async-start", "async-update", "async-done", "optimization-barrier", "domain", "add-dependency",
    "call", "while", "conditional", "get-dimension-size", "dynamic-slice-start",
    "dynamic-slice-done", "rng-get-and-update-state",
}  # fmt: skip
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
# custom calls that say something of their operands and compute nothing
NOTES = {
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "Sharding",
    "AllocateBuffer",
    "annotate_device_placement",
}


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: of its result.
      shape: of its result, as text.
      opcode: such as fusion.
      operands: names.
      rest: attributes, as text.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def cycles(self) -> float | None:
        """The compiler's estimate; None where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        cycles = float(found[1]) if found else None
        return None if cycles is None or cycles > ABSURD_CYCLES else cycles

    @property
    def op_name(self) -> str:
        """Where in our code it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, *roles: str) -> list[str]:
        """Names of the computations that it calls in these roles."""
        found = []
        for role in roles:
            for one, many in re.findall(rf"\b{role}=(?:%?([\w.\-]+)|{{([^}}]*)}})", self.rest):
                found += [one] if one else re.findall(r"[\w.\-]+", many)
        return found


class Collective(NamedTuple):
    """Collectives of one kind, in one run of the program.

    Attributes:
      kind: such as all-reduce.
      count: number.
      bytes: results of all of them on a device.
      of: the parts of our code that ask for them.
    """

    kind: str
    count: int
    bytes: int
    of: tuple[str, ...]


class Charge(NamedTuple):
    """An instruction that carries no estimate.

    Attributes:
      what: its kind, or the name of the custom call.
      where: part of our code.
      count: of times in a run.
      bytes: read and written, in all of them.
    """

    what: str
    where: str
    count: int
    bytes: int


class Text:
    """The computations of a compiled program."""

    def __init__(self, text: str) -> None:
        """Parses what `Compiled.as_text` gives."""
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*{$", line)
            if head and not line.startswith((" ", "HloModule")):
                lines = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("  ") and " = " in line and (one := _instruction(line)):
                lines.append(one)
        self.shapes = {
            name: {one.name: one.shape for one in lines}
            for name, lines in self.computations.items()
        }

    def run(self) -> Iterator[tuple[str, Instruction, float]]:
        """Yields every instruction of a run with its computation and how often it runs.

        Instructions inside of fusions are part of the fusion. A loop whose number of turns is not
        in the text makes what it holds run NaN times.
        """
        yield from self._run(self.entry, 1.0)

    def _run(self, name: str, times: float) -> Iterator[tuple[str, Instruction, float]]:
        for one in self.computations[name]:
            yield name, one, times
            inner = times
            if one.opcode == "while":
                trips = re.search(r'"known_trip_count":{"n":"(\d+)"}', one.rest)
                inner = times * int(trips[1]) if trips else math.nan
            roles = {
                "while": ("body", "condition"),
                "conditional": ("branch_computations", "true_computation", "false_computation"),
                "call": ("to_apply", "calls"),
                "async-start": ("calls", "called_computations"),
            }.get(one.opcode, ())
            for callee in one.called(*roles):
                if callee in self.computations:
                    yield from self._run(callee, inner)

    def within(self, one: Instruction) -> list[Instruction]:
        """Returns the instructions of a fusion, those of fusions in it too."""
        found = []
        for callee in one.called("calls") if one.opcode == "fusion" else ():
            for inner in self.computations.get(callee, ()):
                found += [inner, *self.within(inner)]
        return found

    def is_free(self, one: Instruction) -> bool:
        """Returns whether an instruction without an estimate computes nothing, or only sends."""
        if one.opcode == "custom-call":
            return one.target in NOTES
        opcodes = [one.opcode, *(inner.opcode for inner in self.within(one))]
        kinds = {opcode.removesuffix("-start").removesuffix("-done") for opcode in opcodes}
        return bool(kinds & {*COLLECTIVES}) or one.opcode in FREE

    def bytes_of(self, computation: str, one: Instruction) -> int:
        """Returns what an instruction reads and writes; a gather reads what it returns."""
        shapes = self.shapes[computation]
        result = size(one.shape)
        operands = [size(shapes.get(name, "")) for name in {*one.operands}]
        opcodes = {one.opcode, *(inner.opcode for inner in self.within(one))}
        if opcodes & {"gather", "dynamic-slice", "slice"}:
            operands = [min(result, operand) for operand in operands]
        return result + sum(operands)


def _instruction(line: str) -> Instruction | None:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    found = re.match(r"([\w\-]+)\(", rest)
    if not found:
        return None
    close = _closing(rest, found.end() - 1)
    operands = re.findall(r"%([\w.\-]+)", rest[found.end() : close])
    return Instruction(name.lstrip("%"), shape, found[1], tuple(operands), rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns the place of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text) - 1


def size(shape: str) -> int:
    """Returns the bytes of a shape, or of all in a tuple; padding of tiles is not counted."""
    bits = 0
    for dtype, sizes in re.findall(r"\b([a-z]+[0-9]*\w*)\[([0-9,]*)\]", shape):
        width = DTYPE_BITS.get(dtype)
        if width is None:
            number = re.match(r"[a-z]+(\d+)", dtype)
            width = int(number[1]) if number else 0
        bits += width * math.prod(int(n) for n in sizes.split(",") if n)
    return bits // 8


def collectives(text: Text) -> list[Collective]:
    """Returns the collectives of a run, by kind.

    One that the compiler cut into a chain of steps, to run them beside computation, is one.
    """
    seen: dict[tuple[str, str, str], Collective] = {}
    for computation, one, times in text.run():
        for inner in (one, *text.within(one)):
            kind = inner.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or inner.opcode.endswith("-done"):
                continue
            times = 1.0 if math.isnan(times) else times
            chain = re.search(r'chain_id="(\d+)"', inner.rest)
            key = (kind, chain[1], inner.op_name) if chain else (kind, computation, inner.name)
            result = size(inner.shape)
            operands = text.bytes_of(computation, inner) - result
            if inner.opcode.endswith("-start") and result > operands:
                result -= operands  # they stand before the results
            seen[key] = Collective(kind, int(times), int(times * result), (inner.op_name,))
    return [
        Collective(
            kind,
            sum(one.count for one in ones),
            sum(one.bytes for one in ones),
            _asked(name for one in ones for name in one.of),
        )
        for kind in sorted({one.kind for one in seen.values()})
        for ones in [[one for one in seen.values() if one.kind == kind]]
    ]


def _asked(op_names: Iterable[str]) -> tuple[str, ...]:
    """Returns the last two parts of each name, once."""
    return tuple(dict.fromkeys("/".join(name.split("/")[-2:]) for name in op_names if name))


class Cycles(NamedTuple):
    """The compiler's cycles for one run of a program on a device.

    Attributes:
      total: all of them; None where something has neither an estimate nor a bound.
      by_part: the same by part of the program.
      charged: what has no estimate, and is in the total at its memory traffic.
      charged_cycles: their share of the total.
      unknown: why the total is None.
    """

    total: float | None
    by_part: dict[str, float]
    charged: list[Charge]
    charged_cycles: float
    unknown: list[str]


# part by the first pattern that is found in the op_name
PARTS = (
    ("top-k", r"top_k|approx_max|approx_top"),
    ("dropout", r"[dD]ropout|random_bits|threefry|rng_bit|shift_|rng_uniform"),
    ("tables", r"_embeddings"),
    ("LayerNorm", r"LayerNorm"),
    ("products", r"attention_(query|key|value|output)|intermediate|/output(/|$)|product|qd,bd->qb"),
    ("attention", r"attention|layer_\d+|softmax"),
    ("loss", r"jvp\(\)|all_gather|reduce_scatter|nll|transpose\(jvp\(\)\)"),
)


def part_of(one: Instruction, *, trains: bool) -> str:
    """Returns the part of a program that an instruction belongs to, by the name of its source."""
    for part, pattern in PARTS:
        if re.search(pattern, one.op_name):
            return part
    if not one.op_name:
        return "copies" if one.opcode in ("copy", "reshape", "transpose") else "other"
    # an update is written in no module: its operations stand right below the mapping
    update = trains and re.search(r"shard_map/[\w.]+$", one.op_name)
    return "optimizer" if update else "other"


def cycles(text: Text, *, bytes_per_cycle: float, flops_per_cycle: float) -> Cycles:
    """Returns the compiler's estimate for one run.

    What carries none is counted at its memory traffic, a kernel of our own (Pallas) besides at the
    operations that it says it has; a kernel that says nothing makes the total unknown.

    Args:
      text: of a program for a TPU.
      bytes_per_cycle: of the device's memory.
      flops_per_cycle: of its matrix units.
    """
    by_part: Counter[str] = Counter()
    charges: dict[tuple[str, str], Charge] = {}
    charged_cycles, unknown = 0.0, []
    trains = any("transpose(" in one.op_name for _, one, _ in text.run())
    for computation, one, times in text.run():
        where = part_of(one, trains=trains)
        estimate = one.cycles
        if estimate is None:
            if text.is_free(one):
                continue
            moved = text.bytes_of(computation, one)
            estimate = moved / bytes_per_cycle
            if one.target == "tpu_custom_call":
                flops = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', one.rest)
                if not flops:
                    unknown.append(f"kernel {one.name} ({one.op_name}) has no cost_estimate")
                    continue
                estimate = max(estimate, int(flops[1]) / flops_per_cycle)
            if not math.isnan(times):
                charged_cycles += times * estimate
                if one.opcode == "custom-call" or moved >= NOTED_BYTES:
                    key = one.target or one.opcode, where
                    old = charges.get(key, Charge(*key, 0, 0))
                    more = old.count + int(times), old.bytes + int(times * moved)
                    charges[key] = Charge(*key, *more)
        if math.isnan(times):
            unknown.append(f"{one.opcode} {one.name} is in a loop whose turns are not known")
            continue
        by_part[where] += times * estimate
    total = None if unknown else sum(by_part.values())
    return Cycles(total, dict(by_part), [*charges.values()], charged_cycles, unknown)


def traffic(text: Text) -> int:
    """Returns the bytes that all kernels of a run read and write, on a device."""
    total = 0.0
    for computation, one, times in text.run():
        if one.opcode in FREE - {"copy-start", "broadcast", "iota"}:
            continue
        total += (1 if math.isnan(times) else times) * text.bytes_of(computation, one)
    return int(total)
