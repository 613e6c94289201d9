"""A signal or a time limit is a wish that the loop reads; a second signal is not to be misunderstood."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from selfdet.training.stop import TIME, Interrupted, Stop


def test_nothing_is_asked_at_first() -> None:
    with Stop(0) as stop:
        assert stop.asked == 0
    with Stop(1000) as stop:
        assert stop.asked == 0


def test_a_signal_is_remembered_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop(0) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def restored_interrupt() -> Iterator[None]:
    """Python's own answer to Ctrl-C: a process started in the background ignores it from birth."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(restored_interrupt: None) -> None:
    with Stop(0) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_time_limit_that_has_passed_is_asked_for_and_a_signal_comes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Stop(60.0) as stop:
        assert stop.asked == 0
        now[0] = 60.0
        assert stop.asked == TIME
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with Stop(0) as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_the_message_names_reason_and_step() -> None:
    assert str(Interrupted("stopped by SIGTERM", 7, 15)) == "stopped by SIGTERM at step 7"
