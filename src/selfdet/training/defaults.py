"""Settings that follow from the data's size, each with the reason that is printed beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from selfdet.data.labels import ImageRecord
from selfdet.errors import UserError
from selfdet.training.log import plural
from selfdet.training.optimizers import OptimizerName

ASKED = "given"
# Of this many images on a data set counts as large, for which the papers' ImageNet settings are taken, not COCO's.
LARGE = 500_000
# Images a step where nothing is asked, on a CPU and on a GPU.
BATCHES = {"backbone": (64, 256), "detector": (8, 16), "finetune": (8, 8)}
TRANSFORMERS = {"detr", "deformable_detr", "rtdetr"}  # detectors that SGD does not train
BOXES_A_CLUSTER = 10  # at least, on the mean
ENOUGH = 50 * 118_287  # views from which on they need no warning


class Default(NamedTuple):
    """A chosen number and why."""

    value: float
    reason: str

    def line(self, name: str) -> str:
        """How it is printed."""
        return f"{name}: {self.value:g} ({self.reason})"


class Policy(NamedTuple):
    """A chosen way of doing something and why."""

    value: str
    reason: str

    def line(self, name: str) -> str:
        """How it is printed."""
        return f"{name}: {self.value} ({self.reason})"


def batch_size(images: int, asked: int | None, usual: int, shares: int = 1, why: str = "default") -> Default:
    """Images a step: what was asked, else `usual` with its `why`; lowered where there are fewer images, to a multiple
    of `shares` (processes × micro-batches).

    Raises: UserError for less than one, and when there are fewer images than shares.
    """
    wanted = usual if asked is None else asked
    if wanted < 1:
        raise UserError(f"--batch-size is {wanted}, expected 1 or more", "Leave it out for the usual one")
    if images >= wanted:
        return Default(wanted, why if asked is None else ASKED)
    lowered = images // shares * shares
    if not lowered:
        raise UserError(
            f"{plural(images, 'image')} can't be shared by {shares} processes and micro-batches",
            "Use fewer --devices or a smaller --accumulate",
        )
    return Default(lowered, f"lowered from {wanted} for {plural(images, 'image')}: a batch repeats none")


def queue_length(images: int) -> Default:
    """Negatives kept: the largest power of two that the images fill once, 256 to 65,536."""
    power = 2 ** int(math.log2(max(1, images)))
    counted = plural(images, "image")
    if power < 256:
        return Default(256, f"{counted} are few: the queue holds several views of each, as negatives of each other")
    if power > 65_536:
        return Default(65_536, "as published")
    return Default(power, f"{counted}: a longer queue would hold views of the same image as negatives")


def contrastive_lr(images: int, batch: int, pretrained: bool) -> Default:
    """Peak learning rate of SGD for MoCo and DenseCL, in proportion to the batch.

    Source: 0.03 at batch 256 on ImageNet's 1.28 M images, 0.3 at batch 256 on COCO's 118 k.
    """
    base = 0.03 if images >= LARGE or pretrained else 0.3
    why = "weights that are already trained" if pretrained else plural(images, "image")
    return Default(base * batch / 256, f"{base} × {batch}/256, for {why}")


def asked_steps(images: int, batch: int, epochs: int | None, steps: int | None) -> Default | None:
    """Optimiser steps that the user asked for, as steps or as epochs; None where neither was given.

    Raises: UserError when the number is not positive.
    """
    for flag, given in (("steps", steps), ("epochs", epochs)):
        if given is not None and given < 1:
            raise UserError(f"--{flag} {given} is not positive", "Give at least 1")
    if steps is not None:
        return Default(steps, ASKED)
    if epochs is not None:
        per_epoch = max(1, images // batch)
        return Default(epochs * per_epoch, f"{plural(epochs, 'epoch')} of {plural(per_epoch, 'step')}")
    return None


class Length(NamedTuple):
    """How long a stage is: images a step, steps, and how many of them are an epoch."""

    batch: Default
    steps: Default
    per_epoch: int


def length(
    images: int,
    *,
    batch: int | None,
    usual_batch: Default,
    shares: int,
    epochs: int | None,
    steps: int | None,
    usual_steps: Callable[[int, int], Default],
) -> Length:
    """What was asked of batch, epochs and steps, else what is usual; `usual_steps(images, batch)`.

    Raises: UserError, see `batch_size` and `asked_steps`.
    """
    chosen = batch_size(images, batch, int(usual_batch.value), shares, usual_batch.reason)
    size = int(chosen.value)
    return Length(chosen, asked_steps(images, size, epochs, steps) or usual_steps(images, size), max(1, images // size))


def contrastive_steps(images: int, batch: int) -> Default:
    """Optimiser steps of MoCo and DenseCL. Source: 200 epochs of ImageNet, 800 of COCO."""
    epochs, name = (200, "ImageNet") if images >= LARGE else (800, "COCO")
    steps = plural(max(1, images // batch), "step")
    return Default(
        epochs * max(1, images // batch), f"{epochs} epochs of {steps}, as published for {name}; fewer with --epochs"
    )


def box_domain_steps(images: int, batch: int) -> Default:
    """Optimiser steps of AlignDet: 12 passes, but at least 1,000 steps. Source: 12 epochs of COCO."""
    per_epoch = max(1, images // batch)
    if 12 * per_epoch >= 1000:
        return Default(12 * per_epoch, f"12 epochs of {plural(per_epoch, 'step')}, as published; fewer with --epochs")
    return Default(1000, f"{plural(images, 'image')} are few: more than the published 12 epochs")


def finetune_steps(images: int, batch: int) -> Default:
    """Optimiser steps of fine-tuning: 24 passes, at least 400 and at most 12,000 steps.

    Source: AlignDet fine-tunes few labels for 12,000 iterations of 16.
    """
    value = max(400, min(12_000, 24 * math.ceil(images / batch)))
    return Default(value, f"24 passes over {plural(images, 'labelled image')}, within 400…12,000 steps")


def detector_optimizer(detector: str) -> OptimizerName:
    """What trains the detector of this key where nothing was asked: AdamW where there is a transformer, else SGD."""
    return "adamw" if detector in TRANSFORMERS else "sgd"


def pseudo_classes(detector: str, boxes: int) -> Default:
    """Classes that the detector of this key learns to tell proposals apart by, where nothing was asked; 1: none.

    Source: AlignDet has 256 for DETR.
    """
    if detector not in TRANSFORMERS:
        return Default(1, f"{detector} does not classify in pre-training")
    if boxes >= 256 * BOXES_A_CLUSTER:
        return Default(256, "as published")
    return Default(max(1, boxes // BOXES_A_CLUSTER), f"{plural(boxes, 'proposal')}, {BOXES_A_CLUSTER} a cluster")


def slow_learner(detector: str | None, images: int, steps: int, batch: int) -> list[str]:
    """A warning where the detector of this key needs more than it will see. Source: DETR learns COCO in 500 epochs."""
    if detector not in TRANSFORMERS or steps * batch >= ENOUGH:
        return []
    return [
        f"warning: {detector} learns slowly, on COCO in 50 to 500 passes over 118,287 images; from {steps * batch:,} "
        f"views of {plural(images, 'image')} expect far less of it than of fcos"
    ]


def detector_lr(batch: int, detector: str, optimizer: OptimizerName | None = None) -> Default:
    """Peak learning rate for the detector of this key, in both stages that train one.

    Source: AlignDet: at batch 16 with SGD 0.02 for R-CNNs, 0.01 for one-stage detectors, with AdamW 0.0001; in
    proportion to the batch.
    """
    name = optimizer or detector_optimizer(detector)
    base = 1e-4 if name == "adamw" else 0.02 if detector.endswith("rcnn") else 0.01
    return Default(base * batch / 16, f"{base} × {batch}/16, for {detector}")


def segmentation_steps(images: int, batch: int) -> Default:
    """Optimiser steps of segmentation: 30 passes, at least 400 and at most 40,000 steps.

    Source: the usual 20,000 iterations of 16 are 30 passes over VOC12's 10,582 images; 40,000 for Cityscapes.
    """
    value = max(400, min(40_000, 30 * math.ceil(images / batch)))
    return Default(value, f"30 passes over {plural(images, 'labelled image')}, within 400…40,000 steps")


def segmentation_lr(batch: int, optimizer: str = "sgd") -> Default:
    """Peak learning rate of an FCN: at batch 16 0.01 with SGD, 0.0001 with AdamW; in proportion to the batch."""
    base = 1e-4 if optimizer == "adamw" else 0.01
    return Default(base * batch / 16, f"{base} × {batch}/16, for fcn")


def segmentation_crop(image_size: int) -> Default:
    """Side (px) of the squares that are learned from: all of an image, at most 512. Source: VOC12 is cut to 512 px."""
    return Default(min(512, image_size), "the images' long side, at most 512 px")


def detection_size(records: Sequence[ImageRecord]) -> Default:
    """Long side (px) at which a detector sees images: the labelled images' own median, 128 to 800 px."""
    return detection_side([max(record.width, record.height) for record in records if record.width and record.height])


def detection_side(sides: Sequence[float]) -> Default:
    """`detection_size` for images of these long sides (px), those that the label file tells."""
    if not sides:
        return Default(640, "the label file does not say how large its images are")
    typical = median(sides)
    value = max(128, min(800, 32 * round(typical / 32)))
    return Default(value, f"the labelled images' long sides have the median {typical:g} px")
