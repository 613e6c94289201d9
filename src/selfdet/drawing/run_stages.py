"""A run directory as a person asks for it: which stages it has, how far each has come and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfdet.drawing.run_log import Beginning, beginnings
from selfdet.errors import UserError
from selfdet.training.rundir import RunDir

NAMES = {
    "densecl": "DenseCL",
    "moco": "MoCo v2",
    "simclr": "SimCLR",
    "aligndet": "AlignDet",
    "fcn": "FCN",
    "fcos": "FCOS",
    "retinanet": "RetinaNet",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "detr": "DETR",
    "deformable_detr": "Deformable DETR",
    "rtdetr": "RT-DETR",
}
TRAINING = ("backbone", "detector")  # the stages of `pretrain` that train


def spoken(name: object) -> str:
    """A method or detector by the name that people know."""
    return NAMES.get(str(name), str(name))


@dataclass(frozen=True)
class StageRun:
    """One training stage of a run, begun or not; `kind`: backbone, detector or finetune."""

    kind: str
    run: RunDir
    config: Mapping[str, Any]
    beginnings: list[Beginning]
    product: Path

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl."""
        return self.run.read_metrics()

    @cached_property
    def timing(self) -> list[dict[str, Any]]:
        """Of timing.jsonl."""
        return self.run.read_timing()

    @property
    def begun(self) -> bool:
        """Whether its folder has been made."""
        return bool(self.config)

    @property
    def finished(self) -> bool:
        """Whether its weights, which are written last of all, are there."""
        return self.product.is_file()

    @property
    def steps(self) -> int:
        """Optimiser steps that it is to have."""
        return int(self.config.get("steps", 0))

    @property
    def done(self) -> int:
        """Optimiser steps that it is known to have."""
        return self.steps if self.finished else max((row.get("step", 0) for row in self.rows), default=0)

    @property
    def seconds(self) -> float:
        """Time spent in training, all sittings together."""
        return self.run.training_seconds()

    @property
    def last(self) -> dict[str, Any]:
        """The last of each figure."""
        merged: dict[str, Any] = {}
        for row in self.rows:
            merged |= row
        return merged

    @property
    def transfer(self) -> list[list[str | int]]:
        """What became of the start's weights, see `Beginning`."""
        return next((beginning.transfer for beginning in self.beginnings if beginning.transfer), [])

    @property
    def reasons(self) -> dict[str, str]:
        """Setting → why its value was taken."""
        return next((beginning.choices for beginning in self.beginnings if beginning.choices), {})


@dataclass(frozen=True)
class WholeRun:
    """A run of `pretrain` or `finetune`: what its command was told, and its training stages in order."""

    run: RunDir
    config: Mapping[str, Any]
    log: str
    stages: list[StageRun]

    @property
    def verb(self) -> str:
        """The verb that made it."""
        return str(self.config.get("verb", "run"))

    @property
    def segments(self) -> bool:
        """Whether it learns the class of each pixel."""
        return self.config.get("task") == "segmentation"

    @property
    def finished(self) -> bool:
        """Whether every stage is."""
        return all(stage.finished for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Time spent in training."""
        return sum(stage.seconds for stage in self.stages)


def read_run(path: str | Path) -> WholeRun:
    """Read what a run's folder says. Raises: UserError when it is no run, or a stage of one."""
    run = RunDir(path)
    config = run.read_config()
    if config.get("verb") not in ("pretrain", "finetune"):
        raise UserError(f"{run.config_file} is not of a run of pretrain or finetune", "Name a run's folder")
    if run.path.resolve().parent.name == "stages" and (run.path.resolve().parent.parent / "config.yaml").is_file():
        raise UserError(f"{path} is one stage of a run", f"Name the run: {run.path.resolve().parent.parent}")
    log = run.log_file.read_text(encoding="utf-8", errors="replace") if run.log_file.is_file() else ""
    found = beginnings(log)
    if config["verb"] == "finetune":
        product = run.segmenter if config.get("task") == "segmentation" else run.detector
        return WholeRun(run, config, log, [StageRun("finetune", run, config, found, product)])
    stages = []
    for kind in [stage for stage in config.get("stages", []) if stage in TRAINING]:
        several = "steps" not in config  # then each stage has a folder with its own settings
        of_stage = RunDir(run.path / "stages" / kind, whole=run.path) if several else run
        own = of_stage.read_config() if of_stage.config_file.is_file() else {}
        said = [each for each in found if each.words.lower().startswith(str(own.get("method", "?")).lower())]
        stages.append(StageRun(kind, of_stage, own, said, run.backbone if kind == "backbone" else run.detector))
    return WholeRun(run, config, log, stages)
