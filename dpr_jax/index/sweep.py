"""Finds search-time settings that reach a wanted recall, by measuring few points of the grid."""

import dataclasses
from collections.abc import Callable
from typing import Any

# A stride that adds less will not reach the target: what is missing was lost before, by
# quantization.
SATURATED = 2e-4
STRIDE = 8  # values passed over at first, on the way up
FINALISTS, ROUNDS = 4, 3


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting, measured.

    Attributes:
      settings: those that can change without a new build.
      recall: mean over the tuning queries.
      standard_error: of that mean.
      queries_per_cpu_s: queries per second of processor time, all asked at once, best of several
        times. Other work on the machine disturbs it less than the clock.
    """

    settings: dict[str, int]
    recall: float
    standard_error: float
    queries_per_cpu_s: float

    def reaches(self, target: float) -> bool:
        """Returns whether it has the wanted recall by a standard error.

        Without it, the fastest of many points would be one that was lucky.
        """
        return self.recall - self.standard_error >= target


def ladder(least: int, most: int, *, steps: int) -> list[int]:
    """Returns values to try, from `least` to `most`, `steps` of them per doubling."""
    values = {min(least, most), most}
    step = 0
    while (value := round(least * 2 ** (step / steps))) < most:
        values.add(value)
        step += 1
    return sorted(values)


def sweep(
    measure: Callable[[dict[str, int]], Point],
    knobs: dict[str, list[int]],
    target: float,
) -> list[Point]:
    """Measures points around the border at which the target is reached.

    For each value of the second knob, from the largest down, the least value of the first is looked
    for that reaches the target; where a smaller second value needs a larger first one, either may
    be faster.

    Args:
      measure: settings -> their point.
      knobs: at most two settings and their values, ascending; recall rises with each.
      target: the wanted recall.

    Returns:
      All points measured, in order.
    """
    tried: dict[tuple[int, ...], Point] = {}

    def at(*values: int) -> Point:
        if values not in tried:
            tried[values] = measure(dict(zip(knobs, values, strict=True)))
        return tried[values]

    if not knobs:
        return [at()]
    first, *second = knobs.values()
    for other in reversed(second[0]) if second else [None]:
        others = [] if other is None else [other]
        least = _climb(lambda value, others=others: at(value, *others), first, target)
        if least is None:  # nor will it with a smaller second value
            break
        first = [value for value in first if value >= least]
    return list(tried.values())


def _climb(at: Callable[[int], Point], values: list[int], target: float) -> int | None:
    """Returns the first of `values` whose point reaches the target; None if there is none."""
    low, place, before = 0, 0, -1.0
    while not (point := at(values[place])).reaches(target):
        if place == len(values) - 1 or point.recall - before < SATURATED:
            return None
        low, before = place + 1, point.recall
        place = min(place + STRIDE, len(values) - 1)
    while low < place:
        middle = (low + place) // 2
        if at(values[middle]).reaches(target):
            place = middle
        else:
            low = middle + 1
    return values[place]


def settle(points: list[Point], again: Callable[[Point], Point], target: float) -> list[Point]:
    """Measures the fastest points that reach the target again, in turn.

    A short load of the machine then does not decide which of them is fastest.

    Args:
      again: a point -> the same, its speed the better of its own and of another measurement.
    """
    reached = [point for point in points if point.reaches(target)]
    fastest = sorted(reached, key=lambda point: -point.queries_per_cpu_s)[:FINALISTS]
    timed = {id(point): point for point in fastest}
    for _ in range(ROUNDS):
        timed = {place: again(point) for place, point in timed.items()}
    return [timed.get(id(point), point) for point in points]


def best(points: list[Point], target: float) -> Point:
    """Returns the fastest point that reaches the target; else the one with the largest recall."""
    reached = [point for point in points if point.reaches(target)]
    if reached:
        return max(reached, key=lambda point: point.queries_per_cpu_s)
    return max(points, key=lambda point: (point.recall, point.queries_per_cpu_s))


def to_json(point: Point) -> dict[str, Any]:
    """Returns a point as index.json holds it."""
    return {
        **point.settings,
        "recall_at_100": round(point.recall, 6),
        "standard_error": round(point.standard_error, 6),
        "queries_per_cpu_s": round(point.queries_per_cpu_s, 1),
    }
