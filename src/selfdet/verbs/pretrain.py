"""`selfdet pretrain`: learn a whole detector from unlabelled images, stage by stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from selfdet.data.images import list_images
from selfdet.data.shards import ShardedImages
from selfdet.detectors.zoo import DetectorKey
from selfdet.errors import UserError
from selfdet.training.log import Reporter
from selfdet.training.loggers import LoggerName, check_loggers
from selfdet.training.presets import Preset, PresetName
from selfdet.training.rundir import RunDir, check_out_is_new
from selfdet.training.runtime import start_runtime
from selfdet.verbs.pretrain_backbone import backbone_length, check_backbone_stage, pretrain_backbone
from selfdet.verbs.pretrain_boxes import ProposalSettings, are_proposals, pretrain_boxes
from selfdet.verbs.pretrain_detector import (
    DetectorStageSettings,
    check_detector_stage,
    detector_length,
    pretrain_detector,
)
from selfdet.verbs.report import report_at_the_end
from selfdet.verbs.stages import BACKBONE, TEMPERATURES, Call, StageSettings

StageName = Literal["proposals", "backbone", "detector"]
STAGES: tuple[StageName, ...] = ("proposals", "backbone", "detector")


def pretrain(
    *,
    images: str,
    out: str,
    method: Literal["densecl", "moco", "simclr"] = "densecl",
    backbone: str | None = None,
    backbone_weights: str | None = None,
    detector: DetectorKey = "fcos",
    stages: Sequence[StageName] | None = None,
    boxes: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    lr: float | None = None,
    proposals_stage: ProposalSettings | None = None,
    backbone_stage: StageSettings | None = None,
    detector_stage: DetectorStageSettings | None = None,
    weight_decay: float = 1e-4,
    dense_weight: float = 0.5,
    dense_warmup: int = 0,
    matching: Literal["max-similarity", "geometric", "random"] = "max-similarity",
    negatives: Literal["pooled", "dense"] = "pooled",
    grid: int | None = None,
    temperature: float | None = None,
    queue_length: int | None = None,
    momentum: float = 0.999,
    key_batch_norm: Literal["split", "none"] = "split",
    accumulate: int = 1,
    clip: float | None = None,
    neck: Literal["fpn", "c4"] | None = None,
    fpn_channels: int | None = None,
    head_convs: int | None = None,
    box_head: Literal["2fc", "4conv1fc"] | None = None,
    queries: int | None = None,
    train_backbone: bool = False,
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
    max_time: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Pre-train a whole detector from unlabelled images: backbone, neck and head.

    Three stages, each of which may be run alone: `proposals` finds boxes that may hold objects, `backbone` learns
    features (DenseCL, MoCo v2 or SimCLR), `detector` freezes them and learns neck and head from the boxes (AlignDet).

    Args:
        images: folder (nested or flat), glob, text list, COCO JSON or tar shards; no labels are read.
        out: run directory to make; refused when not empty, unless resuming.
        method: densecl contrasts local features besides global ones; moco is MoCo v2, global only; simclr contrasts the
            images of a batch among each other, without queue and key encoder.
        backbone: torchvision ResNet or any timm model with feature maps; resnet50 if not given.
        backbone_weights: initial weights of the backbone: `library` for the library's weights, a file, or a run (from a
            fine-tuned one, its backbone); random if not given.
        detector: detector to train; finetune continues with it.
        stages: stages to run; if not given all three, or all but `backbone` with backbone_weights.
        boxes: file of boxes to use instead of searching: one from selfdet proposals is used as it is, any other (COCO
            JSON or results) goes through the filters of proposals_stage.
        epochs: passes over the images in each training stage; chosen from the number of images if not given.
        steps: optimiser steps, overrides epochs; follows from epochs if not given.
        batch_size: images per optimiser step, over all processes and micro-batches; if not given, 64 on a CPU and 256
            on a GPU for the backbone, 8 and 16 for the detector, lowered where there are fewer images.
        image_size: size of a view, pixels: for the backbone its side, 224 if not given; for the detector its long side,
            the images' own up to 800 if not given.
        lr: peak learning rate; chosen from the number of images and the batch if not given.
        proposals_stage: how boxes are found and filtered.
        backbone_stage: the five settings above, and snapshots, for this stage alone.
        detector_stage: the five settings above, and snapshots, for this stage alone, and what only it has.
        weight_decay: weight decay of SGD.
        dense_weight: λ, the dense loss's share of the total (densecl).
        dense_warmup: steps over which λ rises from 0 (densecl).
        matching: how query cells find their key cell (densecl).
        negatives: what the dense queue keeps of an image: its pooled vector or sampled cells (densecl).
        grid: side of the grid of cells that the maps are pooled to; unpooled if not given (densecl).
        temperature: τ of the backbone stage's losses; 0.2, or 0.1 for simclr, if not given.
        queue_length: keys kept as negatives; chosen from the number of images if not given (densecl, moco).
        momentum: share of the key encoder that is kept at each step (densecl, moco).
        key_batch_norm: `split` normalises the permuted key batch in groups, so that statistics can't name the positive
            (densecl, moco).
        accumulate: micro-batches per optimiser step.
        clip: largest gradient norm; 0 for no limit; if not given, no limit for the backbone and 10 for the detector.
        neck: neck of faster_rcnn: fpn, a feature pyramid, if not given; with c4 there is only the backbone to
            pre-train.
        fpn_channels: width of the feature pyramid; 256 if not given.
        head_convs: convolutions in each tower of a one-stage detector; 4 if not given.
        box_head: box head of an R-CNN; 2fc if not given; 4conv1fc is what AlignDet's authors pre-train.
        queries: queries of a DETR: how many objects it can find in an image; 100 (detr) or 300 if not given.
        train_backbone: let the detector stage train the backbone too.
        seed: seed of weights, views and order.
        workers: loader processes; chosen from the cores if not given.
        preset: settings for a kind of machine: laptop, one-gpu or eight-gpu, see docs/how-to-settings.md; chosen from
            data and machine if not given.
        precision: auto takes bf16 where the hardware multiplies it.
        devices: number of processes on this machine, or auto.
        nodes: number of machines.
        threads: CPU threads of a process; 0 for torch's choice.
        log_every: steps between rows of metrics.jsonl.
        save_every: steps between checkpoints.
        snapshots: epochs after which each training stage keeps its weights in `snapshots/`, 0 for the start; none if
            not given.
        loggers: where else to send the figures of metrics.jsonl: tensorboard, wandb, or both; nowhere if not given.
        max_time: minutes after which the run is saved and stopped; 0 for no limit.
        resume: continue the run in `out`.

    Raises: UserError for what the user can put right; Interrupted after saving when stopped.

    Example:
        selfdet pretrain --images photos/ --detector fcos --backbone resnet18 --out runs/pre
    """
    check_out_is_new(out, resume)
    check_loggers(loggers)
    chosen = _stages(stages, backbone_weights, boxes)
    if neck == "c4" and "detector" in chosen:
        raise UserError(
            "--neck c4: such a detector has no neck or head to pre-train beside its backbone",
            "Add --stages backbone, and finetune from it with --detector faster_rcnn --neck c4",
        )
    if snapshots and chosen == ["proposals"]:
        raise UserError("--snapshots: finding boxes has no epochs", "Leave it out, or add a stage that trains")
    paths = list_images(images)
    whole, said = Preset(preset, "run"), [paths.words()] if isinstance(paths, ShardedImages) else []
    backbone = whole.word("backbone", backbone, BACKBONE, said)
    devices = whole.word("devices", None if devices == "auto" else devices, "auto", said)
    runtime = start_runtime(devices=devices, nodes=nodes, precision=precision, threads=threads)
    call = Call(
        out=out,
        several=len(chosen) > 1,
        runtime=runtime,
        seed=seed,
        weight_decay=weight_decay,
        accumulate=accumulate,
        workers=workers,
        log_every=log_every,
        save_every=save_every,
        max_time=max_time,
        resume=resume,
        loggers=loggers,
        preset=preset,
        said=said,
    )
    about: dict[str, Any] = {
        "verb": "pretrain",
        "stages": chosen,
        "images": str(images),
        "images_found": len(paths),
        "images_hash": _names_hash(paths),
        "backbone": backbone,
        "backbone_weights": backbone_weights,
        "detector": detector,
    }
    shared: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "image_size": image_size,
        "lr": lr,
    }
    shared["snapshots"] = snapshots
    backbone_settings = (backbone_stage or StageSettings()).over(**shared)
    detector_settings = (detector_stage or DetectorStageSettings()).over(**shared)
    # A stage that comes later is checked now, not after days of the one before.
    if "backbone" in chosen:
        call.snapshots("backbone", backbone_settings, backbone_length(call, len(paths), backbone_settings))
        if call.several:
            check_backbone_stage(about, backbone_settings)
    if "detector" in chosen:
        widths: dict[str, Any] = {"neck": neck, "fpn_channels": fpn_channels, "head_convs": head_convs}
        widths |= {"box_head": box_head, "queries": queries}
        network: dict[str, Any] = {
            "options": {name: value for name, value in widths.items() if value is not None},
            "train_backbone": train_backbone,
            "clip": clip,
        }
        if call.several:
            length = detector_length(call, len(paths), detector_settings)
            check_detector_stage(call, about, detector_settings, length=length, **network)
    result: dict[str, Any] = {}
    run = RunDir(out, writes=False)
    complete = _has_all(run, chosen) and run.report.is_file()
    if call.several and runtime.first:
        RunDir.open(out, {**about, "boxes": boxes, "seed": seed}, resume=resume)
    runtime.fabric.barrier()
    if chosen != ["backbone"]:
        result["proposals"] = str(pretrain_boxes(call, images, boxes, proposals_stage or ProposalSettings()))
    if "backbone" in chosen:
        options: dict[str, Any] = {"temperature": TEMPERATURES[method] if temperature is None else temperature}
        if method != "simclr":
            options |= {"momentum": momentum, "key_batch_norm": key_batch_norm}
        if method == "densecl":
            options |= {"dense_weight": dense_weight, "dense_warmup": dense_warmup, "matching": matching}
            options |= {"negatives": negatives, "grid": grid}
        done = pretrain_backbone(
            call,
            paths,
            about,
            backbone_settings,
            method=method,
            options=options,
            queue_length=queue_length,
            clip=clip or 0.0,
        )
        result["stages"] = {"backbone": done}
        if not done["finished"]:
            return _told(result, call)
        runtime.fabric.barrier()  # the others read what the first has written
        about = about | {"backbone_weights": str(RunDir(out).backbone)}
    if "detector" in chosen:
        done = pretrain_detector(
            call,
            Path(result["proposals"]),
            about | {"boxes": boxes},
            detector_settings,
            **network,
        )
        result.setdefault("stages", {})["detector"] = done
    if _has_all(run, chosen) and not complete:
        report_at_the_end(out, runtime, Reporter(run.log_file, quiet=not runtime.first))
    return _told(result, call)


