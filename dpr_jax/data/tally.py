"""Counts what becomes of the rows of a file, by reason, with one example per reason."""

from collections import Counter

NOTABLE_SHARE = 0.01  # of the rows; more than that is said in a line of its own


class Tally(Counter[str]):
    """Counts by reason.

    Attributes:
      examples: reason -> where the first such row is.
      totals: reason -> what it is a part of: `questions`, `negatives`, `gold passages`.
      of: how many there were of each of these.
    """

    def __init__(self) -> None:
        super().__init__(kept=0)
        self.examples: dict[str, str] = {}
        self.totals: dict[str, str] = {}
        self.of: Counter[str] = Counter()

    def drop(self, reason: str, where: str, *, count: int = 1, of: str = "questions") -> None:
        """Counts what is left out."""
        if count:
            self[reason] += count
            self.examples.setdefault(reason, where)
            self.totals[reason] = of

    def report(self) -> str:
        """Returns all counts but the zeros, as `1,500 kept, 3 dropped: no positive passage`."""
        parts = []
        for what, n in self.items():
            if n or what == "kept":
                example = f" (such as {self.examples[what]})" if what in self.examples else ""
                parts.append(f"{n:,} {what}{example}")
        return ", ".join(parts)

    def notable(self) -> list[str]:
        """Returns a line for each reason by which more than NOTABLE_SHARE go."""
        lines = []
        for reason, what in self.totals.items():
            count, total = self[reason], self.of[what]
            if count > NOTABLE_SHARE * total:
                lines.append(
                    f"{count:,} of {total:,} {what} ({100 * count / total:.1f} %) are dropped:"
                    f" {reason.partition(': ')[2] or reason}, such as {self.examples[reason]}"
                )
        return lines
