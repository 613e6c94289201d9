"""Every number of a training stage, resolved and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdet.errors import UserError
from selfdet.training.log import plural
from selfdet.training.optimizers import OptimizerName


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained: nothing here is a default any more. All counts are optimiser steps.

    `batch_size` counts the images of one optimiser step over all processes and micro-batches, `accumulate` is the
    number of micro-batches. `lr_steps`: from which steps on the rate is a tenth, and a tenth of that, in place of the
    "step" schedule's own. `clip` bounds the gradient norm (0: off). `evaluate_every` 0 evaluates never;
    `max_time` ends the run after so many minutes, saved (0: off).

    Raises: UserError naming the flag of a value out of range.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Literal["cosine", "step", "poly", "constant"]
    warmup_steps: int
    seed: int
    workers: int
    accumulate: int = 1
    clip: float = 0.0
    log_every: int = 10
    save_every: int = 100
    evaluate_every: int = 0
    max_time: float = 0.0
    optimizer: OptimizerName = "sgd"
    lr_steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _check("lr", self.lr, 0 < self.lr < float("inf"), "a number above 0")
        for name in ("weight_decay", "warmup_steps", "workers", "clip", "evaluate_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        ascending = sorted(set(self.lr_steps or ()))
        if self.lr_steps is not None and (list(self.lr_steps) != ascending or not ascending or ascending[0] < 1):
            shown = " ".join(map(str, self.lr_steps))
            raise UserError(f"--lr-steps {shown}: expected ascending steps above 0", "Such as 60000 82500 of 90000")
        if self.lr_steps is not None and self.schedule != "step":
            raise UserError(f"--lr-steps: the learning rate is of the schedule {self.schedule} here", "Leave it out")
        _check("max_time", self.max_time, self.max_time >= 0, "0 or more minutes")

    def remarks(self) -> list[str]:
        """What does not fit a run of this length, as a line each: of published settings that were made shorter."""
        run, lines = plural(self.steps, "step"), []
        if late := [f"{step:,}" for step in self.lr_steps or () if step >= self.steps]:
            lines.append(f"warning: a run of {run} ends before step {' and '.join(late)}, where the rate would fall")
        if self.warmup_steps >= self.steps:
            lines.append(f"warning: a run of {run} is all warm-up, which lasts {self.warmup_steps:,}")
        return lines

    def images_per_pass(self, processes: int) -> int:
        """Images of one forward pass of one process.

        Raises: UserError when the batch can't be shared evenly.
        """
        shares = processes * self.accumulate
        images, left = divmod(self.batch_size, shares)
        if left or not images:
            raise UserError(
                f"--batch-size {self.batch_size} can't be shared by {plural(processes, 'process', 'processes')} × "
                f"{plural(self.accumulate, 'micro-batch', 'micro-batches')}",
                f"Use a multiple of {shares}",
            )
        return images


def _check(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UserError(f"--{name.replace('_', '-')} is {value:g}, expected {expected}", "Correct the value")
