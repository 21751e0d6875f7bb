"""What the host finds out for the masks: keys of equal texts, and passages with an answer."""

import itertools

import pytest

from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.data.answers import has_answer
from dpr_jax.training.false_negatives import holds_answer, text_key
from dpr_jax.workdir import WorkDir


def test_equal_but_for_case_and_white_space() -> None:
    assert text_key("The  Moon\n") == text_key("the moon")
    assert text_key("the moon") != text_key("the noon")


def test_keys_are_lasting_numbers_of_31_bits() -> None:
    """Every process computes its own, so they must not depend on one."""
    assert text_key("the moon") == 1_926_291_181
    keys = {text_key(str(number)) for number in range(2000)}
    assert len(keys) == 2000
    assert min(keys) >= 0
    assert max(keys) < 2**31


@pytest.mark.parametrize("match", ["string", "regex"])
def test_answers_are_found_as_has_answer_finds_them(
    match: str, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    _, workdir = nq_small_workdir
    questions = itertools.islice(store.open_questions(workdir, "train"), 40)
    answers = [one.answers for one in questions]
    # none, one without a token, one of several, one that is no pattern
    answers += [(), ("",), ("Zürich!", "the U.S."), ("(",)]
    texts = [one.text for one in itertools.islice(store.open_corpus(workdir), 60)]
    texts += ["", "in the U.S. (and ZU\u0308RICH!)"]
    found = holds_answer(answers, texts, match=match)
    assert found.tolist() == [
        [has_answer(one, text, match=match) for text in texts] for one in answers
    ]
    assert 0.01 < found[:40].mean() < 0.2
