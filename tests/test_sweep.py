"""The sweep against a model of an engine, of which every point is known."""

import pytest

from dpr_jax.index.sweep import Point, best, ladder, settle, sweep

KNOBS = {
    "leaves_to_search": ladder(1, 400, steps=8),
    "reorder": ladder(100, 1600, steps=2),
}


def engine(settings: dict[str, int]) -> Point:
    """Recall rises with both settings, each bounds it; so does the time."""
    leaves, reorder = settings["leaves_to_search"], settings["reorder"]
    recall = (1 - 0.5 * 0.97**leaves) * (1 - 0.3 * 0.99**reorder)
    return Point(settings, recall, 0.001, 1e6 / (20 * leaves + reorder))


def grid(knobs: dict[str, list[int]] = KNOBS) -> list[Point]:
    first, second = knobs
    return [engine({first: one, second: other}) for one in knobs[first] for other in knobs[second]]


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
def test_finds_the_fastest_point_of_the_whole_grid_with_a_part_of_it(
    target: float,
) -> None:
    points = sweep(engine, KNOBS, target)
    assert best(points, target) == best(grid(), target)
    assert best(points, target).reaches(target)
    assert len(points) < len(grid()) / 4
    assert len({tuple(point.settings.values()) for point in points}) == len(points)


def test_a_target_that_nothing_reaches_ends_early() -> None:
    weak = {"leaves_to_search": ladder(1, 4000, steps=8), "reorder": [100]}
    points = sweep(engine, weak, 0.95)  # with 100 rescored it is 0.89 at most
    assert not any(point.reaches(0.95) for point in points)
    assert best(points, 0.95).recall == max(point.recall for point in points)
    assert points[-1].settings["leaves_to_search"] < 1000


def test_one_knob_and_none() -> None:
    def measure(settings: dict[str, int]) -> Point:
        return Point(settings, 1 - 1 / settings.get("ef_search", 2), 0.0, 1.0)

    points = sweep(measure, {"ef_search": [1, 2, 3, 4, 5, 6, 7, 8, 9]}, 0.8)
    reached = [point.settings["ef_search"] for point in points if point.reaches(0.8)]
    assert min(reached) == 5
    assert sweep(measure, {}, 0.9) == [Point({}, 0.5, 0.0, 1.0)]


def test_a_standard_error_counts_against_a_point() -> None:
    assert Point({}, 0.951, 0.001, 1.0).reaches(0.95)
    assert not Point({}, 0.951, 0.002, 1.0).reaches(0.95)


def test_only_the_fastest_that_reach_the_target_are_timed_again() -> None:
    points = [Point({"a": i}, 0.9 + i / 100, 0.0, 100.0 - i) for i in range(10)]
    timed = []

    def again(point: Point) -> Point:
        timed.append(point.settings["a"])
        return Point(point.settings, point.recall, 0.0, 1000.0)

    settled = settle(points, again, 0.95)
    assert timed == [5, 6, 7, 8] * 3  # in turn
    assert [point.queries_per_cpu_s for point in settled[4:7]] == [96.0, 1000.0, 1000.0]
    assert [point.settings for point in settled] == [point.settings for point in points]


def test_a_ladder_has_both_ends_and_no_step_twice() -> None:
    assert ladder(1, 9, steps=2) == [1, 2, 3, 4, 6, 8, 9]
    assert ladder(100, 100, steps=4) == [100]
    assert ladder(100, 30, steps=4) == [30]
