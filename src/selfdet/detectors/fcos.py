"""FCOS: a box at every cell, as the distances from the cell to its four sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfdet.detectors._torchvision import FCOS, ExactAnchorGenerator, FCOSHead
from selfdet.detectors.anchors import level_sides
from selfdet.detectors.batch_norm import apply_batch_norm
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
        return one_stage_parts("(bbox_reg|bbox_ctrness)", keep_box_outputs)

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
) -> FCOSDetector:
    """FCOS with centre sampling on a pyramid of strides 8 to 128 over `backbone`, its weights untouched.

    `batch_norm` rules the backbone's (`apply_batch_norm`): "train", "frozen" or "sync". `neck_norm` (None, "bn",
    "gn") goes into the pyramid. `image_size` is the long side (px) that images will have: it sets `anchor_sizes`;
    the radius of centre sampling stays 1.5 strides. `score_threshold` and `detections` bound an image's result.

    Raises: UserError for values out of range.
    Source: Tian et al. 2019, FCOS; torchvision.models.detection.FCOS, whose classifier starts at probability 0.01.
    """
    check_one_stage(num_classes, backbone, fpn_channels, head_convs, image_size)
    options = {
        "fpn_channels": fpn_channels,
        "head_convs": head_convs,
        "batch_norm": batch_norm,
        "neck_norm": neck_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
    }
    body = BackboneWithFPN(backbone, fpn_channels, neck_norm, extra="p6p7")
    sizes = anchor_sizes(image_size, body.strides)
    net = FCOS(
        body,
        num_classes,
        anchor_generator=ExactAnchorGenerator(tuple((size,) for size in sizes), ((1.0,),) * len(sizes)),
        head=FCOSHead(fpn_channels, 1, num_classes, num_convs=head_convs),
        center_sampling_radius=1.5 * body.strides[0] / sizes[0],
        **one_stage_settings(backbone, body, options),
    )
    nn.init.constant_(net.head.regression_head.bbox_reg.bias, FIRST_DISTANCE)
    detector = FCOSDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


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
