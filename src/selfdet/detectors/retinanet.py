"""RetinaNet: nine anchors at every cell, each classified and shifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdet.detectors._torchvision import (
    ExactAnchorGenerator,
    RetinaNet,
    UnroundedAnchorGenerator,
    retinanet_head,
)
from selfdet.detectors._torchvision_mmdet import MMDetRetinaNet
from selfdet.detectors.anchors import RATIOS, level_sides
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.mmdet import coarse_levels, mmdet_form
from selfdet.detectors.network import Part
from selfdet.detectors.one_stage import OneStage, check_one_stage, one_stage_parts, one_stage_settings
from selfdet.models.backbones import Backbone
from selfdet.models.fpn import BackboneWithFPN
from selfdet.models.place_heads import AnchorHead


class RetinaNetDetector(OneStage):
    """torchvision's RetinaNet behind the `Detector` protocol; build it with `retinanet`."""

    net: RetinaNet
    key = "retinanet"
    boxes_per_image = 50
    samples_per_image = True

    def projector(self, dim: int) -> AnchorHead:
        """1×1 → ReLU → 1×1 in place of the classifier: an embedding of size `dim` an anchor."""
        return AnchorHead(self.net.backbone.out_channels, self.net.head.classification_head.num_anchors, dim)

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the pyramid, the two towers and the two output layers."""
        return one_stage_parts("bbox_reg", keep_box_outputs)


def retinanet(
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
) -> RetinaNetDetector:
    """RetinaNet with nine anchors a cell on a pyramid of strides 8 to 128 over `backbone`, its weights untouched.

    `batch_norm` rules the backbone's (`apply_batch_norm`): "train", "frozen" or "sync". `neck_norm` (None, "bn",
    "gn") goes into the pyramid. `image_size` is the long side (px) that images will have: it sets the sides of the
    anchors. `score_threshold` and `detections` bound an image's result.
    `mmdet`: none for torchvision's network, or settings for mmdet's (`mmdet_form`). In that anchors are not rounded and
    as large as in the paper whatever the `image_size`; the coarse levels are made of another map, without a ReLU in
    between and with the pyramid's norms; images are padded to the backbone's stride; deltas are bounded below, too;
    boxes without area are left out. Losses and assignment are torchvision's.

    Raises: UserError for values out of range.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection; torchvision.models.detection.RetinaNet.
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
        "mmdet": mmdet_form("retinanet", mmdet),
    }
    coarse = coarse_levels(options["mmdet"], normed=neck_norm is not None)
    body = BackboneWithFPN(backbone, fpn_channels, neck_norm, extra="p6p7", coarse=coarse)
    sizes = anchor_sides(image_size, body.strides)
    anchors, network = ExactAnchorGenerator(sizes, (RATIOS,) * len(sizes)), RetinaNet
    if options["mmdet"] is not None:
        octaves = tuple(tuple(4 * stride * 2 ** (third / 3) for third in range(3)) for stride in body.strides)
        anchors, network = UnroundedAnchorGenerator(octaves, RATIOS, body.strides), MMDetRetinaNet
    net = network(
        body,
        num_classes,
        anchor_generator=anchors,
        head=retinanet_head(fpn_channels, 3 * len(RATIOS), num_classes, head_convs),
        **one_stage_settings(backbone, body, options),
    )
    detector = RetinaNetDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


def anchor_sides(image_size: int, strides: list[int]) -> tuple[tuple[int, ...], ...]:
    """The three anchor sides (px) of each level, a third of an octave apart, for images of up to `image_size` px.

    torchvision's are four strides and up: 32 to 512 px and beyond, which at 256 px leaves the coarsest levels nothing
    but the border of the image and small objects nothing at all. Ours are four `level_sides` and up, so torchvision's
    from 784 px on and half of them up to 400 px.
    """
    starts = [4 * side for side in level_sides(image_size, strides)]
    return tuple(tuple(int(start * 2 ** (third / 3)) for third in range(3)) for start in starts)
