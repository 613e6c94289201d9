"""Stopping a run without losing it."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM or `--max-time`) and has saved itself.

    `reason` says by what, `step` counts the optimiser steps done, `signal` is the signal's number or 0.
    """

    def __init__(self, reason: str, step: int, number: int = 0) -> None:
        self.reason, self.step, self.signal = reason, step, number
        super().__init__(f"{reason} at step {step}")


class Stop:
    """Turns Ctrl-C, SIGTERM and a time limit into a reason to stop after the current step."""

    def __init__(self, max_seconds: float) -> None:
        self.deadline = time.monotonic() + max_seconds if max_seconds else None
        self.signal = 0

    @property
    def reason(self) -> str:
        if self.signal:
            return f"stopped by {signal.Signals(self.signal).name}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "stopped by --max-time"
        return ""

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number
        # A second Ctrl-C is a person who does not want to wait for the step to end.
        signal.signal(number, self.old[number])

    def __enter__(self) -> Stop:
        self.old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
