"""The range that a setting may have, written beside its field (Annotated)."""

from typing import Annotated, NamedTuple


class Bounds(NamedTuple):
    """The range of a number, or of each number of a tuple; config_rules.validate checks it.

    Attributes:
      least: smallest value allowed.
      most: largest value allowed.
      above: values must be greater.
      below: values must be smaller.
      unit: what the number is, for messages.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""


Count = Annotated[int, Bounds(least=0)]
Positive = Annotated[int, Bounds(least=1)]
Share = Annotated[float, Bounds(above=0, most=1)]
Rate = Annotated[float, Bounds(above=0)]
