"""What the training stages of one `pretrain` share, and what may be set for one of them alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from selfdet.training.defaults import BATCHES, Default, Length, length
from selfdet.training.loggers import LoggerName
from selfdet.training.presets import Preset, PresetName
from selfdet.training.recipe import Recipe
from selfdet.training.runtime import Runtime
from selfdet.training.snapshots import snapshot_epochs
from selfdet.training.stage import Stage, default_workers, open_stage

BACKBONE = "resnet50"  # where none is named
TEMPERATURES = {"densecl": 0.2, "moco": 0.2, "simclr": 0.1}

Part = Literal["backbone", "detector"]
Settings = TypeVar("Settings", bound="StageSettings")


@dataclass
class StageSettings:
    """Settings of one stage alone; what is left out follows the flags without a stage's name.

    Args:
        epochs: passes over the images; as --epochs if not given.
        steps: optimiser steps, overrides epochs; as --steps if not given.
        batch_size: images a step, over all processes; as --batch-size if not given.
        image_size: side of a view, pixels; as --image-size if not given.
        lr: peak learning rate; as --lr if not given.
        snapshots: epochs whose weights are kept; as --snapshots if not given.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    lr: float | None = None
    snapshots: Sequence[int] | None = None

    def over(self: Settings, **shared: Any) -> Settings:
        """These settings, with those of all stages where nothing is given; a length in the one replaces any in the
        other."""
        merged = {name: value for name, value in shared.items() if getattr(self, name) is None}
        if self.epochs is not None or self.steps is not None:
            merged |= {"epochs": self.epochs, "steps": self.steps}
        return replace(self, **merged)


@dataclass(frozen=True)
class Call:
    """One call of `pretrain`: where it writes, what it computes with, and the numbers that all its stages share.

    `several`: whether its stages have folders of their own. `max_time`: minutes that it may take from now on, 0 for no
    limit. `said`: what the preset chose for all stages, for the log.
    """

    out: str
    several: bool
    runtime: Runtime
    seed: int
    weight_decay: float
    accumulate: int
    workers: int | None
    log_every: int
    save_every: int
    max_time: float
    resume: bool
    loggers: Sequence[LoggerName] | None = None
    preset: PresetName | None = None
    said: Sequence[str] = ()
    begun: float = field(default_factory=time.monotonic)

    @property
    def shares(self) -> int:
        """Parts that the images of a step fall into: processes × micro-batches."""
        return self.runtime.fabric.world_size * self.accumulate

    @property
    def processes(self) -> int:
        """Processes that train."""
        return self.runtime.fabric.world_size

    def of(self, part: Part) -> Preset:
        """What the preset makes of a stage."""
        return Preset(self.preset, part)

    def length(
        self,
        part: Part,
        images: int,
        asked: StageSettings,
        usual_steps: Callable[[int, int], Default],
    ) -> Length:
        """Batch and steps of a stage on so many images."""
        cpu, gpu = BATCHES[part]
        usual_batch = cpu if self.runtime.fabric.device.type == "cpu" else gpu
        return length(
            images,
            batch=asked.batch_size,
            usual_batch=self.of(part).number("batch_size", Default(usual_batch, "default")),
            shares=self.shares,
            epochs=asked.epochs,
            steps=asked.steps,
            usual_steps=self.of(part).steps(usual_steps),
        )

    def snapshots(self, name: str, asked: StageSettings, stage: Length) -> list[int]:
        """The epochs whose weights the stage keeps. Raises: UserError for one that it does not reach."""
        return snapshot_epochs(
            asked.snapshots, int(stage.steps.value), stage.per_epoch, stage=name if self.several else ""
        )

    def recipe(self, **numbers: Any) -> Recipe:
        """The recipe of a stage from what is its own."""
        device = self.runtime.fabric.device.type
        left = self.max_time
        if self.max_time > 0:  # what earlier stages have left of it; 0 would mean no limit
            left = max(1e-9, self.max_time - (time.monotonic() - self.begun) / 60)
        return Recipe(
            weight_decay=self.weight_decay,
            seed=self.seed,
            workers=default_workers(device) if self.workers is None else self.workers,
            accumulate=self.accumulate,
            log_every=self.log_every,
            save_every=self.save_every,
            max_time=left,
            **numbers,
        )

    def open(self, name: Part, config: Mapping[str, Any], recipe: Recipe) -> Stage:
        """The stage that makes the weights of this name. Raises: UserError, see `open_stage`."""
        shared = ({**config, "preset": self.preset}, recipe, self.runtime, name)
        if not self.several:
            return open_stage(self.out, *shared, resume=self.resume, loggers=self.loggers)
        folder = Path(self.out) / "stages" / name
        # That the run itself is new, or to be resumed, has been checked.
        return open_stage(str(folder), *shared, resume=True, whole=self.out, loggers=self.loggers)
