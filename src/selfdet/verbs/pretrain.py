"""`selfdet pretrain`: learn a backbone from unlabelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from selfdet.data.images import list_images
from selfdet.data.views import TwoViews, ViewDataset, collate_views
from selfdet.drawing.training import plot_training
from selfdet.drawing.views import draw_view_pairs
from selfdet.interchange.starts import load_backbone, save_backbone
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.training import defaults
from selfdet.training.health import MatchProbe, words
from selfdet.training.log import Reporter
from selfdet.training.rundir import RunDir
from selfdet.training.runtime import start_runtime
from selfdet.training.stage import Recipe, default_workers, run_stage, saved_state


@dataclass
class StageSettings:
    """Settings of one stage alone; what is left out follows the flags without a stage's name.

    Args:
        epochs: passes over the images.
        steps: optimiser steps; overrides epochs.
        batch_size: images a step, over all processes.
        image_size: side of a view, pixels.
        lr: peak learning rate.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    lr: float | None = None


def pretrain(
    *,
    images: str,
    out: str,
    method: Literal["densecl", "moco"] = "densecl",
    backbone: str = "resnet50",
    backbone_weights: str | None = None,
    detector: Literal["fcos"] = "fcos",
    stages: Sequence[Literal["backbone"]] = ("backbone",),
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    lr: float | None = None,
    backbone_stage: StageSettings | None = None,
    weight_decay: float = 1e-4,
    dense_weight: float = 0.5,
    dense_warmup: int = 0,
    matching: Literal["max-similarity", "geometric", "random"] = "max-similarity",
    negatives: Literal["pooled", "dense"] = "pooled",
    grid: int | None = None,
    temperature: float = 0.2,
    queue_length: int | None = None,
    momentum: float = 0.999,
    key_batch_norm: Literal["split", "none"] = "split",
    accumulate: int = 1,
    clip: float = 0.0,
    seed: int = 0,
    workers: int | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    devices: str = "auto",
    nodes: int = 1,
    threads: int = 0,
    log_every: int = 10,
    save_every: int = 100,
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Pre-train a backbone from unlabelled images with DenseCL or MoCo v2.

    Args:
        images: folder (nested or flat), glob, text list or COCO JSON; no labels are read.
        out: run directory to make; refused when not empty, unless resuming.
        method: densecl contrasts local features besides global ones; moco is MoCo v2, global only.
        backbone: torchvision ResNet or any timm model with feature maps.
        backbone_weights: start of the backbone: `library` for the library's weights, or a file; random if not given.
        detector: the detector this run is meant for; finetune takes it from here.
        stages: what to run.
        epochs: passes over the images; chosen from their number if not given.
        steps: optimiser steps; overrides epochs.
        batch_size: images an optimiser step, over all processes and micro-batches.
        image_size: side of a view, pixels (224 if not given).
        lr: peak learning rate; chosen from the number of images and the batch if not given.
        backbone_stage: the same five settings for this stage alone.
        weight_decay: weight decay of SGD.
        dense_weight: λ, the dense loss's share of the total (densecl).
        dense_warmup: steps over which λ rises from 0 (densecl).
        matching: how query cells find their key cell (densecl).
        negatives: what the dense queue keeps of an image: its pooled vector or sampled cells (densecl).
        grid: side of the grid of cells that the maps are pooled to; the maps as they are if not given (densecl).
        temperature: τ of both losses.
        queue_length: keys kept as negatives; chosen from the number of images if not given.
        momentum: share of the key encoder that stays at each step.
        key_batch_norm: `split` normalises the permuted key batch in groups, so that statistics can't name the positive.
        accumulate: micro-batches an optimiser step is computed in.
        clip: bound of the gradient norm; 0 for none.
        seed: of weights, views and order.
        workers: loader processes; chosen from the cores if not given.
        precision: auto takes bf16 where the hardware multiplies it.
        devices: number of processes on this machine, or auto.
        nodes: number of machines.
        threads: CPU threads of a process; 0 for torch's choice.
        log_every: steps between rows of metrics.jsonl.
        save_every: steps between checkpoints.
        max_time: minutes after which the run is saved and stopped; 0 for no limit.
        resume: continue the run in `out`.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet pretrain --images photos/ --backbone resnet18 --image-size 160 --epochs 100 --out runs/pre
    """
    asked = backbone_stage or StageSettings()
    size = asked.image_size or image_size or 224
    paths = list_images(images)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    torch.manual_seed(seed)
    net, transfer_report = load_backbone(backbone, backbone_weights)
    net.check_image_size(size)

    batch = defaults.batch_size(len(paths), asked.batch_size or batch_size, runtime.fabric.device.type)
    queue = (
        defaults.Default(queue_length, "asked") if queue_length else defaults.queue_length(len(paths), int(batch.value))
    )
    chosen_lr = asked.lr or lr
    rate = (
        defaults.Default(chosen_lr, "asked")
        if chosen_lr
        else defaults.contrastive_lr(len(paths), int(batch.value), backbone_weights is not None)
    )
    length = (
        defaults.asked_steps(len(paths), int(batch.value), asked.epochs, asked.steps)
        or defaults.asked_steps(len(paths), int(batch.value), epochs, steps)
        or defaults.contrastive_steps(len(paths), int(batch.value))
    )

    recipe = Recipe(
        steps=int(length.value),
        batch_size=int(batch.value),
        lr=rate.value,
        weight_decay=weight_decay,
        schedule="cosine",
        warmup_steps=0,
        seed=seed,
        workers=default_workers(runtime.fabric.device.type) if workers is None else workers,
        accumulate=accumulate,
        clip=clip,
        log_every=log_every,
        save_every=save_every,
        evaluate_every=max(25, int(length.value) // 20),
        max_minutes=max_time,
    )
    options: dict[str, Any] = {"queue_length": int(queue.value), "momentum": momentum, "temperature": temperature}
    options |= {"key_batch_norm": key_batch_norm, "seed": seed}
    if method == "densecl":
        options |= {"dense_weight": dense_weight, "dense_warmup": dense_warmup, "matching": matching}
        options |= {"negatives": negatives, "grid": grid}
    config = {
        "verb": "pretrain",
        "stages": list(stages),
        "images": str(images),
        "images_found": len(paths),
        "images_hash": hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()[:16],
        "method": method,
        "method_options": options,
        "backbone": net.name,
        "backbone_weights": backbone_weights,
        "detector": detector,
        "image_size": size,
        "precision": runtime.precision,
        **{("max_time" if key == "max_minutes" else key): value for key, value in asdict(recipe).items()},
    }
    run = RunDir.open(out, config, resume=resume)
    reporter = Reporter(run.log_file, quiet=not runtime.fabric.is_global_zero)
    state = saved_state(run, runtime)
    if state is not None and state["progress"]["step"] >= recipe.steps and run.backbone.is_file():
        reporter = Reporter(quiet=not runtime.fabric.is_global_zero)
        reporter.line(f"{run.path} is finished ({recipe.steps} steps); nothing to do")
        return _summary(run)

    reporter.line(f"{method} on {len(paths)} images of {images}; {runtime.describe}")
    if transfer_report is not None:
        reporter.line(transfer_report.table())
    for name, default in (("batch size", batch), ("steps", length), ("learning rate", rate), ("queue length", queue)):
        reporter.line(f"{name}: {default.value:g} ({default.reason})")
    if state is not None:
        reporter.line(f"continuing at step {state['progress']['step']} of {recipe.steps}")

    module = (DenseCL if method == "densecl" else MoCo)(net, **options)
    views = TwoViews(size, seed)
    dataset = ViewDataset(paths, views)
    if runtime.fabric.device.type in ("cpu", "cuda"):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    probe = MatchProbe(paths, size, seed, runtime.fabric.device)
    if runtime.fabric.is_global_zero and state is None:
        draw_view_pairs(dataset, run.pictures / "first_views.jpg")
    groups = [{"params": [p for p in module.parameters() if p.requires_grad]}]
    run_stage(
        module,
        groups,
        dataset,
        collate_views,
        recipe,
        run,
        runtime,
        reporter,
        state=state,
        evaluate=lambda step: probe(module.encoder.backbone),
    )
    if runtime.fabric.is_global_zero:
        save_backbone(run.backbone, module.encoder.backbone, {"method": method, "steps": str(recipe.steps)})
        plot_training(run.read_metrics(), run.pictures)
        for sentence in words(run.read_metrics(), queue_length=int(queue.value)):
            reporter.line(sentence)
        reporter.line(f"backbone: {run.backbone}")
    return _summary(run)


def _summary(run: RunDir) -> dict[str, Any]:
    rows = run.read_metrics()
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    return {"out": str(run.path), "backbone": str(run.backbone), **last}
