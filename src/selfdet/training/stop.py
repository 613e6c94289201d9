"""Stopping a run without losing it."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

TIME = -1  # in place of a signal's number: the time limit


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved itself.

    `reason` says by what, `step` counts the optimiser steps done (or what else a `unit` is), `signal` is the signal's
    number.
    """

    def __init__(self, reason: str, step: int, number: int, unit: str = "step") -> None:
        self.reason, self.step, self.signal = reason, step, number
        super().__init__(f"{reason} at {unit} {step}")


class Stop:
    """Turns Ctrl-C, SIGTERM and a limit of `max_seconds` (0: none) into a wish to stop after the current step."""

    def __init__(self, max_seconds: float) -> None:
        self.deadline = time.monotonic() + max_seconds if max_seconds else None
        self.signal = 0
        self.old: dict[int, Any] = {}

    @property
    def asked(self) -> int:
        """The number of the signal that came, `TIME` when the limit has passed, else 0."""
        if self.signal:
            return self.signal
        return TIME if self.deadline is not None and time.monotonic() >= self.deadline else 0

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number
        # A second Ctrl-C is a person who does not want to wait for the step to end.
        signal.signal(number, self.old[number])

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
