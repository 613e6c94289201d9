"""`selfdet finetune`: train a detector on few labels, from any start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch

from selfdet.data.labelled import LabelledDataset, collate_samples
from selfdet.data.labels import load_labels
from selfdet.detectors.optim import parameter_groups
from selfdet.detectors.zoo import DetectorKey
from selfdet.drawing.training import plot_training
from selfdet.evaluation.detection import detection_line
from selfdet.interchange.starts import (
    build_detector,
    detector_note,
    detector_of,
    resolve_start,
    save_detector,
)
from selfdet.methods.supervised import Supervised
from selfdet.training import defaults
from selfdet.training.defaults import ASKED, Default
from selfdet.training.log import plural
from selfdet.training.recipe import Recipe
from selfdet.training.rundir import check_out_is_new
from selfdet.training.runtime import start_runtime
from selfdet.training.snapshots import Snapshots, snapshot_epochs
from selfdet.training.stage import Weights, default_workers, open_stage
from selfdet.verbs.finetune_choices import (
    PartScales,
    advice,
    batch_norm_policy,
    evaluation_interval,
    labelled_subset,
)
from selfdet.verbs.held_out import HeldOut, left_out, without_masks
from selfdet.verbs.report import report_at_the_end

BATCH = 8


def finetune(
    *,
    init: str,
    data: str,
    out: str,
    images: str | None = None,
    val_data: str | None = None,
    detector: DetectorKey | None = None,
    backbone: str | None = None,
    fraction: float = 1.0,
    fraction_scheme: Literal["nested", "coco-splits"] = "nested",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    scale_jitter: tuple[float, float] = (0.8, 1.0),
    lr: float | None = None,
    lr_scale: PartScales | None = None,
    weight_decay: float = 1e-4,
    warmup_steps: int | None = None,
    batch_norm: Literal["auto", "train", "frozen", "sync"] = "auto",
    neck: Literal["fpn", "c4"] | None = None,
    fpn_channels: int | None = None,
    head_convs: int | None = None,
    box_head: Literal["2fc", "4conv1fc"] | None = None,
    keep_box_outputs: bool = False,
    accumulate: int = 1,
    clip: float = 10.0,
    seed: int = 0,
    workers: int | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    devices: str = "auto",
    nodes: int = 1,
    threads: int = 0,
    log_every: int = 10,
    save_every: int = 100,
    snapshots: Sequence[int] | None = None,
    evaluate_every: int | None = None,
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Fine-tune a detector on labelled images, all of them or a fraction.

    Args:
        init: scratch, a run directory, a weights file or library:NAME.
        data: labels: COCO JSON, a Pascal VOC folder or list (ImageSets/Main/NAME.txt), or YOLO's data.yaml:train.
        out: run directory to make; refused when not empty, unless resuming.
        images: folder of the label file's images; beside the label file if not given.
        val_data: labels to evaluate on during training; OUT/best.pt keeps the best by AP of boxes, and may be named as
            --init; none if not given.
        detector: detector to train; the start's own, or else fcos, if not given. mask_rcnn learns masks too, and
            starts from a faster_rcnn as well.
        backbone: architecture; the start's own, or else resnet50, if not given.
        fraction: share of the labelled images to train on, 0…1; smaller ones are contained in larger ones.
        fraction_scheme: nested, or coco-splits for the published COCO splits (where --seed is their fold).
        epochs: passes over the chosen images; 24 within 400…12,000 steps if not given.
        steps: optimiser steps, overrides epochs; follows from epochs if not given.
        batch_size: images an optimiser step, over all processes and micro-batches; 8 if not given, fewer where
            there are fewer images.
        image_size: long side of the images, pixels; the data's own, at most 800, if not given.
        scale_jitter: smallest and largest share of image_size at which a training image is shown (0.8 1.0).
        lr: peak learning rate; if not given 0.01 at batch 16, 0.02 for R-CNNs, in proportion to the batch.
        lr_scale: learning rate of single parts, as a multiple of lr; 1 if not given.
        weight_decay: weight decay of SGD.
        warmup_steps: steps of linear warm-up; a tenth of the run, at most 500, if not given.
        batch_norm: of the backbone: trained, frozen, or synchronised over processes; auto chooses by the start.
        neck: of faster_rcnn: a pyramid, or c4, the map of stride 16 with a ResNet's last stage as the box head; the
            start's own, or else fpn, if not given.
        fpn_channels: width of the feature pyramid; the start's own, or else 256, if not given.
        head_convs: convolutions in each tower of a one-stage detector; the start's own, or else 4, if not given.
        box_head: of an R-CNN, 4conv1fc is the one that AlignDet's authors pre-train; the start's own, or else 2fc, if
            not given.
        keep_box_outputs: keep the start's layers that give boxes, which don't depend on the classes, where it has them;
            else they start afresh, as those that give classes always do.
        accumulate: micro-batches an optimiser step is computed in.
        clip: bound of the gradient norm; 0 for none.
        seed: of the fraction, new weights, views and order.
        workers: loader processes; chosen from the cores if not given.
        precision: auto takes bf16 where the hardware multiplies it.
        devices: number of processes on this machine, or auto.
        nodes: number of machines.
        threads: CPU threads of a process; 0 for torch's choice.
        log_every: steps between rows of metrics.jsonl.
        save_every: steps between checkpoints.
        snapshots: epochs, 0 for the start, after which the weights are kept in OUT/snapshots/; none if not given.
        evaluate_every: steps between evaluations on val_data; five in a run if not given.
        max_time: minutes after which the run is saved and stopped; 0 for no limit.
        resume: continue the run in `out`.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet finetune --init runs/pre --data labels/train.json --images photos/ --fraction 0.1 --out runs/ft
    """
    check_out_is_new(out, resume)
    labels = load_labels(data, images)
    held_out = None if val_data is None else HeldOut(load_labels(val_data, images), labels.classes)
    subset = labelled_subset(labels, fraction, fraction_scheme, seed)
    chosen = labels.subset(subset.image_ids)
    start = resolve_start(init)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    device, world = runtime.fabric.device, runtime.fabric.world_size
    torch.manual_seed(seed)

    length = defaults.length(
        len(chosen),
        batch=batch_size,
        usual_batch=BATCH,
        shares=world * accumulate,
        epochs=epochs,
        steps=steps,
        usual_steps=defaults.finetune_steps,
    )
    images_per_step, total = int(length.batch.value), int(length.steps.value)
    kept = snapshot_epochs(snapshots, total, length.per_epoch)
    rate = defaults.detector_lr(images_per_step, detector_of(start, detector)) if lr is None else Default(lr, ASKED)
    size = defaults.detection_size(labels.records) if image_size is None else Default(image_size, ASKED)
    pixels = int(size.value)
    recipe = Recipe(
        steps=total,
        batch_size=images_per_step,
        lr=rate.value,
        weight_decay=weight_decay,
        schedule="step",
        warmup_steps=min(500, total // 10) if warmup_steps is None else warmup_steps,
        seed=seed,
        workers=default_workers(device.type) if workers is None else workers,
        accumulate=accumulate,
        clip=clip,
        log_every=log_every,
        save_every=save_every,
        evaluate_every=evaluation_interval(held_out is not None, evaluate_every, total),
        max_time=max_time,
    )
    norm = batch_norm_policy(batch_norm, start, recipe.images_per_pass(world), world, device.type)
    options: dict[str, Any] = {"image_size": pixels, "batch_norm": norm.value}
    widths = {"neck": neck, "fpn_channels": fpn_channels, "head_convs": head_convs, "box_head": box_head}
    options |= {name: value for name, value in widths.items() if value is not None}
    net, report = build_detector(start, len(labels.classes), detector, backbone, options, keep_box_outputs)
    scales = lr_scale or PartScales()
    groups = parameter_groups(net, scales.of(net), weight_decay)
    views: dict[str, Any] = {"image_size": pixels, "seed": seed, "scale_jitter": scale_jitter}
    dataset = LabelledDataset(chosen.records, **views, with_masks=net.has_masks)

    note = detector_note(net, labels.classes, labels.category_ids, pixels)
    config = {
        "verb": "finetune",
        "init": init,
        "data": str(data),
        "data_hash": labels.hash,
        "images": images,
        "val_data": val_data,
        "val_data_hash": None if held_out is None else held_out.labels.hash,
        "fraction": asdict(subset) | {"image_ids": len(subset.image_ids)},
        "detector": note["detector"],
        "backbone": note["backbone"],
        "options": note["options"],
        "keep_box_outputs": keep_box_outputs,
        "classes": labels.classes,
        "scale_jitter": list(scale_jitter),
        "lr_scale": asdict(scales),
        "snapshots": kept or None,
        "precision": runtime.precision,
        "processes": world,
        **asdict(recipe),
    }
    stage = open_stage(out, config, recipe, runtime, "detector", resume=resume)
    if stage.finished:
        return stage.summary()
    boxes = sum(len(record.boxes) for record in chosen.records)
    stage.introduce(
        f"{note['detector']} on {note['backbone']} from {start.source}; {runtime.describe}",
        f"{len(chosen)} of {plural(len(labels), 'labelled image')}, with {plural(boxes, 'box', 'boxes')} "
        f"({subset.scheme} {subset.fraction:g}, seed {subset.seed}, hash {subset.hash[:12]})",
        *left_out(labels, held_out),
        *(without_masks(dataset, held_out) if net.has_masks else ()),
        *advice(start, rate, weight_decay, asked=lr is not None, keep_box_outputs=keep_box_outputs),
        report=report,
        choices={
            "batch size": length.batch,
            "steps": length.steps,
            "learning rate": rate,
            "image size": size,
            "batch norm": norm,
        },
    )

    net = runtime.place(net)

    def assess(step: int) -> Mapping[str, Any]:
        assert held_out is not None
        scores = held_out.score(net, pixels, runtime.fabric)
        stage.reporter.line(f"step {step}: {detection_line(scores)}")
        return scores

    done = stage.train(
        Supervised(net),
        groups,
        dataset,
        collate_samples,
        Weights("detector.net.", note),
        evaluate=None if held_out is None else assess,
        snapshots=Snapshots(kept, length.per_epoch, lambda file, at: save_detector(file, net, note | at)),
    )
    for path in [] if held_out is None else held_out.unreadable.paths:
        stage.reporter.line(f"unreadable, left out of the evaluation: {path}")
    if done < recipe.steps:
        return stage.unfinished(done)
    if runtime.first:
        plot_training(stage.run.read_metrics(), stage.run.pictures)
        # A run that has its weights is finished, and its page says so. One that is killed before it has its page lacks
        # nothing else: resuming leaves it as it is, and selfdet report draws the page.
        save_detector(stage.run.detector, net, note)
        stage.reporter.line(f"detector: {stage.run.detector}")
        report_at_the_end(out, runtime, stage.reporter, net)
    return stage.summary()
