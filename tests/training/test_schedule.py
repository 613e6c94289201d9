"""The learning rate is a pure function of the step."""

from __future__ import annotations

import math

import pytest

from selfdet.training.schedule import Schedule


def test_warm_up_rises_evenly_to_the_peak() -> None:
    schedule = Schedule(1.0, 100, warmup_steps=4)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_cosine_falls_from_the_peak_to_nearly_nothing() -> None:
    schedule = Schedule(2.0, 100)
    assert schedule(0) == 2.0
    assert schedule(50) == pytest.approx(1.0)
    assert schedule(99) == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert all(schedule(step) > schedule(step + 1) > 0 for step in range(98))


def test_steps_divide_by_ten_at_three_quarters_and_eleven_twelfths() -> None:
    schedule = Schedule(1.0, 12_000, warmup_steps=500, kind="step")
    told = {499: 500 / 501, 500: 1.0, 8999: 1.0, 9000: 0.1, 10_999: 0.1, 11_000: 0.01, 11_999: 0.01}
    assert {step: schedule(step) for step in told} == pytest.approx(told)


def test_steps_can_be_named() -> None:
    schedule = Schedule(1.0, 90_000, kind="step", drops=(60_000, 82_500))
    told = {59_999: 1.0, 60_000: 0.1, 82_499: 0.1, 82_500: 0.01}
    assert {step: schedule(step) for step in told} == pytest.approx(told)


def test_the_only_step_of_a_run_has_the_full_rate() -> None:
    assert Schedule(1.0, 1, kind="step")(0) == 1.0


def test_poly_falls_to_zero_a_little_slower_than_a_line() -> None:
    schedule = Schedule(1.0, 100, kind="poly")
    assert [schedule(step) for step in (0, 50, 90)] == pytest.approx([1.0, 0.5**0.9, 0.1**0.9])
    assert 0 < schedule(99) < 0.02


def test_a_constant_rate_stays() -> None:
    schedule = Schedule(0.5, 10, warmup_steps=1, kind="constant")
    assert [schedule(step) for step in (0, 1, 9)] == [0.25, 0.5, 0.5]


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero() -> None:
    schedule = Schedule(1.0, 3, warmup_steps=5)
    assert all(0 < schedule(step) < 1 for step in range(3))
    assert math.isfinite(schedule(5))
