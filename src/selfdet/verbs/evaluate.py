"""`selfdet evaluate`: COCO AP of a detector's boxes and masks, or mIoU of a segmenter, on labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from selfdet.data.images import Quarantine
from selfdet.data.labels import load_labels
from selfdet.errors import UserError
from selfdet.evaluation.detection import detection_table, percent
from selfdet.evaluation.inference import score, unknown_classes
from selfdet.evaluation.missrate import miss_rate_lines
from selfdet.interchange.starts import match_categories, open_detector, resolve_start
from selfdet.training.log import Reporter
from selfdet.training.rundir import write_text
from selfdet.training.runtime import launched, start_runtime
from selfdet.verbs.evaluate_segmentation import evaluate_segmentation, refuse


def evaluate(
    *,
    init: str,
    data: str,
    images: str | None = None,
    out: str | None = None,
    image_size: int | None = None,
    miss_rate: bool = False,
    sliding: bool = False,
    batch_size: int = 8,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    devices: int | None = None,
    nodes: int = 1,
    threads: int = 0,
) -> dict[str, Any]:
    """Measure a detector's COCO AP, by size and by class, of boxes and, where it gives masks, of these.

    Of a segmenter mIoU, the IoU of each class and the share of right pixels are measured.

    Args:
        init: run directory or weights file made by finetune.
        data: labels: COCO JSON; a Pascal VOC folder or list (ImageSets/Main/NAME.txt), for which VOC's own AP is
            measured too; YOLO's data.yaml with its split, data.yaml:val. For a segmenter as in finetune.
        images: folder of the label file's images; beside the label file if not given.
        out: file for the detections as COCO results JSON; none is written if not given.
        image_size: long side of the images, pixels; the run's own if not given.
        miss_rate: measure the log-average miss rate too, as is usual for pedestrians; see docs/how-to-pedestrians.md.
        sliding: let a segmenter process images in windows of its training size, not as a whole.
        batch_size: images at a time; changes speed only.
        precision: auto takes bf16 where the hardware multiplies it.
        devices: number of processes on this machine that share the images; those that torchrun or srun has started,
            else one, if not given.
        nodes: number of machines.
        threads: CPU threads of a process; 0 for torch's choice.

    Raises: UserError when the run holds nothing fine-tuned or the label file lacks a class of it.

    Example:
        selfdet evaluate --init runs/ft --data labels/val.json --images photos/
    """
    target = None if out is None else new_file(out)
    places: dict[str, Any] = {"devices": ("auto" if launched() else 1) if devices is None else devices, "nodes": nodes}
    check_batch_size(batch_size)
    start = resolve_start(init)
    if start.kind == "segmenter":
        refuse({"--out": out is not None, "--miss-rate": miss_rate}, init, "segmentation")
        runtime = start_runtime(**places, precision=precision, threads=threads)
        look = {"image_size": image_size, "sliding": sliding, "batch_size": batch_size}
        return evaluate_segmentation(start, init, data, images, runtime, **look)
    refuse({"--sliding": sliding}, init, "detection")
    labels = load_labels(data, images)
    detector, note = open_detector(start, init)
    size = note["image_size"] if image_size is None else image_size
    detector.backbone.check_image_size(size, any_shape=True)
    category_ids = match_categories(note["classes"], labels)
    runtime = start_runtime(**places, precision=precision, threads=threads)
    reporter, unreadable = Reporter(quiet=not runtime.first), Quarantine(len(labels))
    with reporter.counting(len(labels), "images") as seen:
        scores, results = score(
            runtime.place(detector),
            labels,
            size,
            runtime.fabric,
            category_ids=category_ids,
            batch_size=batch_size,
            seen=seen,
            quarantine=unreadable,
            miss_rate=miss_rate,
        )
    for path in unreadable.paths:
        reporter.line(f"unreadable, left out: {path}")
    if unknown := unknown_classes(labels, category_ids):
        reporter.line(f"not evaluated, as the detector does not know them: {', '.join(unknown)}")
    reporter.line(detection_table(scores, title=f"{init} on {data}"))
    if "voc" in scores:
        ap07, ap10 = (percent(scores["voc"][kind]) for kind in ("AP07", "AP10"))
        reporter.line(f"Pascal VOC's AP at IoU 0.5: {ap07} % by 11 points (VOC07), {ap10} % by area (VOC10+)")
    for line in miss_rate_lines(scores["miss_rate"]) if miss_rate else ():
        reporter.line(line)
    if detector.has_masks and "mask" not in scores:
        reporter.line("the detector's masks are not evaluated, as no object in the label file has a segmentation")
    if target is not None and runtime.first:
        write_text(target, json.dumps(results))
    return scores


def check_batch_size(batch_size: int) -> None:
    """Raises: UserError below 1."""
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}, expected 1 or more", "It changes speed only: leave it out")


def new_file(out: str) -> Path:
    """A path that can be written when the work is done: in a folder that exists, and nothing there yet.

    Raises: UserError.
    """
    path = Path(out)
    if path.exists():
        raise UserError(f"--out {out} exists already", "Name a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name a file in another folder") from None
    return path
