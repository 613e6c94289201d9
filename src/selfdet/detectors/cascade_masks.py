"""The mask branch of a cascade, as in HTC: each stage's sees the boxes that the stage has moved, and is told what the
branches before it make of them."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from selfdet.detectors._torchvision_rcnn import (
    MaskRCNNHeads,
    MaskRCNNPredictor,
    RoIHeads,
    mask_outputs,
    mask_probabilities,
)

WIDTH, CONVOLUTIONS = 256, 4
Maps = dict[str, Tensor]
Sizes = list[tuple[int, int]]


def add_mask_branches(stages: list[RoIHeads], pool: nn.Module, channels: int, classes: int) -> None:
    """Give each stage a branch as of Mask R-CNN, four 3×3 convolutions of 256 without norm, and each but the first
    `mask_flow`, a 1×1 convolution over what the branch before it has made of a region.

    `pool` cuts out regions (R, channels, 14, 14); `classes` counts the background.
    """
    for heads in stages:
        heads.mask_roi_pool = pool
        heads.mask_head = MaskRCNNHeads(channels, (WIDTH,) * CONVOLUTIONS, 1)
        heads.mask_predictor = MaskRCNNPredictor(WIDTH, WIDTH, classes)
    for before, heads in pairwise(stages):
        heads.mask_flow = nn.Conv2d(WIDTH, before.mask_head[0][0].in_channels, 1)


def mask_logits(stages: list[RoIHeads], maps: Maps, boxes: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """What the branch of each stage makes of `boxes` (R, 4) xyxy px of each image: logits (R, 1 + K, 28, 28), float32
    or double. A branch sees its region, and adds to it what `mask_flow` makes of the features of the one before."""
    regions = stages[0].mask_roi_pool(maps, boxes, sizes)
    logits: list[Tensor] = []
    features: Tensor | None = None
    for heads in stages:
        features = heads.mask_head(regions if features is None else regions + heads.mask_flow(features))
        logits.append(mask_outputs(heads, features))
    return logits


def mean_masks(logits: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
    """Of each image the masks (N, 28, 28), 0…1, of the classes `labels` (N,) 0…K−1: the mean over the stages."""
    stages = [mask_probabilities(each, labels) for each in logits]
    return [sum(own[1:], own[0]) / len(own) for own in zip(*stages)]
