"""Weights that a stage keeps while it trains, for figures over training time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdet.errors import UserError
from selfdet.training.log import plural
from selfdet.training.rundir import RunDir


@dataclass(frozen=True)
class Snapshots:
    """The weights to keep of a stage: those after each of `epochs`, 0 being the start.

    `per_epoch`: optimiser steps of an epoch. `write(file, note)` writes what the stage's product holds at the moment,
    at once or not at all; `note` says the epoch and the step.
    """

    epochs: Sequence[int]
    per_epoch: int
    write: Callable[[Path, dict[str, Any]], None]

    def keep(self, run: RunDir, step: int) -> None:
        """Told of the start and of every step, before a checkpoint counts it: write the weights if they are wanted.

        Weights that are there already stay: a run that was killed after them has come by a second time.
        """
        epoch, inside = divmod(step, self.per_epoch)
        if inside or epoch not in self.epochs or not run.writes:
            return
        file = run.snapshot(epoch)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            self.write(file, {"epoch": epoch, "step": step})


def snapshot_epochs(asked: Sequence[int] | None, steps: int, per_epoch: int, stage: str = "") -> list[int]:
    """The epochs after which weights are kept, in order.

    `stage`: name of the stage of several that this is of. Raises: UserError for one that the stage does not reach.
    """
    epochs = sorted(set(asked or ()))
    if not epochs:
        return []
    flag = "--snapshots"
    if epochs[0] < 0:
        raise UserError(f"{flag} {epochs[0]} is not an epoch", "Give whole epochs; 0 is the start")
    last = steps // per_epoch
    if epochs[-1] > last:
        own = f", or give --{stage}-stage.snapshots its own" if stage else ""
        raise UserError(
            f"{flag} {epochs[-1]} is beyond epoch {last}, the last that {plural(steps, 'step')} of "
            f"{per_epoch:,} an epoch complete{f' in the {stage} stage' if stage else ''}",
            f"Leave it out, train longer with --epochs{own}",
        )
    return epochs
