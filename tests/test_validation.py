"""Validation by hand-made vectors: NLL in blocks, accuracy, average rank in the global pool."""

import numpy as np
import pytest

from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.training import validation


def q(positives: tuple[int, ...], hard: tuple[int, ...] = ()) -> Question:
    return Question("", f"question of {positives[0]}", (), positives, hard, ())


def test_pool_holds_each_passage_once() -> None:
    questions = [q((3, 9), (1, 2, 5)), q((4,), (3, 1)), q((3,))]
    rows = validation.pool_rows(questions, hard_negatives=2, negatives=5)
    assert rows.tolist() == [1, 2, 3, 4]
    rows = validation.pool_rows(questions, hard_negatives=0, negatives=0)
    assert rows.tolist() == [3, 4]


class Fixed:
    """Stands for an Embedder: text n has vector `vectors[n]`, where n is the number that ends the
    text.
    """

    vectors = np.zeros((0, 2), np.float32)
    width = 2

    def __init__(self, *_: object) -> None:
        pass

    def encode(self, texts: list) -> np.ndarray:
        words = [text if isinstance(text, str) else text[1] for text in texts]
        return self.vectors[[int(word.split()[-1]) for word in words]]


@pytest.mark.parametrize("size", [1, 2, 64])
def test_numbers_by_hand(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(validation, "RANK_BLOCK", size)  # three questions: one or several blocks
    monkeypatch.setattr(validation, "ENCODE_BLOCK", size)
    vectors = np.array([[1, 0], [0, 1], [1, 1], [2, 0]], np.float32)
    monkeypatch.setattr(Fixed, "vectors", vectors)
    monkeypatch.setattr(validation, "Embedder", Fixed)
    monkeypatch.setattr(validation, "tower", lambda params, side: params)
    monkeypatch.setattr(validation, "encoder_of", lambda encoder, side: encoder)

    class Rows:
        def __len__(self) -> int:
            return 4

        def rows(self, rows: list[int]) -> list[Passage]:
            return [Passage(str(row), "", f"passage {row}") for row in rows]

    questions = [q((0,), (3,)), q((1,)), q((2,))]
    found = validation.validate(
        None,
        {},
        questions,
        Rows(),
        None,
        None,
        validation.ValidationSettings(
            batch_size=2,
            hard_negatives=1,
            validation_negatives=1,
        ),
        temperature=1.0,
    )
    # scores against passages 0..3:  q0: 1 0 1 2   q1: 0 1 1 0   q2: 1 1 2 2
    assert found.pool == 4
    assert found.average_rank == pytest.approx((1 + 0 + 0) / 3)  # ties do not push down
    assert found.recall_at_1 == pytest.approx(2 / 3)
    assert found.recall_at_20 == 1
    # block 0 holds passages 0, 3, 1; block 1 passage 2 alone
    nll0 = np.log(np.exp([1, 2, 0]).sum()) - 1
    nll1 = np.log(np.exp([0, 0, 1]).sum()) - 1
    assert found.nll == pytest.approx((nll0 + nll1 + 0) / 3)
    assert found.accuracy == pytest.approx(2 / 3)
