"""Several training files: batches of one file each, in their shares, the same whatever the
processes and wherever a run begins.
"""

from collections import Counter

import pytest

from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.training import order

BATCH = 4
FILES = [("nq.json", range(20)), ("trivia.json", range(20, 30))]
QUESTIONS = [Question(f"q{row}", "", (), (row,), (), ()) for row in range(30)]


def batches(upsampling: tuple[float, ...], count: int, seed: int = 3) -> list[set[int]]:
    mixed = order.parts(FILES, upsampling, BATCH)
    rows = order.order(QUESTIONS, seed, BATCH, mixed)
    return [{rows[i].positives[0] for i in range(n * BATCH, (n + 1) * BATCH)} for n in range(count)]


@pytest.mark.parametrize(
    ("upsampling", "shares"), [((), (20, 10)), ((1, 4), (10, 20)), ((0.5, 1), (15, 15))]
)
def test_batches_are_of_one_file_in_its_share(
    upsampling: tuple[float, ...], shares: tuple[int, int]
) -> None:
    found = batches(upsampling, 30)
    of_first = [batch <= {*range(20)} for batch in found]
    assert all(
        one or batch.isdisjoint(range(20)) for one, batch in zip(of_first, found, strict=True)
    )
    assert (sum(of_first), 30 - sum(of_first)) == shares
    # evenly: no file waits for long
    assert sum(of_first[:15]) == pytest.approx(shares[0] / 2, abs=1)


def test_each_file_is_shuffled_anew_each_epoch() -> None:
    mixed = order.parts(FILES, (), BATCH)
    rows = order.order(QUESTIONS, 3, BATCH, mixed)
    first = [rows[i].positives[0] for i in range(60 * BATCH)]
    of_file = [row for row in first if row < 20]
    assert len(of_file) == 160
    epochs = [of_file[i : i + 20] for i in range(0, 160, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({*map(tuple, epochs)}) == len(epochs)
    assert batches((), 9) == batches((), 9) != batches((), 9, seed=4)


def test_ids_are_those_of_the_batch_with_their_file() -> None:
    mixed = order.parts(FILES, (1, 4), BATCH)
    for step, batch in enumerate(batches((1, 4), 8), 1):
        ids, name = order.question_ids(QUESTIONS, 3, step, BATCH, mixed).split(" of ")
        assert {int(id_[1:]) for id_ in ids.split(", ")} == batch
        assert name == ("nq.json" if batch <= {*range(20)} else "trivia.json")
    plain = order.question_ids(QUESTIONS, 3, 2, BATCH)
    rows = order.order(QUESTIONS, 3, BATCH)
    assert plain == ", ".join(rows[i].id for i in range(4, 8))


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match="has 1 numbers, but .* of 2 file"):
        order.parts(FILES, (2.0,), BATCH)
    with pytest.raises(InputError, match="has 2 numbers, but .* of 1 file"):
        order.parts([], (2.0, 1.0), BATCH)
    with pytest.raises(InputError, match=r"16, but trivia.json has only 10 training"):
        order.parts(FILES, (), 16)
    assert order.parts([], (2.0,), BATCH) == []


def test_shares_follow_the_factors_in_the_long_run() -> None:
    turns = order._turns(order.parts(FILES, (1, 3.3), BATCH))
    counted = Counter(turns[n][0] for n in range(1000))
    assert counted[1] / 1000 == pytest.approx(33 / 53, abs=0.005)
