"""`selfdet pretrain`: learn a backbone from unlabelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from selfdet.data.images import list_images
from selfdet.data.views import TwoViews, ViewDataset, collate_views
from selfdet.drawing.training import plot_training
from selfdet.drawing.views import draw_view_pairs
from selfdet.errors import UserError
from selfdet.interchange.starts import backbone_note, load_backbone, save_backbone
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.training import defaults
from selfdet.training.defaults import ASKED, Default
from selfdet.training.health import MatchProbe, words
from selfdet.training.log import plural
from selfdet.training.recipe import Recipe
from selfdet.training.rundir import check_out_is_new
from selfdet.training.runtime import start_runtime
from selfdet.training.stage import Weights, default_workers, open_stage

VIEW_SIZE = 224


@dataclass
class StageSettings:
    """Settings of one stage alone; what is left out follows the flags without a stage's name.

    Args:
        epochs: passes over the images; as --epochs if not given.
        steps: optimiser steps, overrides epochs; as --steps if not given.
        batch_size: images a step, over all processes; as --batch-size if not given.
        image_size: side of a view, pixels; as --image-size if not given.
        lr: peak learning rate; as --lr if not given.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    lr: float | None = None

    def over(self, **shared: Any) -> StageSettings:
        """These settings, with those of all stages where nothing is given; a length in the one replaces any in the
        other."""
        merged = {name: value if getattr(self, name) is None else getattr(self, name) for name, value in shared.items()}
        if self.epochs is not None or self.steps is not None:
            merged |= {"epochs": self.epochs, "steps": self.steps}
        return StageSettings(**merged)


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
        backbone_weights: start of the backbone: `library` for the library's weights, a file, or a run (of a fine-tuned
            one its backbone); random if not given.
        detector: the detector this run is meant for; finetune takes it from here.
        stages: what to run.
        epochs: passes over the images; chosen from their number if not given.
        steps: optimiser steps, overrides epochs; follows from epochs if not given.
        batch_size: images an optimiser step, over all processes and micro-batches; 64 on a CPU and 256 on a GPU if not
            given, lowered where there are fewer images.
        image_size: side of a view, pixels; 224 if not given.
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
    check_out_is_new(out, resume)
    paths = list_images(images)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    device = runtime.fabric.device
    torch.manual_seed(seed)
    net, report = load_backbone(backbone, backbone_weights)

    shared = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "image_size": image_size, "lr": lr}
    asked = (backbone_stage or StageSettings()).over(**shared)
    shares = runtime.fabric.world_size * accumulate
    batch = defaults.batch_size(len(paths), asked.batch_size, 64 if device.type == "cpu" else 256, shares)
    images_per_step = int(batch.value)
    length = defaults.asked_steps(len(paths), images_per_step, asked.epochs, asked.steps)
    length = length or defaults.contrastive_steps(len(paths), images_per_step)
    rate = defaults.contrastive_lr(len(paths), images_per_step, pretrained=backbone_weights is not None)
    rate = rate if asked.lr is None else Default(asked.lr, ASKED)
    queue = defaults.queue_length(len(paths)) if queue_length is None else Default(queue_length, ASKED)
    size = VIEW_SIZE if asked.image_size is None else asked.image_size
    net.check_image_size(size)

    recipe = Recipe(
        steps=int(length.value),
        batch_size=images_per_step,
        lr=rate.value,
        weight_decay=weight_decay,
        schedule="cosine",
        warmup_steps=0,
        seed=seed,
        workers=default_workers(device.type) if workers is None else workers,
        accumulate=accumulate,
        clip=clip,
        log_every=log_every,
        save_every=save_every,
        evaluate_every=max(25, int(length.value) // 20),
        max_time=max_time,
    )
    if recipe.images_per_pass(runtime.fabric.world_size) == 1 and size <= net.strides[-1]:
        raise UserError(
            f"one image of {size} px at a time leaves batch norm one value a channel",
            "Use a larger --image-size, more images or a smaller --accumulate",
        )
    options: dict[str, Any] = {"queue_length": int(queue.value), "momentum": momentum, "temperature": temperature}
    options |= {"key_batch_norm": key_batch_norm, "seed": seed}
    if method == "densecl":
        options |= {"dense_weight": dense_weight, "dense_warmup": dense_warmup, "matching": matching}
        options |= {"negatives": negatives, "grid": grid}
    module = (DenseCL if method == "densecl" else MoCo)(net, **options)

    config = {
        "verb": "pretrain",
        "stages": list(stages),
        "images": str(images),
        "images_found": len(paths),
        "images_hash": _names_hash(paths),
        "method": method,
        "method_options": options,
        "backbone": net.name,
        "backbone_weights": backbone_weights,
        "detector": detector,
        "image_size": size,
        "precision": runtime.precision,
        "processes": runtime.fabric.world_size,
        **asdict(recipe),
    }
    stage = open_stage(out, config, recipe, runtime, "backbone", resume=resume)
    if stage.finished:
        return stage.summary()
    stage.introduce(
        f"{method} on {plural(len(paths), 'image')} of {images}; {runtime.describe}",
        report=report,
        choices={"batch size": batch, "steps": length, "learning rate": rate, "queue length": queue},
    )

    module = runtime.place(module)
    dataset = ViewDataset(paths, TwoViews(size, seed))
    # Before a checkpoint is loaded: every run, resumed or not, is compared with its own beginning.
    probe = MatchProbe(paths, size, seed, device, untrained=module.encoder.backbone)
    if runtime.first and not stage.start:
        draw_view_pairs(dataset, stage.run.pictures / "first_views.jpg")
    about = {"method": method, "detector": detector, "steps": str(recipe.steps)}
    done = stage.train(
        module,
        [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}],
        dataset,
        collate_views,
        Weights("encoder.backbone.net.", backbone_note(net, about)),
        evaluate=lambda step: probe(module.encoder.backbone),
    )
    if done < recipe.steps:
        return stage.unfinished(done)
    if runtime.first:
        rows, run = stage.run.read_metrics(), stage.run
        plot_training(rows, run.pictures)
        for sentence in words(rows, int(queue.value)):
            stage.reporter.line(sentence)
        # Last of all: a run that has its weights is finished.
        save_backbone(run.backbone, module.encoder.backbone, about)
        stage.reporter.line(f"backbone: {run.backbone}")
    return stage.summary()


def _names_hash(paths: Sequence[Path]) -> str:
    return hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()[:16]
