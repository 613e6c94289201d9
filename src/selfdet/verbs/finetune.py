"""`selfdet finetune`: train a detector or a segmenter on few labels, from any start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch

from selfdet.detectors.optim import parameter_groups
from selfdet.detectors.zoo import DetectorKey
from selfdet.drawing.training import plot_training
from selfdet.interchange.history import HISTORY, history_of, last_part
from selfdet.interchange.starts import resolve_start
from selfdet.training import defaults, memory
from selfdet.training.defaults import ASKED, Default
from selfdet.training.log import plural
from selfdet.training.loggers import LoggerName, check_loggers
from selfdet.training.optimizers import OptimizerName
from selfdet.training.presets import Preset, PresetName
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
from selfdet.verbs.finetune_detection import Detection
from selfdet.verbs.finetune_segmentation import Segmentation
from selfdet.verbs.finetune_task import Shape, Task
from selfdet.verbs.report import report_at_the_end

BATCH = defaults.BATCHES["finetune"][0]  # on a GPU too


def finetune(
    *,
    init: str,
    data: str,
    out: str,
    task: Literal["detection", "segmentation"] = "detection",
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
    crop_size: int | None = None,
    scale_jitter: tuple[float, float] | None = None,
    lr: float | None = None,
    lr_scale: PartScales | None = None,
    weight_decay: float = 1e-4,
    norm_decay: float | None = None,
    optimizer: OptimizerName | None = None,
    warmup_steps: int | None = None,
    lr_steps: Sequence[int] | None = None,
    batch_norm: Literal["auto", "train", "frozen", "sync"] = "auto",
    neck: Literal["fpn", "c4"] | None = None,
    fpn_channels: int | None = None,
    head_convs: int | None = None,
    box_head: Literal["2fc", "4conv1fc"] | None = None,
    queries: int | None = None,
    masks: bool = False,
    keep_box_outputs: bool = False,
    accumulate: int = 1,
    clip: float = 10.0,
    seed: int = 0,
    workers: int | None = None,
    preset: PresetName | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    devices: str = "auto",
    nodes: int = 1,
    threads: int = 0,
    log_every: int = 10,
    save_every: int = 100,
    snapshots: Sequence[int] | None = None,
    loggers: Sequence[LoggerName] | None = None,
    evaluate_every: int | None = None,
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Fine-tune a detector, or an FCN for semantic segmentation, on labelled images, all of them or a fraction.

    Args:
        init: scratch, a run directory, a weights file or library:NAME.
        data: labels: COCO JSON, a Pascal VOC folder or list (ImageSets/Main/NAME.txt), or YOLO's data.yaml:train. For
            segmentation COCO JSON with polygons, a Pascal VOC folder or list (ImageSets/Segmentation/NAME.txt),
            Cityscapes' gtFine/train, or a folder of PNG masks.
        out: run directory to make; refused when not empty, unless resuming.
        task: detection, or segmentation (a class for every pixel).
        images: folder of the label file's images; beside the label file if not given.
        val_data: labels to evaluate on during training; OUT/best.pt keeps the best weights, by AP of boxes or, for
            segmentation, by mIoU, and can be used as --init; none if not given.
        detector: detector to train; the start's own, or else fcos, if not given. mask_rcnn learns masks too, and
            starts from a faster_rcnn as well.
        backbone: architecture; the start's own, or else resnet50, if not given.
        fraction: share of the labelled images to train on, 0…1; smaller ones are contained in larger ones.
        fraction_scheme: nested, or coco-splits for the published COCO splits (where --seed is their fold).
        epochs: passes over the chosen images; 24, but at least 400 and at most 12,000 steps, if not given.
        steps: optimiser steps, overrides epochs; follows from epochs if not given.
        batch_size: images per optimiser step, over all processes and micro-batches; 8 if not given, fewer where there
            are fewer images.
        image_size: long side of the images, pixels; the data's own, at most 800, if not given.
        crop_size: for segmentation, side of the squares that training images are cut to, pixels; image_size, at most
            512, if not given.
        scale_jitter: smallest and largest scale of a training image, relative to image_size; 0.8 1.0, or 0.5 2.0 for
            segmentation, if not given.
        lr: peak learning rate; if not given, in proportion to the batch: 0.01 at batch 16, 0.02 for R-CNNs, 0.0001 with
            adamw.
        lr_scale: learning rate of single parts, as a multiple of lr; 1 if not given.
        weight_decay: weight decay of the optimiser; 0.05 is usual with adamw.
        norm_decay: weight decay of norms and of transformers' tables of positions; that of all others if not given.
        optimizer: sgd with momentum 0.9, or adamw, as transformers are trained; adamw for them, else sgd, if not given.
        warmup_steps: steps of linear warm-up; a tenth of the run, at most 500, if not given.
        lr_steps: steps after which the learning rate is divided by ten; three quarters and eleven twelfths of the run
            if not given.
        batch_norm: batch norm of the backbone: trained, frozen, or synchronised over processes; auto chooses by the
            start.
        neck: neck of faster_rcnn: fpn, a feature pyramid, or c4, the map of stride 16 with a ResNet's last stage as the
            box head; the start's own, or else fpn, if not given.
        fpn_channels: width of the feature pyramid; the start's own, or else 256, if not given.
        head_convs: convolutions in each tower of a one-stage detector, or before a segmenter's classifier; the start's
            own, or else 4 (2 for a segmenter), if not given.
        box_head: box head of an R-CNN; 4conv1fc is what AlignDet's authors pre-train; the start's own, or else 2fc, if
            not given.
        queries: queries of a DETR: how many objects it can find in an image; the start's own, or else 100 (detr) or
            300, if not given.
        masks: let cascade_rcnn learn masks even if the start has none; objects without a mask train boxes alone.
        keep_box_outputs: keep the start's layers that output boxes, which don't depend on the classes, if it has them;
            otherwise they start from random weights, as the layers that output classes always do.
        accumulate: micro-batches per optimiser step.
        clip: largest gradient norm; 0 for no limit.
        seed: seed of the fraction, new weights, views and order.
        workers: loader processes; chosen from the cores if not given.
        preset: settings for a kind of machine: laptop, one-gpu or eight-gpu, see docs/how-to-settings.md; chosen from
            data and machine if not given.
        precision: auto takes bf16 where the hardware multiplies it.
        devices: number of processes on this machine, or auto.
        nodes: number of machines.
        threads: CPU threads of a process; 0 for torch's choice.
        log_every: steps between rows of metrics.jsonl.
        save_every: steps between checkpoints.
        snapshots: epochs after which the weights are kept in OUT/snapshots/, 0 for the start; none if not given.
        loggers: where else to send the figures of metrics.jsonl: tensorboard, wandb, or both; nowhere if not given.
        evaluate_every: steps between evaluations on val_data; five in a run if not given.
        max_time: minutes after which the run is saved and stopped; 0 for no limit.
        resume: continue the run in `out`.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet finetune --init runs/pre --data labels/train.json --images photos/ --fraction 0.1 --out runs/ft
    """
    check_out_is_new(out, resume)
    check_loggers(loggers)
    shape = Shape(
        detector=detector,
        backbone=backbone,
        neck=neck,
        fpn_channels=fpn_channels,
        head_convs=head_convs,
        box_head=box_head,
        queries=queries,
        masks=masks,
        scale_jitter=scale_jitter,
        crop_size=crop_size,
        keep_box_outputs=keep_box_outputs,
    )
    kind: type[Task[Any, Any, Any, Any]] = Segmentation if task == "segmentation" else Detection
    job = kind(shape)
    labels = job.load(data, images)
    held_out = None if val_data is None else job.hold_out(val_data, images, labels)
    subset = labelled_subset(labels, fraction, fraction_scheme, seed)
    chosen = labels.subset(subset.image_ids)
    start = resolve_start(init)
    of_preset, said = Preset(preset, "finetune"), list[str]()
    devices = Preset(preset, "run").word("devices", None if devices == "auto" else devices, "auto", said)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    device, world = runtime.fabric.device, runtime.fabric.world_size
    job.check(chosen)
    torch.manual_seed(seed)

    length = defaults.length(
        len(chosen),
        batch=batch_size,
        usual_batch=of_preset.number("batch_size", Default(BATCH, "default")),
        shares=world * accumulate,
        epochs=epochs,
        steps=steps,
        usual_steps=of_preset.steps(job.usual_steps),
    )
    images_per_step, total = int(length.batch.value), int(length.steps.value)
    kept = snapshot_epochs(snapshots, total, length.per_epoch)
    optimizer = optimizer or job.usual_optimizer(start)
    usual = job.usual_rate(images_per_step, start, optimizer)
    rate = usual if lr is None else Default(lr, ASKED)
    size = of_preset.size(job.usual_size(labels)) if image_size is None else Default(image_size, ASKED)
    pixels = int(size.value)
    recipe = Recipe(
        steps=total,
        batch_size=images_per_step,
        lr=rate.value,
        weight_decay=weight_decay,
        schedule=job.schedule,
        warmup_steps=min(500, total // 10) if warmup_steps is None else warmup_steps,
        seed=seed,
        workers=default_workers(device.type) if workers is None else workers,
        accumulate=accumulate,
        clip=clip,
        log_every=log_every,
        save_every=save_every,
        evaluate_every=evaluation_interval(held_out is not None, evaluate_every, total),
        max_time=max_time,
        optimizer=optimizer,
        lr_steps=None if lr_steps is None else tuple(lr_steps),
    )
    norm = batch_norm_policy(batch_norm, start, recipe.images_per_pass(world), world, device.type)
    net, report = job.build(start, labels, pixels, norm.value)
    scales = lr_scale or PartScales()
    groups = parameter_groups(net, scales.of(net), weight_decay, norm_decay)
    dataset = job.dataset(chosen, net, pixels, seed)

    done_now = {
        "done": f"finetune for {task}",
        "data": last_part(data),
        "data_hash": labels.hash,
        "images": len(chosen),
        "steps": total,
        "seed": seed,
    }
    note = job.note(net, labels, pixels) | {HISTORY: [*history_of(start), done_now]}
    config = {
        "verb": "finetune",
        "init": init,
        "data": str(data),
        "data_hash": labels.hash,
        "images": images,
        "val_data": val_data,
        "val_data_hash": None if held_out is None else held_out.labels.hash,
        "fraction": asdict(subset) | {"image_ids": len(subset.image_ids)},
        **job.settings(note),
        "classes": labels.classes,
        "lr_scale": asdict(scales),
        "norm_decay": norm_decay,
        "snapshots": kept or None,
        "precision": runtime.precision,
        "processes": world,
        "preset": preset,
        **asdict(recipe),
    }
    stage = open_stage(out, config, recipe, runtime, job.product, resume=resume, loggers=loggers)
    if stage.finished:
        return stage.summary()
    stage.introduce(
        f"{note[job.product]} on {note['backbone']} from {start.source}; {runtime.describe}",
        f"{len(chosen)} of {plural(len(labels), 'labelled image')}, with {job.objects(chosen)} "
        f"({subset.scheme} {subset.fraction:g}, seed {subset.seed}, hash {subset.hash[:12]})",
        *said,
        *defaults.slow_learner(note.get("detector"), len(chosen), total, images_per_step),
        *job.remarks(labels, chosen, held_out, dataset),
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

    method = job.method(net)
    each = memory.kept_of_two(method, partial(job.trial, net), job.area(chosen, pixels), runtime.mixed)
    net = runtime.place(net)
    stage.expect_memory(net, each)

    def assess(step: int) -> Mapping[str, Any]:
        assert held_out is not None
        scores, line = job.score(held_out, net, pixels, runtime.fabric)
        stage.reporter.line(f"step {step}: {line}")
        return scores

    done = stage.train(
        method,
        groups,
        dataset,
        job.collate,
        Weights(f"{job.product}.net.", note),
        evaluate=None if held_out is None else assess,
        snapshots=Snapshots(kept, length.per_epoch, lambda file, at: job.save(file, net, note | at)),
    )
    for path in [] if held_out is None else held_out.unreadable.paths:
        stage.reporter.line(f"unreadable, left out of the evaluation: {path}")
    if done < recipe.steps:
        return stage.unfinished(done)
    if runtime.first:
        plot_training(stage.run.read_metrics(), stage.run.pictures)
        # A run that has its weights is finished, and its page says so. One that is killed before it has its page lacks
        # nothing else: resuming leaves it as it is, and selfdet report draws the page.
        job.save(stage.product_file, net, note)
        stage.reporter.line(f"{job.product}: {stage.product_file}")
        report_at_the_end(out, runtime, stage.reporter, net)
    return stage.summary()
