"""Rates, waits and the time left of a run; nothing of it enters metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# The first steps start workers and compile kernels: the pace is taken from later ones.
WARM_STEPS = 2
# A first estimate is due after so many steps, or sooner where steps are slow.
ESTIMATE_STEPS, ESTIMATE_SECONDS = 6, 20.0


class Clock:
    """Times a run of `total_steps` steps of `images_per_step` images that begins at step `start`.

    Evaluation, every `evaluate_every` steps and at the end (0: never), is no training: rates leave it out, and the
    time left adds what is still to come.
    """

    def __init__(self, total_steps: int, images_per_step: int, start: int, evaluate_every: int = 0) -> None:
        self.total_steps, self.images_per_step, self.start = total_steps, images_per_step, start
        self.evaluate_every = evaluate_every
        self.begun = self.marked = time.perf_counter()
        self.marked_step = start
        self.waited = self.paused_since_mark = self.paused_since_warm = 0.0
        self.pauses: list[float] = []
        self.warm: tuple[int, float] | None = None
        self.estimated = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around an evaluation."""
        begun = time.perf_counter()
        yield
        span = time.perf_counter() - begun
        self.pauses.append(span)
        self.paused_since_mark += span
        self.paused_since_warm += span

    def total(self) -> float:
        """Seconds since the beginning, evaluation included."""
        return round(time.perf_counter() - self.begun, 2)

    def first_estimate(self, step: int) -> bool:
        """Told of every step: true once, when `left` has something to go by."""
        done = step - self.start
        if done == WARM_STEPS:
            self.warm, self.paused_since_warm = (step, time.perf_counter()), 0.0
        due = done > WARM_STEPS and (done >= ESTIMATE_STEPS or self.total() > ESTIMATE_SECONDS)
        if not due or self.estimated:
            return False
        self.estimated = True
        return True

    def left(self, step: int) -> float:
        """Seconds from `step` to the end at the pace so far."""
        since, begun = self.warm or (self.start, self.begun)
        pace = (time.perf_counter() - begun - self.paused_since_warm) / max(1, step - since)
        pause = sum(self.pauses) / len(self.pauses) if self.pauses else 0.0
        return pace * (self.total_steps - step) + pause * self._evaluations_after(step)

    def interval(self, step: int) -> tuple[float, float]:
        """Images a second and share of time waiting for data since the last call."""
        now = time.perf_counter()
        span = max(1e-9, now - self.marked - self.paused_since_mark)
        rate = (step - self.marked_step) * self.images_per_step / span
        share = min(1.0, self.waited / span)
        self.marked, self.marked_step, self.waited, self.paused_since_mark = now, step, 0.0, 0.0
        return round(rate, 3), round(share, 4)

    def _evaluations_after(self, step: int) -> int:
        if not self.evaluate_every or step >= self.total_steps:
            return 0
        # One falls on the end itself, whatever the interval.
        return -(-self.total_steps // self.evaluate_every) - step // self.evaluate_every
