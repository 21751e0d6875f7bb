"""The loss and its masks on tables worked by hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.training import loss


def test_nll_by_hand() -> None:
    # softmax over scores ln 1, ln 2, ln 3, ln 4: the shares are .1 .2 .3 .4
    scores_BP = jnp.log(jnp.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]))
    everything = jnp.ones((2, 4), bool)
    found = loss.nll(scores_BP, jnp.array([3, 1]), everything)
    np.testing.assert_allclose(found, -np.log([0.4, 0.3]), rtol=1e-6)


def test_nll_leaves_out_what_is_not_usable() -> None:
    scores_BP = jnp.log(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    usable_BP = jnp.array([[True, True, False, False]])
    found = loss.nll(scores_BP, jnp.array([1]), usable_BP)
    np.testing.assert_allclose(found, -np.log([2 / 3]), rtol=1e-6)


def test_nll_of_large_scores_is_finite() -> None:
    scores_BP = jnp.array([[500.0, 400.0]])
    found = loss.nll(scores_BP, jnp.array([1]), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(found, [100.0])


def test_accuracy_ignores_masked_passages() -> None:
    scores_BP = jnp.array([[1.0, 9.0, 2.0], [5.0, 1.0, 2.0]])
    usable_BP = jnp.array([[True, False, True], [True, True, True]])
    found = loss.first_is_label(scores_BP, jnp.array([2, 1]), usable_BP)
    assert found.tolist() == [True, False]


def test_usable_by_hand() -> None:
    texts_P = jnp.array([10, 11, 20, 10, 30, -1])
    positives_BM = jnp.array([[10, -2], [20, 30], [30, -2]])
    label_B = jnp.array([0, 2, 4])
    known_BP = loss.same_text(positives_BM, texts_P)
    assert known_BP.astype(int).tolist() == [
        [1, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 1, 0],
    ]
    masked = loss.usable(texts_P >= 0, label_B, known_BP)
    assert masked.astype(int).tolist() == [
        [1, 1, 1, 0, 1, 0],  # its own positive again at 3; a dummy at 5
        [1, 1, 1, 1, 0, 0],  # its second positive at 4
        [1, 1, 1, 1, 1, 0],
    ]
    whole = loss.usable(texts_P >= 0, label_B)
    assert whole.astype(int).tolist() == [[1, 1, 1, 1, 1, 0]] * 3


def test_a_label_always_stands() -> None:
    found = loss.usable(jnp.array([False, True]), jnp.array([0]))
    assert found.tolist() == [[True, True]]


NOTHING = np.nan


def test_kl_from_teacher_by_hand() -> None:
    # the student's shares are .5 .25 .25, the teacher's .25 .5 .25
    scores_BG = jnp.log(jnp.array([[2.0, 1.0, 1.0], [2.0, 1.0, 7.0], [1.0, 2.0, 3.0]]))
    teacher_BG = jnp.log(jnp.array([[1.0, 2, 1], [1, 3, NOTHING], [5, 5, 5]]))
    teacher_BG = teacher_BG.at[2].set(NOTHING)
    found = loss.kl_from_teacher(scores_BG, teacher_BG, jnp.isfinite(teacher_BG))
    wanted = [
        0.25 * np.log(0.25 / 0.5) + 0.5 * np.log(0.5 / 0.25),
        # the third passage is in neither distribution: .25 .75 against 2/3 1/3
        0.25 * np.log(0.25 * 3 / 2) + 0.75 * np.log(0.75 * 3),
        0.0,
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_margin_mse_by_hand() -> None:
    scores_BG = jnp.array([[5.0, 3.0, 1.0], [5.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    teacher_BG = jnp.array([[9.0, 8.0, 3.0], [9.0, NOTHING, 3.0], [NOTHING, 8.0, 3.0]])
    found = loss.margin_mse(scores_BG, teacher_BG, jnp.isfinite(teacher_BG))
    # margins 2 and 4 of the student, 1 and 6 of the teacher
    np.testing.assert_allclose(found, [((2 - 1) ** 2 + (4 - 6) ** 2) / 2, 4.0, 0.0])


@pytest.mark.parametrize("distance", [loss.kl_from_teacher, loss.margin_mse])
def test_distillation_moves_what_the_teacher_scored_and_a_shift_moves_nothing(
    distance: Callable[..., jax.Array],
) -> None:
    scores_BG = jnp.array([[5.0, 3.0, 1.0], [900.0, -900.0, 0.0], [5.0, 3.0, 1.0]])
    teacher_BG = jnp.array([[9.0, 8.0, NOTHING], [90.0, -90.0, 0.0], [NOTHING, 8.0, 3.0]])
    scored_BG = jnp.isfinite(teacher_BG)

    def total(scores_BG: jax.Array, teacher_BG: jax.Array) -> jax.Array:
        return jnp.sum(distance(scores_BG, teacher_BG, scored_BG))

    slope_BG = jax.grad(total)(scores_BG, teacher_BG)
    assert np.isfinite(slope_BG).all()
    assert (np.asarray(slope_BG) != 0).tolist()[0] == [True, True, False]
    assert not slope_BG[2].any()
    shifted = total(scores_BG + 4, teacher_BG - 7)
    np.testing.assert_allclose(total(scores_BG, teacher_BG), shifted, rtol=1e-5)


def test_mean_by_hand() -> None:
    one, other = jnp.array([1.0, 2.0]), jnp.array([3.0, 8.0])
    assert loss.mean([one]) is one
    assert loss.mean([one, other]).tolist() == [2.0, 5.0]


def test_scores_are_float32_products_over_temperature() -> None:
    question_BD = jnp.array([[1.0, 2.0]], jnp.bfloat16)
    passage_PD = jnp.array([[3.0, 4.0], [0.0, 1.0]], jnp.bfloat16)
    found = loss.scores(question_BD, passage_PD, 0.5)
    assert found.dtype == jnp.float32
    assert found.tolist() == [[22.0, 4.0]]
