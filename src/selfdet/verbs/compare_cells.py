"""One cell of a comparison: a start fine-tuned with one amount of labels, one seed and one learning rate."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfdet import __version__
from selfdet.errors import UserError
from selfdet.evaluation.comparison import KEYS, SEGMENTATION_KEYS, judged
from selfdet.training import defaults
from selfdet.training.rundir import RunDir
from selfdet.verbs.compare_folder import read_result
from selfdet.verbs.compare_labels import AnyLabels, LabelSet, write_labels, write_shared
from selfdet.verbs.compare_starts import Design, NamedStart
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.finetune import BATCH, finetune

RESULT = "cell.json"  # written last of all: a cell that has it is finished


@dataclass(frozen=True)
class Cell:
    """`multiple`: of the usual learning rate, in a cell that tries one."""

    kind: Literal["rate", "finetune"]
    start: NamedStart
    labels: LabelSet
    multiple: float | None = None

    @property
    def name(self) -> str:
        """Of its folder and its lease."""
        if self.kind == "rate":
            return f"rate-{self.start.slug}-{self.multiple:g}"
        return f"{self.start.slug}-{self.labels.name}"


@dataclass(frozen=True)
class Bench:
    """What all cells of a comparison share.

    `length`: what was asked for as epochs and steps; `flags`: of fine-tuning, as they were given; `outside` (of a
    label set) is evaluated on `curve_points` times in a cell; `threads` and `precision` are resolved.
    """

    out: Path
    data: str
    images: str | None
    labels: AnyLabels
    val_data: str
    val_images: str | None
    design: Design
    length: Mapping[str, int | None]
    batch_size: int | None
    lr: float | None
    flags: Mapping[str, Any]
    curve_points: int
    threads: int
    precision: str
    workers: int | None
    keep_weights: bool
    miss_rate: bool

    def folder(self, cell: Cell) -> Path:
        """The run directory of a cell."""
        return self.out / "cells" / cell.name

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell found, None of one that is not."""
        file = self.folder(cell) / RESULT
        return read_result(file, "Remove the cell's folder: it is trained again") if file.is_file() else None

    def is_finished(self, cell: Cell) -> bool:
        """Whether it need not be done again."""
        return (self.folder(cell) / RESULT).is_file()

    def results(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """Those of the finished cells."""
        return [result for cell in cells if (result := self.result(cell)) is not None]

    def batch(self, labels: LabelSet) -> int:
        """Images a step."""
        return int(defaults.batch_size(len(labels.chosen), self.batch_size, BATCH, self.flags["accumulate"]).value)

    def steps(self, labels: LabelSet) -> int:
        """Steps of a cell: those of `finetune` with as many images."""
        images, batch = len(labels.chosen), self.batch(labels)
        asked = defaults.asked_steps(images, batch, self.length["epochs"], self.length["steps"])
        return self.design.usual_steps(images, batch) if asked is None else int(asked.value)

    def rate(self, cell: Cell, results: Iterable[Mapping[str, Any]]) -> float:
        """The learning rate of a cell: what was asked for, else the usual one times what it tries or what was best."""
        if self.lr is not None:
            return self.lr
        multiple = best_multiple(results, cell.start.slug) if cell.multiple is None else cell.multiple
        usual = self.design.usual_rate(self.batch(cell.labels))
        return float(f"{multiple * usual:.6g}")

    def told(self, cell: Cell, lr: float) -> dict[str, Any]:
        """The arguments of the cell's fine-tuning."""
        labels, fraction = cell.labels, cell.labels.amount.fraction
        follows = cell.kind == "finetune" and self.curve_points and labels.outside
        return {
            "init": cell.start.told,
            "data": self.data if fraction is not None else self.file(labels, "labels"),
            "images": self.images,
            "out": str(self.folder(cell)),
            "fraction": 1.0 if fraction is None else fraction,
            "val_data": self.file(labels, "outside") if follows else None,
            "evaluate_every": -(-self.steps(labels) // self.curve_points) if follows else None,
            **({"task": "segmentation"} if self.design.segments else {"detector": self.design.detector}),
            "backbone": self.design.backbone,
            **self.design.options,
            "keep_box_outputs": self.design.keep_box_outputs,
            "steps": self.steps(labels),
            "batch_size": self.batch(labels),
            "lr": lr,
            **self.flags,
            "seed": labels.seed,
            "precision": self.precision,
            "threads": self.threads,
        }

    def file(self, labels: LabelSet, what: Literal["labels", "outside"]) -> str:
        """The file with the labels of a cell's images, or of those outside of them, which is written if need be."""
        ids = labels.outside if what == "outside" else labels.subset.image_ids
        return write_labels(self.out / "labels" / f"{labels.name}-{what}.json", self.labels, ids)


def best_multiple(results: Iterable[Mapping[str, Any]], start: str) -> float:
    """The multiple of the usual learning rate with the highest AP of a start; of equal ones the lowest.

    Where all have an AP of 0, which tells nothing, it is the one nearest to 1.
    """
    tried = [cell for cell in results if cell["kind"] == "rate" and cell["start"] == start]
    if not any(judged(cell) for cell in tried):
        return float(min((cell["multiple"] for cell in tried), key=lambda multiple: abs(math.log(multiple))))
    return -float(max((judged(cell) or 0.0, -cell["multiple"]) for cell in tried)[1])


def run_cell(bench: Bench, cell: Cell, lr: float, minutes: float) -> dict[str, Any] | None:
    """Fine-tune and evaluate a cell, or finish one that was interrupted; None when the time was up before it ended.

    `minutes`: left for it, 0 for no limit. Its result is returned, not written. Raises: Interrupted after saving.
    """
    cell.start.write()
    told = bench.told(cell, lr)
    folder = bench.folder(cell)
    begun = time.monotonic() - RunDir(folder).training_seconds()  # of earlier sittings
    with in_its_own_log():
        try:
            answer = finetune(**told, devices="1", workers=bench.workers, max_time=minutes, resume=True)
        except UserError as error:
            if cell.kind != "rate" or "not finite" not in error.message:
                raise UserError(f"cell {cell.name}: {error.message}", error.hint) from None
            return _result(bench, cell, told, {"AP": None, "diverged": error.message}, time.monotonic() - begun)
        if not answer["finished"]:
            return None
        asked: dict[str, Any] = {"data": bench.val_data, "images": bench.val_images, "miss_rate": bench.miss_rate}
        if cell.kind == "rate":
            asked = {"data": bench.file(cell.labels, "outside"), "images": bench.images}
        asked |= {"precision": bench.precision, "devices": 1, "threads": bench.threads}
        scores = evaluate(init=str(folder), **asked)
    return _result(bench, cell, told, scores, time.monotonic() - begun)


def finish(bench: Bench, cell: Cell, result: Mapping[str, Any]) -> None:
    """Write a cell's result; what only its continuation needs is removed."""
    folder = bench.folder(cell)
    write_shared(folder / RESULT, json.dumps(result, allow_nan=False))
    run = RunDir(folder)
    for file in (run.last, run.previous, run.best):
        file.unlink(missing_ok=True)
    if cell.kind == "rate" or not bench.keep_weights:
        for file in (run.detector, run.segmenter):
            file.unlink(missing_ok=True)


def command(verb: str, told: Mapping[str, Any]) -> str:
    """The command line of a verb's arguments."""
    words = ["selfdet", verb]
    for name, value in told.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            several = value if isinstance(value, (list, tuple)) else [value]
            words += [flag, *map(str, several)]
    return shlex.join(words)


def _result(
    bench: Bench, cell: Cell, told: Mapping[str, Any], scores: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    labels, amount, run = cell.labels, cell.labels.amount, RunDir(bench.folder(cell))
    size = {"shots": amount.shots} if amount.fraction is None else {"fraction": amount.fraction}
    rows = run.read_metrics() if cell.kind == "finetune" else []
    kept = (*KEYS, *SEGMENTATION_KEYS, "per_class", "mask", "miss_rate", "images", "detections", "diverged")
    return {
        "experiment": "compare",
        "kind": cell.kind,
        "init": cell.start.init,
        "start": cell.start.slug,
        "detector": bench.design.detector,
        "backbone": told["backbone"],
        **size,
        "labels": len(labels.chosen),
        **({} if bench.design.segments else {"boxes": labels.boxes}),
        "subset": labels.subset.hash,
        "seed": labels.seed,
        "lr": told["lr"],
        **({} if cell.multiple is None else {"multiple": cell.multiple}),
        "batch_size": told["batch_size"],
        "steps": told["steps"],
        "curve": [[row["step"], judged(row)] for row in rows if "AP" in row or "mIoU" in row],
        "outside": len(labels.outside),
        **{key: scores[key] for key in kept if key in scores},
        "seconds": round(seconds, 2),
        "command": command("finetune", told),
        "version": __version__,
    }


@contextmanager
def in_its_own_log() -> Iterator[None]:
    """What a cell says is in its own log.txt; a hundred of them would bury what the comparison says."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield
