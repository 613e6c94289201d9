"""What a run says: lines on stderr and in log.txt, and a moving bar where stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from selfdet.data.disk import writing
from selfdet.errors import printable

COUNT_EVERY = 10.0  # seconds between two lines of a count


def duration(seconds: float) -> str:
    """A length of time in the two units a person would name: `2 h 05 min`, `3 min 20 s`, `8 s`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {left:02d} s"
    return f"{left} s"


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 image`, `2 images`, `1,200 images`; `several` where the plural is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


class Reporter:
    """Speaks for a run: on stderr, and in `log_file` where one is given. `quiet` keeps processes other than the
    first from repeating it."""

    def __init__(self, log_file: Path | None = None, *, quiet: bool = False) -> None:
        self.log_file = log_file
        self.quiet = quiet
        # A log has no width: lines are broken only where a terminal shows them.
        self.console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @property
    def shows_bars(self) -> bool:
        """Whether somebody is watching."""
        return self.console.is_terminal and not self.quiet

    def line(self, text: str) -> None:
        """Say one line (or a table of several)."""
        if self.quiet:
            return
        # Names of files may hold anything, also what a terminal takes for a command, or no text at all.
        self.console.print(printable(text))
        self.record(text)

    def record(self, text: str) -> None:
        """Put a line into the log file alone: what is shown in another way."""
        if self.log_file is None or self.quiet:
            return
        with writing(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(printable(text) + "\n")

    @contextmanager
    def counting(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Count towards `total` of `unit`, with rate and time left: a bar, or a line every 10 s.

        The rate is from the first answer on: until then processes start, which says nothing of the rest.
        """
        begun, before, said = 0.0, -1, 0.0
        bar = None
        if self.shows_bars:
            bar = Progress(
                TextColumn("{task.completed}/{task.total} " + unit),
                BarColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            bar.start()
            task = bar.add_task("", total=total)

        def seen(done: int) -> None:
            nonlocal begun, before, said
            now = time.monotonic()
            if bar is not None:
                bar.update(task, completed=done)
            elif before < 0:
                begun, before, said = now, done, now
            elif now - said >= COUNT_EVERY:
                said = now
                rate = max(done - before, 1) / (now - begun)
                self.line(f"{done}/{total} {unit}  {rate:.1f}/s  {duration((total - done) / rate)} left")

        try:
            yield seen
        finally:
            if bar is not None:
                bar.stop()

    def steps(self, total: int, start: int = 0) -> StepDisplay:
        """A display for `total` optimiser steps, `start` of which are done."""
        return StepDisplay(self, total, start)


class StepDisplay:
    """Progress of a training run: a bar on a terminal, a line at each logged step elsewhere and in the log file."""

    def __init__(self, reporter: Reporter, total: int, start: int) -> None:
        self.reporter = reporter
        self.total = total
        self.bar: Progress | None = None
        if reporter.shows_bars:
            columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=reporter.console, transient=True)
            self.task = self.bar.add_task("", total=total, completed=start)

    def __enter__(self) -> StepDisplay:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def logged(
        self, step: int, epoch: int, figures: Mapping[str, float], rate: float, wait: float, left: float
    ) -> None:
        """Show the figures of a logged step: `rate` images a second, `wait` share of waiting, `left` s."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        # Nothing is left at the end; what follows it, such as the pictures, is not a matter of steps.
        ahead = f"  {duration(left)} left" if step < self.total else ""
        speed = f"{rate:.3g} images/s" if rate < 1000 else f"{rate:,.0f} images/s"
        text = f"step {step}/{self.total}  epoch {epoch + 1}  {shown}  {speed}  data wait {wait:.0%}{ahead}"
        if self.bar is None:
            self.reporter.line(text)
            return
        loss = f"loss {figures['loss']:.4g}  " if "loss" in figures else ""
        self.bar.update(self.task, completed=step, description=f"{loss}{speed}{ahead}")
        self.reporter.record(text)
