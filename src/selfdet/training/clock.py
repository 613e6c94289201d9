"""Rates, waits and the time left of a run."""

from __future__ import annotations

import time


class Clock:
    """Rates and waits; nothing of it enters metrics.jsonl."""

    def __init__(self, total_steps: int, images_per_step: int, start: int) -> None:
        self.total_steps, self.images_per_step, self.start = total_steps, images_per_step, start
        self.begun = self.mark = time.perf_counter()
        self.logged, self.wait, self.spent, self.idle = start, 0.0, 0.0, 0.0
        self.waited_from = self.mark
        self.warm: tuple[int, float] | None = None

    def waiting(self) -> None:
        self.waited_from = time.perf_counter()

    def computing(self) -> None:
        self.wait += time.perf_counter() - self.waited_from

    def paused(self) -> Pause:
        return Pause(self)

    def total(self) -> float:
        return round(time.perf_counter() - self.begun, 2)

    def first_estimate(self, step: int) -> bool:
        """True once, a few steps in: the very first ones start workers and compile kernels."""
        done = step - self.start
        if done == 2:
            self.warm = (step, time.perf_counter())
        return done == 6

    def left(self, step: int) -> float:
        since, begun = self.warm or (self.start, self.begun)
        pace = (time.perf_counter() - begun - (self.idle if self.warm else 0.0)) / max(1, step - since)
        return pace * (self.total_steps - step)

    def interval(self, step: int) -> tuple[float, float]:
        """Images a second and share of time waiting for data since the last call."""
        now = time.perf_counter()
        span = max(1e-9, now - self.mark - self.spent)
        rate = (step - self.logged) * self.images_per_step / span
        wait = min(1.0, self.wait / span)
        self.mark, self.logged, self.wait, self.spent = now, step, 0.0, 0.0
        return round(rate, 3), round(wait, 4)


class Pause:
    """Time the clock leaves out: evaluation is not training."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.from_ = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        span = time.perf_counter() - self.from_
        self.clock.spent += span
        self.clock.idle += span
