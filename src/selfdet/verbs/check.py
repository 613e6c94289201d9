"""`selfdet check`: what is wrong or odd with images and labels, before anything is trained on them."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfdet.data.findings import Checked, Findings, Split, gather_findings
from selfdet.data.inspection import Look
from selfdet.data.labels import load_labels
from selfdet.detectors.levels import count_levels, pyramid_levels, under_finest
from selfdet.detectors.zoo import DetectorKey
from selfdet.drawing.check_report import write_check_report
from selfdet.drawing.check_words import summary
from selfdet.errors import UserError
from selfdet.proposing.processes import find_all
from selfdet.training.defaults import detection_side
from selfdet.training.log import Reporter
from selfdet.training.rundir import check_out_is_new
from selfdet.training.stop import Stop
from selfdet.verbs.check_conversion import convert_labels


def check(
    *,
    images: str | None = None,
    data: str | None = None,
    val_data: str | None = None,
    detector: DetectorKey = "fcos",
    image_size: int | None = None,
    out: str | None = None,
    convert: Literal["coco", "voc", "yolo"] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Look at every image and every box once, and say what is wrong, what is odd, and what training makes of it.

    Nothing is changed. Findings are no error: the exit code is 0.

    Args:
        images: folder (nested or flat), glob, text list or COCO JSON; only the labels' images if not given.
        data: labels: COCO JSON, a Pascal VOC folder or list, YOLO's data.yaml; none are checked if not given.
        val_data: labels of the validation split, checked likewise; images that are in both splits are reported.
        detector: detector whose levels the box sizes are compared with.
        image_size: long side of the images in that detector, pixels; what finetune would choose if not given.
        out: folder to make, for report.html with pictures of the worst findings, or for converted labels.
        convert: format in which to write the labels to `out`.
        workers: processes; chosen from the cores and the number of images if not given.

    Raises: UserError when there is nothing to check, labels can't be read at all, or `out` is not empty.

    Example:
        selfdet check --images photos/ --data labels/train.json --val-data labels/val.json --out checked/
    """
    reporter = Reporter()
    _require_sense(images, data, image_size, out, convert, workers)
    train = None if data is None else Split.read(data, images)
    val = None if val_data is None else Split.read(val_data, images)
    checked = Checked.gather(images, train, val)
    files = {split: file for split, file in (("train", data), ("val", val_data)) if file is not None}
    # What can't be loaded can't be converted: said before anything long begins.
    splits = {} if convert is None else {split: load_labels(file, images) for split, file in files.items()}
    findings = gather_findings(checked, _look_at_all(checked, workers, reporter), train, val)
    findings.counts["labels_refused"] = _refusal(files.values(), images)
    if train is not None:
        findings.counts["levels"] = _levels(findings, detector, image_size)
    for line in summary(findings):
        reporter.line(line)
    if convert is not None and out is not None:
        for line in convert_labels(convert, splits, Path(out)):
            reporter.line(line)
    elif out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        page = write_check_report(Path(out) / "report.html", findings)
        reporter.line(f"report: {page}")
    return findings.to_dict()


def _require_sense(
    images: str | None,
    data: str | None,
    image_size: int | None,
    out: str | None,
    convert: str | None,
    workers: int | None,
) -> None:
    """Raises: UserError for flags that do not go together, before anything long begins."""
    if images is None and data is None:
        raise UserError("check needs --images or --data", "`selfdet check --help` shows an example")
    if convert is not None and (data is None or out is None):
        raise UserError("--convert needs --data and --out", "It writes the labels of --data into the folder --out")
    if image_size is not None and image_size < 32:
        raise UserError(f"--image-size is {image_size}, expected 32 or more pixels")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, expected 1 or more", "Leave it out for the default")
    if out is not None:
        check_out_is_new(out)


def _look_at_all(checked: Checked, workers: int | None, reporter: Reporter) -> list[Look]:
    """What was seen of each image, in order. Raises: KeyboardInterrupt when stopped; there is nothing to save."""
    looks: dict[int, Look] = {}
    tasks = checked.inspections()
    with Stop(0) as stop, reporter.counting(len(tasks), "images") as seen:
        for look in find_all(tasks, workers, lambda: bool(stop.asked)):
            looks[look.image_id] = look
            seen(len(looks))
        if stop.asked:
            raise KeyboardInterrupt(f"stopped by {signal.Signals(stop.asked).name}; nothing was written")
    return [looks[place] for place in range(len(tasks))]


def _refusal(files: Iterable[str], images: str | None) -> str | None:
    """What training would say to the first of these labels that it would refuse."""
    for file in files:
        try:
            load_labels(file, images)
        except UserError as error:
            return error.message
    return None


def _levels(findings: Findings, detector: str, image_size: int | None) -> dict[str, Any]:
    """How the boxes of the labels spread over the detector's levels."""
    size = int(detection_side(findings.long_sides).value) if image_size is None else image_size
    sides = findings.sides[:, :2] * (size / np.maximum(findings.sides[:, 2:], 1))
    levels = pyramid_levels(detector, size)
    numbers = count_levels(detector, levels, sides)
    return {
        "detector": detector,
        "image_size": size,
        "boxes": len(sides),
        "levels": [
            {"stride": level.stride, "from": level.low, "to": level.high if level.high < np.inf else None, "boxes": n}
            for level, n in zip(levels, numbers)
        ],
        "under_finest": under_finest(levels, sides),
        "under_finest_at_twice": under_finest(pyramid_levels(detector, 2 * size), 2 * sides),
    }
