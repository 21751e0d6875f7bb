"""Detects a run that is lost: its loss is no number, or stays far above all it was.

The rule for the second looks at the logged losses alone. A loss of log(candidates) is that of
guessing; a run that was better, or began above it and came down, and then stands at several times
the larger of the two for several logs in a row, does not come back. One bad batch is not enough,
nor is a start with large scores, since both are measured against what the run itself has shown.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from dpr_jax.errors import InputError

IN_A_ROW = 5  # logged losses that must all be too high
WINDOW = 50  # logged losses before them, whose median is what the run has shown
FACTOR = 3.0  # what is too high, in multiples of the median and of guessing


def error(step: int, why: str, ids: str, folder: Path) -> InputError:
    """Returns the error of a run that is lost at an update, whose questions have these ids."""
    return InputError(
        f"training diverged at step {step} ({why}) on the questions with ids {ids}; the"
        f" checkpoints before it are kept in {folder}; try a lower train.learning_rate or"
        " train.clip_norm"
    )


def losses_in_doubt(losses: Sequence[float], candidates: int) -> int:
    """Counts the last logged losses in a row that are far too high; IN_A_ROW means that the run is
    lost.

    Args:
      losses: logged so far, oldest first, all finite; those of a run that was killed and goes on
        included.
      candidates: passages in the global batch.
    """
    before = losses[:-IN_A_ROW][-WINDOW:]
    if len(before) < IN_A_ROW:
        return 0
    limit = FACTOR * max(statistics.median(before), math.log(candidates))
    doubtful = 0
    for loss in reversed(losses[-IN_A_ROW:]):
        if loss <= limit:
            break
        doubtful += 1
    return doubtful
