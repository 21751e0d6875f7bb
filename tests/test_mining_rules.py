"""Which candidates become hard negatives, rule by rule."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from dpr_jax.config import Teacher
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.mining import rules
from dpr_jax.mining.rules import Ranking, Rules

TEXTS = [
    "The gold one is here.",
    "the  gold ONE is here!",
    "Paris it is",
    "wrong",
    "other",
    "more",
]
TEACHER_ERRORS = [
    (lambda q, p: [0.5], r"mine.teacher gave float64\[1\] for the 2 passages"),
    (lambda q, p: [True, False], r"gave bool\[2\] .* one finite number each"),
    (lambda q, p: [0.5, float("nan")], "one finite number each"),
]
RULES = Rules(depth=2, match="string")


def passage_of(row: int) -> Passage:
    return Passage(f"P{row}", f"title {row}", TEXTS[row])


def pick(
    rows: Sequence[int], given: Rules = RULES, near: Sequence[int] = (), **changes
) -> tuple[tuple[int, ...], dict[str, int]]:
    question = Question("0", "q", ("paris",), (0,), (), ())._replace(**changes)
    count: Counter[str] = Counter()
    kept = rules.hard_negatives(
        question,
        {row: row in near for row in rows},
        passage_of,
        given,
        lambda rule, row: count.update([rule]),
    )
    return kept, dict(count)


def test_each_rule_passes_over_what_is_no_negative() -> None:
    kept, count = pick([2, 3, 0, 1, 4, 5])
    assert kept == (3, 4)  # and 5 was not looked at
    assert count == {"with an answer": 1, "gold": 1, "near copies of a gold passage": 1}
    assert pick([5, 3, 4])[0] == (5, 3)  # in the order they came
    assert pick([2, 3], answers=())[0] == (2, 3)  # no answers known
    assert pick([2, 0, 1])[0] == ()
    kept, count = pick([3, 4, 0, 5], near=[3, 0])
    assert kept == (4, 5)
    assert count == {"scoring near the gold passage": 1, "gold": 1}


def test_answers_may_be_patterns() -> None:
    given = RULES._replace(match="regex")
    assert pick([3, 4], given, answers=(r"wr.ng",))[0] == (4,)


def test_the_title_is_no_answer() -> None:
    assert pick([3, 4], answers=("title",))[0] == (3, 4)


def test_near_copies_share_runs_of_five_words() -> None:
    gold = rules.word_runs("a b c d e f g h")  # four runs
    assert len(gold) == 4

    def copy(text: str) -> bool:
        return rules.near_copy(text, [gold])

    # three of the four in common: the words moved, and others around them
    assert copy("x y A, b c d e f g z")
    assert not copy("x y a b c d e f z")  # two of the four
    assert copy("c d e f g")  # a part of the gold passage
    assert copy("z z z a b c d e f g h z z z")  # holds all of it
    assert not copy("h g f e d c b a")
    assert not copy("") and not copy("a b")
    assert rules.near_copy("Two words", [gold, rules.word_runs("two words.")])
    assert rules.near_copy("", [rules.word_runs("...")])
    assert not rules.near_copy("a", [])


def ranking(scores: list[float], rows: list[int]) -> Ranking:
    return Ranking(np.array(scores, np.float32), np.array(rows, np.int64))


def propose(
    *rankings: Ranking,
    skip: int = 0,
    relative: float | None = None,
) -> dict[int, bool]:
    return rules.candidates(rankings, 7, skip=skip, relative_margin=relative)


def test_several_rankings_take_turns() -> None:
    one, other = ranking([3, 2, 1], [4, 5, 6]), ranking([9, 8, -np.inf], [5, 8, -1])
    assert list(propose(one)) == [4, 5, 6]
    assert list(propose(one, other)) == [4, 5, 8, 6]
    assert list(propose(other, one)) == [5, 4, 8, 6]
    assert list(propose(one, other, skip=1)) == [5, 8, 6]
    assert list(propose(one, skip=3)) == list(propose()) == []


def test_margins_to_the_gold_passages_score() -> None:
    near = ranking([12, 10, 9.5, 9, 4], [1, 7, 2, 3, 4])
    assert not any(propose(near).values())
    assert propose(near, relative=0) == {
        1: True,
        7: False,
        2: False,
        3: False,
        4: False,
    }
    too_near = {row for row, near in propose(near, relative=0.1).items() if near}
    assert too_near == {1, 7, 2}  # 3 is just far enough
    # of a negative score a share is below it too
    below = ranking([-9, -10, -10.5, -12], [1, 7, 2, 3])
    assert propose(below, relative=0.1) == {1: True, 7: True, 2: True, 3: False}
    # whichever ranking finds it too near; a gold passage that is not found is below all that are
    far, without = ranking([20, 1], [7, 1]), ranking([5, 4], [1, 2])
    assert propose(far, near, relative=0.1)[1]
    assert propose(without, relative=0.0) == {1: True, 2: True}
    # the gold passage counts though it is among those left out
    assert propose(far, skip=1, relative=0.1) == {1: False}


def test_the_users_filter_is_asked_for_what_passes_the_rules() -> None:
    asked: list[tuple[str, list[tuple[str, str]]]] = []

    def keep(question: str, passages: list[tuple[str, str]]) -> list[bool]:
        asked.append((question, passages))
        return [text != "wrong" for _, text in passages]

    kept, count = pick([2, 3, 0, 4, 5], RULES._replace(filter=keep))
    assert kept == (4, 5) and count["refused by mine.filter"] == 1
    batches = [[text for _, text in passages] for _, passages in asked]
    assert batches == [["wrong", "other"], ["more"]]
    assert asked[0][0] == "q" and asked[0][1][0] == ("title 3", "wrong")
    refusing = RULES._replace(filter=lambda _, passages: [False] * len(passages))
    assert pick([3, 4, 5], refusing)[0] == ()


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (lambda q, p: [True], r"gave bool\[1\] for the 2 passages of question '0'"),
        (lambda q, p: [0.5, 0.1], r"gave float64\[2\]"),
        (lambda q, p: None, "must give one True or False each"),
    ],
)
def test_a_filter_that_does_not_judge(filter, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick([3, 4], RULES._replace(filter=filter))


def test_the_users_teacher_scores_by_row() -> None:
    question = Question("0", "q", (), (3,), (), ())

    def teacher(asked: str, passages: list[tuple[str, str]]) -> np.ndarray:
        assert (asked, passages[0]) == ("q", ("title 3", TEXTS[3]))
        return np.array([2, 1], np.float32)

    found = rules.teacher_scores(teacher, question, (3, 5), passage_of)
    assert found == ((3, 2.0), (5, 1.0))


@pytest.mark.parametrize(("teacher", "message"), TEACHER_ERRORS)
def test_a_teacher_that_does_not_score(teacher: Teacher, message: str) -> None:
    question = Question("0", "q", (), (3,), (), ())
    with pytest.raises(InputError, match=message):
        rules.teacher_scores(teacher, question, (3, 5), passage_of)


@pytest.mark.parametrize("key", ["mine.teacher", "mine.filter"])
def test_an_error_of_the_users_function_keeps_its_traceback(key: str) -> None:
    def broken(question: str, passages: list[tuple[str, str]]) -> list[float]:
        return [1 / 0]

    question = Question("q7", "q", (), (0,), (), ())
    with pytest.raises(ZeroDivisionError) as caught:
        if key == "mine.teacher":
            rules.teacher_scores(broken, question, [0, 3], passage_of)
        else:
            given = Rules(depth=2, match="string", filter=broken)
            rules.hard_negatives(question, {3: False}, passage_of, given, lambda *_: None)
    assert caught.value.__notes__ == [f"{key} failed on question 'q7'"]
    assert caught.traceback[-1].name == "broken"
