"""The state of a run besides its weights: the best validation, and how long ago it was."""

from typing import NamedTuple

# the metrics a best checkpoint can be chosen by, and whether more is better
HIGHER_IS_BETTER = {
    "nll": False,
    "accuracy": True,
    "average_rank": False,
    "recall_at_1": True,
    "recall_at_20": True,
}


class Progress(NamedTuple):
    """Stands in every checkpoint, so that a resumed run decides as an unbroken one.

    Attributes:
      validation: of the weights of this step, by metric; empty where they were not validated.
      best_step: updates done at the best validation so far; 0 for none.
      best_value: its metric.
      since_best: validations in a row that were no better.
    """

    validation: dict[str, float]
    best_step: int
    best_value: float
    since_best: int

    def validated(self, step: int, validation: dict[str, float], metric: str) -> "Progress":
        """Returns the progress after one more validation; among equals the first stays the best."""
        value = validation[metric]
        sign = 1 if HIGHER_IS_BETTER[metric] else -1
        if not self.best_step or sign * value > sign * self.best_value:
            return Progress(validation, step, value, 0)
        return self._replace(validation=validation, since_best=self.since_best + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Returns whether `patience` validations in a row were no better; never for None."""
        return patience is not None and patience <= self.since_best


START = Progress(validation={}, best_step=0, best_value=0.0, since_best=0)
