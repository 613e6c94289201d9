"""FCOS: a box at every cell, as the distances from the cell to its four sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfdet.detectors._torchvision import FCOS, CellGenerator, ExactAnchorGenerator, FCOSHead
from selfdet.detectors._torchvision_mmdet import MMDetFCOS, MMDetFCOSHead
from selfdet.detectors.anchors import level_sides
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.mmdet import coarse_levels, mmdet_form
from selfdet.detectors.network import Part
from selfdet.detectors.one_stage import OneStage, check_one_stage, one_stage_parts, one_stage_settings
from selfdet.models.backbones import Backbone
from selfdet.models.fpn import BackboneWithFPN
from selfdet.models.place_heads import CellHead

# FCOS regresses distances through ReLU. From torchvision's start at 0 half of them are cut off, and boxes without area
# are a saddle of the GIoU loss: with few steps some runs never leave it (loss exactly 1, all distances 0). Objects are
# about this many anchor sides away from the borders of their boxes.
FIRST_DISTANCE = 3.0


class FCOSDetector(OneStage):
    """torchvision's FCOS behind the `Detector` protocol; build it with `fcos`."""

    net: FCOS
    key = "fcos"
    samples_per_image = False

    def projector(self, dim: int) -> CellHead:
        """3×3 → ReLU → 1×1 in place of the classifier: an embedding of size `dim` a cell."""
        return CellHead(self.net.backbone.out_channels, dim)

    def _trained(self, matched: Tensor, places: Tensor) -> Tensor:
        taken = torch.full_like(matched, -1).flatten()
        taken[places] = matched.flatten()[places]
        return taken.view_as(matched)

    def _figures(self, regression: Tensor) -> dict[str, Tensor]:
        """The share of distances that the ReLU has cut off, "zero_distances": a distance of 0 learns nothing."""
        return {"zero_distances": (regression == 0).float().mean()} if len(regression) else {}

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the pyramid, the two towers and the three output layers."""
        return one_stage_parts("(bbox_reg|bbox_ctrness|scales)", keep_box_outputs)

    def config(self) -> dict[str, Any]:
        """Every one-stage detector's values and "center_sampling_radius", in anchor sides."""
        return {**super().config(), "center_sampling_radius": self.net.center_sampling_radius}


def fcos(
    num_classes: int,
    backbone: Backbone,
    *,
    fpn_channels: int = 256,
    head_convs: int = 4,
    batch_norm: str = "train",
    neck_norm: str | None = None,
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    mmdet: Mapping[str, Any] | None = None,
) -> FCOSDetector:
    """FCOS with centre sampling on a pyramid of strides 8 to 128 over `backbone`, its weights untouched.

    `batch_norm` rules the backbone's (`apply_batch_norm`): "train", "frozen" or "sync". `neck_norm` (None, "bn",
    "gn") goes into the pyramid. `image_size` is the long side (px) that images will have: it sets `anchor_sizes`;
    the radius of centre sampling stays 1.5 strides. `score_threshold` and `detections` bound an image's result.
    `mmdet`: none for torchvision's network, or settings for mmdet's (`mmdet_form`). In that cells stand for their
    centres and are as large as their stride whatever the `image_size`; distances have a factor for each level and come
    through a ReLU or an exponential, the centerness from either tower; places are chosen by the class alone
    (`score_threshold`) and score its product with the centerness; images are padded to the backbone's stride; boxes
    without area are left out. Losses and assignment are torchvision's.

    Raises: UserError for values out of range.
    Source: Tian et al. 2019, FCOS; torchvision.models.detection.FCOS, whose classifier starts at probability 0.01.
    """
    check_one_stage(num_classes, backbone, fpn_channels, head_convs, image_size)
    options: dict[str, Any] = {
        "fpn_channels": fpn_channels,
        "head_convs": head_convs,
        "batch_norm": batch_norm,
        "neck_norm": neck_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "mmdet": mmdet_form("fcos", mmdet),
    }
    form = options["mmdet"]
    body = BackboneWithFPN(
        backbone, fpn_channels, neck_norm, extra="p6p7", coarse=coarse_levels(form, normed=neck_norm is not None)
    )
    sizes = anchor_sizes(image_size, body.strides) if form is None else list(body.strides)
    sides = tuple((size,) for size in sizes)
    if form is None:
        network, head = FCOS, FCOSHead(fpn_channels, 1, num_classes, num_convs=head_convs)
        anchors = ExactAnchorGenerator(sides, ((1.0,),) * len(sizes))
    else:
        told = form["norm_on_bbox"], form["centerness_on_reg"]
        network, head = MMDetFCOS, MMDetFCOSHead(fpn_channels, num_classes, head_convs, body.strides, *told)
        anchors = CellGenerator(sides, (1.0,), body.strides)
    net = network(
        body,
        num_classes,
        anchor_generator=anchors,
        head=head,
        center_sampling_radius=1.5 * body.strides[0] / sizes[0],
        **one_stage_settings(backbone, body, options),
    )
    _start_boxes(net.head.regression_head, body.strides, form)
    detector = FCOSDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


def _start_boxes(head: nn.Module, strides: list[int], form: Mapping[str, Any] | None) -> None:
    """Let all distances begin at `FIRST_DISTANCE` sides of their anchors, exponentials by the factors of the levels."""
    outputs: Any = head
    first = [FIRST_DISTANCE] * len(strides)
    if form is not None and not form["norm_on_bbox"]:
        first = [math.log(FIRST_DISTANCE * stride) for stride in strides]
    nn.init.constant_(outputs.bbox_reg.bias, first[0])
    if form is not None:
        with torch.no_grad():
            outputs.scales.copy_(torch.tensor([each / first[0] for each in first]))


def anchor_sizes(image_size: int, strides: list[int]) -> list[int]:
    """FCOS's anchor side (px) of each level, for images with a long side of `image_size` px: `level_sides`.

    torchvision derives everything scale-like from it: a level takes the boxes whose farthest side lies between 4 and
    8 anchor sides from the cell, and distances are regressed in anchor sides. Sides equal to the strides suit its
    usual 800 to 1333 px; at 320 px they leave the two coarsest levels empty and put three boxes in four on the
    finest. Scaling in proportion asks coarse grids to separate objects they have no cell for. We take the geometric
    mean of both (the generator rounds half sides, hence even ones). On COCO photographs at 320 px this uses four levels
    and leaves hardly more boxes without a cell than the strides do (11 % against 10 %; 19 % with a quarter stride).
    """
    return level_sides(image_size, strides)