def _has_all(run: RunDir, stages: Sequence[StageName]) -> bool:
    """Whether every training stage, and there is one, has written its weights."""
    made = {"backbone": run.backbone, "detector": run.detector}
    wanted = [made[stage] for stage in stages if stage in made]
    return bool(wanted) and all(file.is_file() for file in wanted)


def _stages(asked: Sequence[StageName] | None, backbone_weights: str | None, boxes: str | None) -> list[StageName]:
    """What to run, in the order of the flow. Raises: UserError where there is nothing to run, or nothing to run on."""
    if asked is None:
        return [stage for stage in STAGES if stage != "backbone" or backbone_weights is None]
    chosen = {stage for stage in STAGES if stage in asked}
    if not chosen:
        raise UserError("--stages names no stage", f"Choose from {', '.join(STAGES)}")
    if "detector" in chosen and "proposals" not in chosen:
        if boxes is None:
            raise UserError("the detector stage needs boxes", "Add proposals to --stages, or name --boxes FILE")
        if not are_proposals(boxes):  # they are filtered and written like any others
            chosen.add("proposals")
    if boxes is not None and chosen == {"backbone"}:
        raise UserError("--boxes is for the detector stage", "Add detector to --stages, or leave --boxes out")
    return [stage for stage in STAGES if stage in chosen]


def _told(result: dict[str, Any], call: Call) -> dict[str, Any]:
    """What the verb returns: of one stage its own answer, of several the weights and each one's figures."""
    stages: dict[str, Any] = result.pop("stages", {})
    if not call.several:
        return {"out": call.out, **result, **(next(iter(stages.values()), {}))}
    finished = all(done["finished"] for done in stages.values())
    weights = {name: done[name] for name, done in stages.items() if name in done}
    return {"out": call.out, **result, **weights, "finished": finished, "stages": stages}


def _names_hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for number, path in enumerate(paths):  # not joined: there may be ten million
        digest.update(("\n" * bool(number) + path.name).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
