"""What a tower costs, by hand, and the rates that a meter reads."""

import numpy as np
import pytest
import tiny

from dpr_jax.model import flops
from dpr_jax.model.dual_encoder import Tokens
from dpr_jax.model.flops import forward_flops
from dpr_jax.training import speed
from dpr_jax.training.speed import Meter, Work
from dpr_jax.training.step import Batch


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


def test_meter_reads_rates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(speed.time, "monotonic", lambda: now_s)
    meter = Meter()
    for wait_s in (0.5, 1.5):
        _start(meter)
        meter.add(Work(questions=4, tokens=60, slots=80, flops=1.0, wait_s=wait_s))
    now_s = 4.0
    assert meter.read() == {
        "examples_per_s": 2.0,
        "tokens_per_s": 30.0,
        "padding_share": 0.25,
        "data_wait_s": 1.0,
        "compute_s": 1.0,
    }
    assert meter.read() == {}


def test_two_updates_that_are_read_at_once_are_not_timed_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(speed.time, "monotonic", lambda: now_s)
    meter, work = Meter(), Work(4, 60, 80, flops=1.0, wait_s=0.0)
    for _ in range(2):
        _start(meter)
    now_s = 2.0
    meter.add(work)
    assert meter.read()["examples_per_s"] == 2.0
    now_s = 2.001  # the second was done by then
    meter.add(work)
    assert meter.read() == {}


def test_mfu_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        device_kind = "TPU v5 lite"  # not the v5's peak, whose name is shorter

    now_s = 0.0
    monkeypatch.setattr(speed.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(flops.jax, "local_devices", lambda: [Device(), Device()])
    meter = Meter()
    _start(meter)
    meter.add(Work(questions=1, tokens=1, slots=1, flops=197e12, wait_s=0.0))
    now_s = 2.0
    assert meter.read()["mfu"] == pytest.approx(0.25)


def _start(meter: Meter) -> None:
    tokens = Tokens(np.zeros((1, 4), np.int32), np.array([4], np.int32))
    no_text = np.zeros(1, np.int32)
    batch = Batch(tokens, tokens, no_text, no_text[:, None], np.ones(1, np.float32))
    meter.started(batch, 0.0)
