"""What long work says of its pace."""

import pytest

from dpr_jax import console


class Clock:
    """A clock that the test moves."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_time_left_leaves_out_compilation(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    """The first step compiles for 200 s; the others take 4 s each."""
    with console.progress("train", 30, "steps") as advance:
        clock.now_s += 200
        advance(1, "loss 2.0")
        for _ in range(9):
            clock.now_s += 4
            advance()
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first == "train: 1/30 steps loss 2.0"
    assert last == "train: 10/30 steps, 0.250 steps/s, 80 s left"


def test_work_done_in_one_call_has_the_rate_of_the_whole(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    with console.progress("evaluate", 8, "runs") as advance:
        clock.now_s += 2
        advance(8)
    assert capfd.readouterr().err == "evaluate: 8/8 runs, 4.0 runs/s, 0 s left\n"
