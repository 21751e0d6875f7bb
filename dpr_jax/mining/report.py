"""Reports on mining: how many passages each rule passed over, and samples to read."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from dpr_jax.console import say
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question

PassageOf = Callable[[int], Passage]

SAMPLES_KEPT = 3  # questions shown with their hard negatives
SAMPLES_PER_RULE = 2  # passages shown per rule
NEGATIVES_PER_SAMPLE = 2
SHOWN_LETTERS = 150


class Report:
    """The counts and samples of one split."""

    def __init__(self, split: str) -> None:
        self._split = split
        self.questions = self.kept = self.without_any = self.without_teacher = 0
        self.passed_over: Counter[str] = Counter()
        self._samples_kept = [""] * SAMPLES_KEPT
        self._samples_passed_over: dict[str, list[str]] = {}
        self._chance = random.Random(0)

    def pass_over(self, rule: str, question: Question, row: int, passage_of: PassageOf) -> None:
        """Counts a passage that a rule passed over."""
        self.passed_over[rule] += 1
        if rule == "gold":
            return
        samples = self._samples_passed_over.setdefault(rule, [""] * SAMPLES_PER_RULE)
        place = self._place(self.passed_over[rule], SAMPLES_PER_RULE)
        if place < SAMPLES_PER_RULE:
            samples[place] = _sample(question, {rule: [row]}, passage_of)

    def keep(self, question: Question, rows: Sequence[int], passage_of: PassageOf) -> None:
        """Counts a question's hard negatives."""
        self.questions += 1
        self.kept += len(rows)
        self.without_any += not rows
        place = self._place(self.questions, SAMPLES_KEPT)
        if rows and place < SAMPLES_KEPT:
            kept = {"hard negative": rows[:NEGATIVES_PER_SAMPLE]}
            self._samples_kept[place] = _sample(question, kept, passage_of)

    def facts(self) -> dict[str, object]:
        """Returns all counts, for the manifest."""
        return {
            "questions": self.questions,
            "hard_negatives": self.kept,
            "without_any": self.without_any,
            "passed_over": dict(self.passed_over),
        }

    def show(self, *, samples: bool) -> None:
        """Prints the counts, and the samples if asked for."""
        rules = ", ".join(f"{n:,} {rule}" for rule, n in self.passed_over.items())
        say(
            f"mine: {self._split}: {self.questions:,} questions, {self.kept:,} hard negatives"
            f" ({self.kept / self.questions:.1f} each); left out: {rules or 'none'}"
        )
        if self.without_any:
            say(
                f"mine: {self._split}: warning: {self.without_any:,} questions have no hard"
                " negative; a larger mine.window may find some"
            )
        if self.without_teacher:
            say(
                f"mine: {self._split}: warning: of {self.without_teacher:,} questions the teacher's"
                " scores are of other negatives than the mined ones; for train.distillation set"
                " mine.teacher, or mine.enabled to False"
            )
        if samples:
            groups = [self._samples_kept, *self._samples_passed_over.values()]
            shown = [sample for group in groups for sample in group if sample]
            say("\n".join(["mine: to read:", *shown]))

    def _place(self, count: int, size: int) -> int:
        """Draws the place of the `count`-th item in a reservoir of `size`; `size` or more: none."""
        return count - 1 if count <= size else self._chance.randrange(count)


def _sample(question: Question, shown: dict[str, Sequence[int]], passage_of: PassageOf) -> str:
    lines = [f"  {question.question}  [{'; '.join(question.answers)}]"]
    for what, rows in ({"gold": question.positives[:1]} | shown).items():
        lines += [f"    {what}: {_start(passage_of(row))}" for row in rows]
    return "\n".join(lines)


def _start(passage: Passage) -> str:
    text = " ".join(f"{passage.title} | {passage.text}".split())
    return text[:SHOWN_LETTERS] + ("..." if len(text) > SHOWN_LETTERS else "")
