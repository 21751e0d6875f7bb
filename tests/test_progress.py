"""Which validation is the best, and when a run has waited long enough for a better one."""

import pytest

from dpr_jax.training.progress import START, Progress


def after(values: list[float], metric: str) -> Progress:
    progress = START
    for step, value in enumerate(values, 1):
        progress = progress.validated(step, {metric: value}, metric)
    return progress


@pytest.mark.parametrize(
    ("metric", "values"),
    [("nll", [2.0, 1.0, 1.0, 1.5]), ("accuracy", [0.1, 0.7, 0.7, 0.2])],
)
def test_the_first_of_the_best_stays(metric: str, values: list[float]) -> None:
    progress = after(values, metric)
    assert progress.best_step == 2
    assert progress.best_value == values[1]
    assert progress.since_best == 2
    assert progress.validation == {metric: values[3]}


def test_patience_counts_validations_that_were_no_better() -> None:
    assert not after([2.0, 3.0], "nll").exhausted(2)
    assert after([2.0, 3.0, 3.0], "nll").exhausted(2)
    assert not after([2.0, 3.0, 3.0], "nll").exhausted(None)
    assert not START.exhausted(1)
