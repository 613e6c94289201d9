"""Rates leave evaluation out, the time left counts it in."""

from __future__ import annotations

import time

import pytest

from selfdet.training.clock import Clock


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    moved = Hand()
    monkeypatch.setattr(time, "perf_counter", moved)
    return moved


def run(clock: Clock, hand: Hand, steps: range, each: float, wait: float = 0.0) -> list[int]:
    """Let steps pass; returns those at which the first estimate was due."""
    due = []
    for step in steps:
        with clock.waiting():
            hand.now += wait
        hand.now += each - wait
        if clock.first_estimate(step):
            due.append(step)
    return due


def test_rate_and_wait_are_those_since_the_last_row(hand: Hand) -> None:
    clock = Clock(100, images_per_step=8, start=0)
    run(clock, hand, range(1, 11), each=2.0, wait=0.5)
    assert clock.interval(10) == (4.0, 0.25)
    run(clock, hand, range(11, 16), each=1.0)
    with clock.paused():
        hand.now += 1000.0
    assert clock.interval(15) == (8.0, 0.0)


def test_the_time_left_passes_over_the_slow_first_steps(hand: Hand) -> None:
    clock = Clock(100, 1, start=0)
    run(clock, hand, range(1, 3), each=60.0)
    run(clock, hand, range(3, 11), each=1.0)
    assert clock.left(10) == pytest.approx(90.0)


def test_evaluations_to_come_count_and_those_past_do_not_slow_the_pace(hand: Hand) -> None:
    clock = Clock(100, 1, start=0, evaluate_every=30)
    with clock.paused():
        hand.now += 20.0
    run(clock, hand, range(1, 11), each=1.0)
    assert clock.left(10) == pytest.approx(90.0 + 4 * 20.0)  # at 30, 60, 90 and the end
    run(clock, hand, range(11, 31), each=1.0)
    with clock.paused():
        hand.now += 40.0
    assert clock.left(30) == pytest.approx(70.0 + 3 * 30.0)
    assert clock.left(100) == 0.0


def test_a_resumed_run_goes_by_its_own_pace(hand: Hand) -> None:
    clock = Clock(100, 1, start=90)
    run(clock, hand, range(91, 96), each=3.0)
    assert clock.left(95) == pytest.approx(15.0)


def test_the_first_estimate_comes_once_sooner_where_steps_are_slow(hand: Hand) -> None:
    assert run(Clock(100, 1, start=40), hand, range(41, 60), each=0.1) == [46]
    assert run(Clock(100, 1, start=0), hand, range(1, 20), each=30.0) == [3]
    assert Clock(100, 1, 0).total() == 0.0
