"""`selfdet finetune`: train a detector on few labels, from any start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from selfdet.data.labelled import LabelledDataset, collate_samples
from selfdet.data.labels import Labels, load_labels
from selfdet.data.subset import Subset, coco_split_subset, fraction_subset
from selfdet.detectors.optim import parameter_groups
from selfdet.drawing.training import plot_training
from selfdet.errors import UserError
from selfdet.evaluation.inference import score
from selfdet.interchange.starts import Start, build_detector, match_categories, resolve_start, save_detector
from selfdet.methods.supervised import Supervised
from selfdet.training import defaults
from selfdet.training.log import Reporter
from selfdet.training.rundir import RunDir
from selfdet.training.runtime import start_runtime
from selfdet.training.stage import Recipe, default_workers, run_stage, saved_state


@dataclass
class PartScales:
    """Learning rate of each part, as a multiple of --lr.

    Args:
        backbone: of the backbone.
        neck: of the feature pyramid.
        head: of the towers.
        last: of the last layers, which always start afresh.
    """

    backbone: float = 1.0
    neck: float = 1.0
    head: float = 1.0
    last: float = 1.0


def finetune(
    *,
    init: str,
    data: str,
    out: str,
    images: str | None = None,
    val_data: str | None = None,
    detector: Literal["fcos"] | None = None,
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
    fpn_channels: int | None = None,
    head_convs: int | None = None,
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
    evaluate_every: int | None = None,
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Fine-tune a detector on labelled images, all of them or a fraction.

    Args:
        init: scratch, a run directory, a weights file or library:NAME.
        data: labels, COCO JSON.
        out: run directory to make; refused when not empty, unless resuming.
        images: folder of the label file's images; beside the label file if not given.
        val_data: labels to evaluate on during training; best.pt keeps the best of them.
        detector: detector to train; the run's own, or fcos.
        backbone: architecture, where the start does not say it.
        fraction: share of the labelled images to train on, 0…1; smaller ones are contained in larger ones.
        fraction_scheme: nested, or coco-splits for the published COCO splits (where --seed is their fold).
        epochs: passes over the chosen images; chosen from their number if not given.
        steps: optimiser steps; overrides epochs.
        batch_size: images an optimiser step, over all processes and micro-batches (8 if not given).
        image_size: long side of the images, pixels; the data's own, at most 800, if not given.
        scale_jitter: smallest and largest share of image_size at which a training image is shown (0.8 1.0).
        lr: peak learning rate; 0.01 at batch 16, in proportion, if not given.
        lr_scale: learning rate of single parts, as a multiple of lr.
        weight_decay: weight decay of SGD.
        warmup_steps: steps of linear warm-up; a tenth of the run, at most 500, if not given.
        batch_norm: of the backbone: trained, frozen, or synchronised over processes; auto chooses by the start.
        fpn_channels: width of the feature pyramid (256).
        head_convs: convolutions in each tower (4).
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
        evaluate_every: steps between evaluations on val_data; five in a run if not given.
        max_time: minutes after which the run is saved and stopped; 0 for no limit.
        resume: continue the run in `out`.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet finetune --init runs/pre --data labels/train.json --images photos/ --fraction 0.1 --out runs/ft
    """
    labels = load_labels(data, images)
    held_out = load_labels(val_data, images) if val_data is not None else None
    subset = _choose(labels, fraction, fraction_scheme, seed)
    chosen = labels.subset(subset.image_ids)
    start = resolve_start(init)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    torch.manual_seed(seed)

    batch = defaults.batch_size(len(chosen), 8 if batch_size is None else batch_size, runtime.fabric.device.type)
    length = defaults.asked_steps(len(chosen), int(batch.value), epochs, steps) or defaults.finetune_steps(
        len(chosen), int(batch.value)
    )
    rate = defaults.Default(lr, "asked") if lr else defaults.finetune_lr(int(batch.value))
    size = defaults.Default(image_size, "asked") if image_size else defaults.detection_size(labels.records)
    per_pass = int(batch.value) // (runtime.fabric.world_size * accumulate)
    norm = _batch_norm(batch_norm, start, per_pass, runtime.fabric.world_size)
    options = {"image_size": int(size.value), "batch_norm": norm[0]}
    options |= {"fpn_channels": fpn_channels} if fpn_channels else {}
    options |= {"head_convs": head_convs} if head_convs else {}
    net, report = build_detector(start, len(labels.classes), detector, backbone, options)

    recipe = Recipe(
        steps=int(length.value),
        batch_size=int(batch.value),
        lr=rate.value,
        weight_decay=weight_decay,
        schedule="step",
        warmup_steps=min(500, int(length.value) // 10) if warmup_steps is None else warmup_steps,
        seed=seed,
        workers=default_workers(runtime.fabric.device.type) if workers is None else workers,
        accumulate=accumulate,
        clip=clip,
        log_every=log_every,
        save_every=save_every,
        evaluate_every=_evaluate_every(held_out, evaluate_every, int(length.value)),
        max_minutes=max_time,
    )
    described = net.config()
    config = {
        "verb": "finetune",
        "init": init,
        "data": str(data),
        "images": images,
        "val_data": val_data,
        "fraction": asdict(subset) | {"image_ids": len(subset.image_ids)},
        "detector": described["detector"],
        "backbone": described["backbone"],
        "options": described["options"],
        "classes": labels.classes,
        "scale_jitter": list(scale_jitter),
        "lr_scale": asdict(lr_scale or PartScales()),
        "precision": runtime.precision,
        **{("max_time" if key == "max_minutes" else key): value for key, value in asdict(recipe).items()},
    }
    run = RunDir.open(out, config, resume=resume)
    first = runtime.fabric.is_global_zero
    reporter = Reporter(run.log_file, quiet=not first)
    state = saved_state(run, runtime)
    if state is not None and state["progress"]["step"] >= recipe.steps and run.detector.is_file():
        Reporter(quiet=not first).line(f"{run.path} is finished ({recipe.steps} steps); nothing to do")
        return _summary(run)

    reporter.line(
        f"{described['detector']} from {start.source}, {len(chosen)} of {len(labels)} images; {runtime.describe}"
    )
    if report is not None:
        reporter.line(report.table())
    for name, default in (("batch size", batch), ("steps", length), ("learning rate", rate), ("image size", size)):
        reporter.line(f"{name}: {default.value:g} ({default.reason})")
    reporter.line(f"batch norm: {norm[0]} ({norm[1]})")
    reporter.line(f"labels: {subset.scheme} {subset.fraction:g}, seed {subset.seed}, hash {subset.hash[:12]}")
    if state is not None:
        reporter.line(f"continuing at step {state['progress']['step']} of {recipe.steps}")

    method = Supervised(net)
    if runtime.fabric.device.type in ("cpu", "cuda"):
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dataset = LabelledDataset(chosen.records, image_size=int(size.value), seed=seed, scale_jitter=scale_jitter)
    evaluate = None
    if held_out is not None:
        category_ids = match_categories(labels.classes, held_out)
        held = held_out

        def evaluate(step: int) -> Mapping[str, Any]:
            scores, _ = score(net, held, int(size.value), runtime.fabric, category_ids=category_ids)
            reporter.line(f"step {step}: AP {100 * (scores['AP'] or 0):.2f}  AP50 {100 * (scores['AP50'] or 0):.2f}")
            return scores

    groups = parameter_groups(net, asdict(lr_scale or PartScales()), weight_decay)
    run_stage(method, groups, dataset, collate_samples, recipe, run, runtime, reporter, state=state, evaluate=evaluate)
    if first:
        note = {
            **described,
            "classes": labels.classes,
            "category_ids": labels.category_ids,
            "image_size": int(size.value),
        }
        save_detector(run.detector, net, note)
        plot_training(run.read_metrics(), run.pictures)
        reporter.line(f"detector: {run.detector}")
    return _summary(run)


def _choose(labels: Labels, fraction: float, scheme: str, seed: int) -> Subset:
    ids = [record.image_id for record in labels.records]
    if scheme == "coco-splits":
        return coco_split_subset(ids, 100 * fraction, seed)
    return fraction_subset(ids, fraction, seed)


def _batch_norm(asked: str, start: Start, images: int, world: int) -> tuple[str, str]:
    """The backbone's batch-norm policy and why: `images` share one normalisation, `world` processes train."""
    if asked != "auto":
        return asked, "asked"
    if start.kind == "library":
        return "frozen", "weights of a library keep their statistics"
    if images < 4 and start.kind != "scratch" and world == 1:
        return "frozen", f"{images} images are too few for statistics"
    return ("sync", f"over {world} processes") if world > 1 else ("train", f"{images} images a step")


def _evaluate_every(held_out: Labels | None, asked: int | None, steps: int) -> int:
    if held_out is None:
        if asked:
            raise UserError("--evaluate-every needs labels to evaluate on", "Add --val-data FILE")
        return 0
    return asked or max(1, steps // 5)


def _summary(run: RunDir) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for row in run.read_metrics():
        last |= row
    return {"out": str(run.path), "detector": str(run.detector), **last}
