"""Which losses end a run: not those of normal training, its start, one bad batch or a restart."""

import numpy as np
import pytest

from dpr_jax.training.divergence import IN_A_ROW, losses_in_doubt

CANDIDATES = 16
GUESSING = np.log(CANDIDATES)
GOOD = [2.0, 1.8, 1.9, 1.5, 1.6, 1.2, 1.3, 1.0, 1.1, 0.9]
HIGH = 3.1 * GUESSING


def counts(losses: list[float]) -> list[int]:
    """What is said after each loss."""
    return [losses_in_doubt(losses[: n + 1], candidates=CANDIDATES) for n in range(len(losses))]


def test_a_loss_that_stays_far_too_high_is_counted_to_the_end() -> None:
    found = counts([*GOOD, *[HIGH] * IN_A_ROW])
    assert found == [0] * len(GOOD) + [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "losses",
    [
        [1.0],
        [HIGH, 1.0] * 20,
        # from one bad batch it comes back, time and again
        [*GOOD, HIGH, HIGH, HIGH, HIGH, 1.2, HIGH, HIGH, HIGH, HIGH, 1.2],
        # large scores at the start, as of vectors that nothing scales
        [300.0, 280.0, 290.0, 250.0, 270.0, 200.0, 100.0, 40.0, 9.0, 3.0, 1.0],
        # a loss near zero may grow a thousandfold, as long as it is not worse than a guess
        [1e-3] * 10 + [GUESSING] * 10,
        # a run that began in the high and stays there is bad, but not worse than it was
        [HIGH] * 30,
    ],
)
def test_what_is_no_divergence(losses: list[float]) -> None:
    assert max(counts(losses)) < IN_A_ROW


def test_the_median_is_that_of_the_losses_shortly_before() -> None:
    risen = [1.0] * 100 + list(np.linspace(1.0, HIGH, 200)) + [HIGH] * 50
    assert max(counts(risen)) == 0
    assert counts([*risen, *[4 * HIGH] * IN_A_ROW])[-1] == IN_A_ROW
