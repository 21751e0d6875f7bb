"""Detects a diverged run: its loss is not finite, or stays far above its earlier losses.

The second rule uses the logged losses alone. Random scores have a loss of log(candidates). A run
has diverged if several logged losses in a row are several times the larger of that and of its own
median. A single bad batch is not enough. Nor is a start with large scores, which the median
includes.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from dpr_jax.errors import InputError

IN_A_ROW = 5  # logged losses that must all be too high
WINDOW = 50  # logged losses before them, of which the median is taken
FACTOR = 3.0  # times the larger of the median and log(candidates) is too high


def error(step: int, why: str, ids: str, folder: Path) -> InputError:
    """Returns the error of a run that diverged at an update, whose questions have these ids."""
    return InputError(
        f"training diverged at step {step} ({why}) on the questions with ids {ids}; the"
        f" checkpoints before it are kept in {folder}; try a lower train.learning_rate or"
        " train.clip_norm"
    )


def losses_in_doubt(losses: Sequence[float], candidates: int) -> int:
    """Counts the last logged losses in a row that are too high; IN_A_ROW of them are divergence.

    Args:
      losses: logged so far, oldest first, all finite; with those before a kill.
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
