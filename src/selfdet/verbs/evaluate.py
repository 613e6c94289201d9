"""`selfdet evaluate`: COCO AP of a detector on labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from selfdet.data.labels import load_labels
from selfdet.errors import UserError
from selfdet.evaluation.detection import detection_table
from selfdet.evaluation.inference import score
from selfdet.interchange.starts import load_detector, match_categories
from selfdet.training.log import Reporter
from selfdet.training.rundir import write_text
from selfdet.training.runtime import start_runtime


def evaluate(
    *,
    init: str,
    data: str,
    images: str | None = None,
    out: str | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
) -> dict[str, Any]:
    """Measure a detector's COCO AP, by size and by class.

    Args:
        init: run directory or detector file made by finetune.
        data: labels, COCO JSON.
        images: folder of the label file's images; beside the label file if not given.
        out: file for the detections as COCO results JSON; none is written if not given.
        image_size: long side of the images, pixels; the run's own if not given.
        batch_size: images at a time; changes speed only.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError when the run holds no detector or the label file lacks a class of it.

    Example:
        selfdet evaluate --init runs/ft --data labels/val.json --images photos/
    """
    if out is not None and Path(out).exists():
        raise UserError(f"--out {out} exists already", "Name a new file")
    labels = load_labels(data, images)
    detector, note = load_detector(init)
    category_ids = match_categories(note["classes"], labels)
    runtime = start_runtime(devices=1, precision=precision, threads=threads)
    detector = detector.to(runtime.fabric.device)
    reporter = Reporter()
    with reporter.counting(len(labels), "images") as seen:
        size = image_size or note["image_size"]
        scores, results = score(
            detector, labels, size, runtime.fabric, category_ids=category_ids, batch_size=batch_size, seen=seen
        )
    reporter.line(detection_table(scores, title=f"{init} on {data}"))
    if out is not None:
        write_text(Path(out), json.dumps(results))
    return scores
