"""What a tower costs, by hand, and the rates of a run."""

import time as system_time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dpr_jax import console
from dpr_jax.model import flops, pace
from dpr_jax.model.flops import forward_flops
from dpr_jax.model.pace import Pace


def test_operations_by_hand() -> None:
    # width 32, feed-forward 64, 2 layers; texts of 3 and 5 tokens
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # a multiplication and an addition each
    attention = 2 * 2 * 32  # a pair of tokens: its score, and its share of the sum
    forward = 2 * (8 * matrices + (9 + 25) * attention)
    lengths = np.array([3, 5], np.int32)
    assert forward_flops(tiny.SHAPE, lengths, "mean") == forward
    # the last layer's keys and values of 8 tokens; the other matrices and one query of each text
    keys = 2 * 2 * 32 * 32
    last = 8 * keys + 2 * (matrices - keys) + 8 * attention
    first = forward / 2
    assert forward_flops(tiny.SHAPE, lengths, "cls") == first + last


class Clock:
    """Stands for the time module: seconds pass when a test says so."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(pace, "time", Clock())
    monkeypatch.setattr(pace, "_compiling", [])
    return pace.time


LENGTHS = np.array([20, 40], np.int32)


def asked(meter: Pace, time: Clock, wait_s: float) -> Iterator[int]:
    """Items that each take so long to come."""

    def slow() -> Iterator[int]:
        while True:
            time.now_s += wait_s
            yield 0

    return meter.waiting(slow())


def test_rates_of_all_processes_since_the_restart(time: Clock) -> None:
    meter = Pace(tiny.SHAPE, "mean", passes=3, processes=2)
    items = asked(meter, time, 0.5)
    next(items)
    meter.add(LENGTHS, 100, examples=1)
    meter.restart()
    assert meter.rates() == {}
    for _ in range(2):
        next(items)
        time.now_s += 1.5
        meter.add(LENGTHS, 80, examples=4)
    assert meter.rates() == {
        "examples_per_s": 4.0,
        "tokens_per_s": 60.0,
        "padding_share": 0.25,
        "data_wait_s": 0.5,
        "compute_s": 1.5,
    }
    assert meter.note() == "60 tokens/s, 75.0% real"
    assert meter.summary().endswith("1.0 of 4.0 s waiting for texts")


def test_two_batches_that_are_read_at_once_are_not_timed_apart(time: Clock) -> None:
    meter = Pace(tiny.SHAPE, "mean")
    items = asked(meter, time, 1.0)
    next(items)
    next(items)
    meter.add(LENGTHS, 80)
    assert meter.rates()["tokens_per_s"] == 30.0
    meter.restart()
    time.now_s += 0.001  # the second was done by then
    meter.add(LENGTHS, 80)
    assert meter.rates() == {}


def test_mfu_where_the_peak_is_known(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        device_kind = "TPU v5 lite"  # not the v5's peak, whose name is shorter

    monkeypatch.setattr(flops.jax, "local_devices", lambda: [Device(), Device()])
    meter = Pace(tiny.SHAPE, "mean", passes=3)
    next(asked(meter, time, 2.0))
    meter.add(LENGTHS, 80)
    operations = 3 * forward_flops(tiny.SHAPE, LENGTHS, "mean")
    assert meter.rates()["mfu"] == pytest.approx(operations / (2 * 2 * 197e12))


def test_the_clock_stands_still_while_something_is_compiled() -> None:
    @jax.jit
    def outer(x: jax.Array) -> jax.Array:
        system_time.sleep(0.2)  # while it is traced
        return inner(x) + 1

    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        system_time.sleep(0.2)  # inside the tracing of the other: counts once
        return x * 2

    x = jnp.zeros(3)
    began_s, real_s = pace.clock(), system_time.monotonic()
    outer(x).block_until_ready()
    took_s = system_time.monotonic() - real_s
    assert took_s >= 0.4
    assert -1e-3 <= pace.clock() - began_s < 0.2  # dispatch and the like
    system_time.sleep(0.1)
    outer(x).block_until_ready()  # not compiled again
    assert pace.clock() - began_s >= 0.1


def test_time_left_is_by_the_clock_that_it_is_given(
    time: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    with console.progress("train", 4, "steps", clock=pace.clock) as advance:
        time.now_s = 110.0
        pace._compiled("/jax/core/compile/backend_compile_duration", 100.0)
        advance(4)
    assert "4/4 steps, 0.400 steps/s" in capfd.readouterr().err


def test_durations_have_a_unit_of_their_size() -> None:
    words = [pace.in_words(seconds) for seconds in (0.012, 2.13, 2100, 9000)]
    assert words == ["12 ms", "2.1 s", "35 min", "2.5 h"]
