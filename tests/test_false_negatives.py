"""The keys by which a device knows equal texts."""

from dpr_jax.training.false_negatives import text_key


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
