"""`selfdet compare`: which start is best on this data, with how many labels, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from selfdet.data.labels import Labels
from selfdet.data.mask_labels import MaskLabels
from selfdet.detectors.zoo import DetectorKey
from selfdet.errors import UserError
from selfdet.evaluation.inference import unknown_classes
from selfdet.interchange.starts import match_categories
from selfdet.training import defaults
from selfdet.training.log import Reporter, plural
from selfdet.training.runtime import start_runtime
from selfdet.verbs.compare_answer import Answer
from selfdet.verbs.compare_cells import Bench
from selfdet.verbs.compare_folder import open_folder, result_of, settings_of
from selfdet.verbs.compare_labels import amounts, check_apart, gaps, images_hash, images_root, label_set
from selfdet.verbs.compare_plan import plan_cells, plan_lines, time_line, tuning_set
from selfdet.verbs.compare_starts import FCN, agree, check_designs, name_starts
from selfdet.verbs.compare_work import Worker
from selfdet.verbs.evaluate_segmentation import held_out_masks, unmasked
from selfdet.verbs.finetune import BATCH
from selfdet.verbs.finetune_detection import Detection
from selfdet.verbs.finetune_segmentation import Segmentation
from selfdet.verbs.finetune_task import Shape, Task

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 1.0)


def compare(
    *,
    init: Sequence[str],
    data: str,
    val_data: str,
    out: str,
    task: Literal["detection", "segmentation"] = "detection",
    images: str | None = None,
    detector: DetectorKey | None = None,
    backbone: str | None = None,
    fractions: Sequence[float] | None = None,
    shots: Sequence[int] | None = None,
    seeds: int = 3,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    crop_size: int | None = None,
    scale_jitter: tuple[float, float] | None = None,
    lr: float | None = None,
    lr_grid: Sequence[float] = (0.5, 1.0, 2.0),
    tune_fraction: float = 0.1,
    weight_decay: float = 1e-4,
    warmup_steps: int | None = None,
    batch_norm: Literal["auto", "train", "frozen"] = "auto",
    neck: Literal["fpn", "c4"] | None = None,
    fpn_channels: int | None = None,
    head_convs: int | None = None,
    box_head: Literal["2fc", "4conv1fc"] | None = None,
    queries: int | None = None,
    keep_box_outputs: bool = False,
    accumulate: int = 1,
    clip: float = 10.0,
    curve_points: int = 5,
    outside_images: int = 200,
    miss_rate: bool = False,
    keep_weights: bool = True,
    workers: int | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Fine-tune a network from several starts with several amounts of labels and seeds, and say which start is best.

    Args:
        init: a start, repeated: scratch, a run directory, a weights file (also torchvision's of a whole detector) or
            library:NAME; the others are compared with the first.
        data: labels to train on, as in finetune.
        val_data: labels to evaluate on, once per cell, in the same formats; none of its images may be in `data`.
        out: folder to make; refused when not empty, unless resuming.
        task: detection, by AP, or segmentation, by mIoU.
        images: folder of the label files' images; beside each label file if not given.
        detector: detector of all cells; that of the starts, or else fcos, if not given.
        backbone: architecture of all cells; that of the starts, or else resnet50, if not given.
        fractions: shares of the labelled images; 0.01 0.05 0.1 0.2 1.0 if neither these nor shots are given.
        shots: numbers of images of each class.
        seeds: number of seeds (0, 1, …) of the labelled images, new weights, views and order; a confidence interval
            needs 5.
        epochs: passes over the labelled images; 24, but at least 400 and at most 12,000 steps, if not given.
        steps: optimiser steps of each cell, overrides epochs; follows from epochs if not given.
        batch_size: images per optimiser step; 8 if not given, fewer where there are fewer images.
        image_size: long side of the images, pixels; the data's own, at most 800, if not given.
        crop_size: for segmentation, side of the squares that training images are cut to, as in finetune.
        scale_jitter: smallest and largest scale of a training image, relative to image_size; 0.8 1.0, or 0.5 2.0 for
            segmentation, if not given.
        lr: peak learning rate of all cells; chosen for each start if not given.
        lr_grid: multiples of the usual learning rate (see finetune) to choose from.
        tune_fraction: share of the labelled images on which learning rates are tried, with seed 0; they are scored on
            training images outside of it.
        weight_decay: weight decay of SGD.
        warmup_steps: steps of linear warm-up; a tenth of a cell, at most 500, if not given.
        batch_norm: batch norm of the backbone, the same for all starts; auto freezes it for small batches if no start
            is from scratch.
        neck: neck of faster_rcnn, as in finetune.
        fpn_channels: width of the feature pyramid; that of the starts, or else 256, if not given.
        head_convs: convolutions in each tower of a one-stage detector; those of the starts, or else 4, if not given.
        box_head: box head of an R-CNN; that of the starts, or else 2fc, if not given.
        queries: queries of a DETR: how many objects it can find in an image; as many as the starts have, or else 100
            (detr) or 300, if not given.
        keep_box_outputs: keep the layers that output boxes in the starts that have them.
        accumulate: micro-batches per optimiser step.
        clip: largest gradient norm; 0 for no limit.
        curve_points: evaluations of a cell on training images outside its labels, for its curve, and one before the
            first step; 0 for none.
        outside_images: how many such images at most, for curves and for learning rates.
        miss_rate: measure the log-average miss rate of each cell beside AP, as is usual for pedestrians.
        keep_weights: keep the detector of each cell.
        workers: loader processes; chosen from the cores if not given.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.
        max_time: minutes after which this process saves and stops; 0 for no limit.
        resume: continue the comparison in `out`, or join the processes that work on it.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet compare --init scratch --init runs/pre --data labels/train.json --val-data labels/val.json
            --images photos/ --out runs/compare
    """
    if miss_rate and task == "segmentation":
        raise UserError("--miss-rate is of boxes, and segmentation gives none", "Leave it out")
    deadline = time.monotonic() + 60 * max_time if max_time else None
    stored = settings_of(out, resume)
    shape = Shape(
        detector=detector,
        backbone=backbone,
        neck=neck,
        fpn_channels=fpn_channels,
        head_convs=head_convs,
        box_head=box_head,
        queries=queries,
        scale_jitter=scale_jitter,
        crop_size=crop_size,
        keep_box_outputs=keep_box_outputs,
    )
    kind: type[Task[Any, Any, Any, Any]] = Segmentation if task == "segmentation" else Detection
    job = kind(shape)
    labels, val, left_out = _labels(job, data, val_data, images)
    check_apart(labels, val)
    _check_counts(seeds, curve_points, outside_images)
    asked = list(FRACTIONS if fractions is None and shots is None else fractions or ())
    sizes = amounts(asked, shots or (), len(labels))
    sets = [label_set(labels, amount, seed, outside_images) for seed in range(seeds) for amount in sizes]
    tuning = tuning_set(labels, tune_fraction, outside_images, lr_grid) if lr is None else None

    starts = name_starts(init, Path(out) / "starts", backbone)
    smallest = min(len(each.chosen) for each in [*sets, *([tuning] if tuning else [])])
    design = agree(
        starts,
        FCN if task == "segmentation" else detector,
        backbone,
        shape.widths,
        image_size=int(job.usual_size(labels).value) if image_size is None else image_size,
        batch_norm=batch_norm,
        images=int(defaults.batch_size(smallest, batch_size, BATCH, accumulate).value) // accumulate,
        keep_box_outputs=keep_box_outputs,
    )
    # What the first process found on its machine holds for all that join it.
    before = stored or {"precision": "auto", "threads": 0}
    runtime = start_runtime(
        devices=1,
        precision=before["precision"] if precision == "auto" else precision,
        threads=threads or before["threads"],
    )
    bench = Bench(
        out=Path(out),
        data=data,
        images=images_root(labels, images),
        labels=labels,
        val_data=val_data,
        val_images=images,
        design=design,
        length={"epochs": epochs, "steps": steps},
        batch_size=batch_size,
        lr=lr,
        flags={
            "scale_jitter": job.scale_jitter,
            **({"crop_size": job.crop(design.image_size)} if isinstance(job, Segmentation) else {}),
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "accumulate": accumulate,
            "clip": clip,
        },
        curve_points=curve_points,
        threads=runtime.threads,
        precision=runtime.precision,
        workers=workers,
        keep_weights=keep_weights,
        miss_rate=miss_rate,
    )
    config = {
        "verb": "compare",
        **({"task": task} if design.segments else {}),
        "starts": {each.slug: each.init for each in starts},
        "data": data,
        "val_data": val_data,
        "images": images,
        "files": {
            str(labels.file): labels.hash,
            str(val.file): val.hash,
            f"the images of {labels.file}": images_hash(labels.records),
            f"the images of {val.file}": images_hash(val.records),
            **dict(pair for each in starts for pair in each.hashes()),
        },
        "classes": labels.classes,
        "fractions": asked,
        "shots": list(shots or ()),
        "seeds": seeds,
        **{name: value for name, value in vars(design).items() if name != "widths"},
        **design.widths,
        **bench.length,
        "batch_size": batch_size,
        "lr": lr,
        "lr_grid": list(lr_grid),
        "tune_fraction": tune_fraction,
        **bench.flags,
        "curve_points": curve_points,
        "outside_images": outside_images,
        # Comparisons that don't measure it are those of before it could be measured.
        **({"miss_rate": True} if miss_rate else {}),
        "precision": bench.precision,
        "threads": bench.threads,
    }
    cells = plan_cells(starts, sets, tuning, lr_grid)
    reporter, lines = Reporter(), []
    if stored is None:  # refused before anything is written
        for line in check_designs(starts, len(labels.classes), design):
            reporter.line(line)
            lines.append(line)
        lines.append("their configurations differ in nothing but --init" + ("" if lr else " and the learning rate"))
        reporter.line(lines[-1])
    run, leases = open_folder(out, config)
    results = bench.results(cells)
    if len(results) == len(cells) and (finished := result_of(run)) is not None:
        reporter.line(f"{out} is finished ({plural(len(cells), 'cell')}): nothing to do")
        return {**finished, "out": out, "finished": True}
    reporter.log_file = run.log_file
    for line in lines:
        reporter.record(line)
    for line in (line for each in (labels, val) for line in unmasked(each)):
        reporter.line(line)
    if left_out:
        reporter.line(f"not evaluated, as {labels.file} lacks them: {', '.join(left_out)}")
    for line in [*gaps(labels, sets), *plan_lines(bench, cells, len(results))]:
        reporter.line(line)
    if len(results) < len(cells) and (results or stored is None):
        reporter.line(time_line(bench, cells, results, val))

    words = {
        "labels to learn from": f"{data}: {plural(len(labels), 'image')}, of which the cells have a part",
        "labels to evaluate on": f"{val_data}: {_amount(val)}",
        "computed on": runtime.describe,
    }
    shared = {name: value for name, value in config.items() if name not in ("verb", "starts", "files")}
    answer = Answer(bench, leases, starts, cells, shared, words)
    in_time = Worker(bench, cells, leases, reporter, deadline, answer.now_and_then).work()
    found = answer.write()
    reporter.line(f"report: {run.report}")
    if not in_time:
        done = plural(len(bench.results(cells)), "cell")
        reporter.line(f"stopped by --max-time with {done} of {len(cells)} done; the same command with --resume goes on")
    return {**found, "out": out, "finished": in_time}


def _labels(
    job: Task[Any, Any, Any, Any], data: str, val_data: str, images: str | None
) -> tuple[Any, Any, Sequence[str]]:
    """The labels to learn from and to evaluate on, and the classes that only the latter have."""
    labels = job.load(data, images)
    if isinstance(labels, MaskLabels):
        masks = held_out_masks(val_data, images, labels.classes)
        return labels, masks, masks.left_out
    val = job.load(val_data, images)
    return labels, val, unknown_classes(val, match_categories(labels.classes, val))


def _amount(val: Labels | MaskLabels) -> str:
    if isinstance(val, MaskLabels):
        return plural(len(val), "image")
    boxes = sum(len(record.boxes) for record in val.records)
    return f"{plural(len(val), 'image')} with {plural(boxes, 'box', 'boxes')}"


def _check_counts(seeds: int, curve_points: int, outside_images: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}, expected 1 or more", "From 5 seeds on there is an interval")
    for flag, value in (("curve-points", curve_points), ("outside-images", outside_images)):
        if value < 0:
            raise UserError(f"--{flag} is {value}, expected 0 or more", "0 is for no curves")
