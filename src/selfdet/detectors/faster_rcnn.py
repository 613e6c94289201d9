"""Faster R-CNN on a feature pyramid: boxes proposed at every cell, and each looked at once more."""

from __future__ import annotations

from typing import Any

from torch import nn

from selfdet.detectors._torchvision import ExactAnchorGenerator, UnroundedAnchorGenerator
from selfdet.detectors._torchvision_rcnn import (
    AlignedRoIAlign,
    ExactScaleRoIAlign,
    FasterRCNN,
    FastRCNNConvFCHead,
    TwoMLPHead,
)
from selfdet.detectors.anchors import RATIOS, working_scale
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.c4 import c4_detector
from selfdet.detectors.settings import check_detector
from selfdet.detectors.two_stage import TEACHER_ROIS, TwoStage, rcnn_settings
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone
from selfdet.models.fpn import NORMS, BackboneWithFPN

CHOICES = {
    "neck": ("fpn", "c4"),
    "box_head": ("2fc", "4conv1fc"),
    "teacher_rois": TEACHER_ROIS,
    "regions": ("rounded", "exact"),
}
REPRESENTATION = 1024  # features of a RoI
RESOLUTION = 7  # cells of a RoI, along and across


class FasterRCNNDetector(TwoStage):
    """torchvision's Faster R-CNN behind the `Detector` protocol; build it with `faster_rcnn`."""

    key = "faster_rcnn"


def faster_rcnn(
    num_classes: int,
    backbone: Backbone,
    *,
    neck: str = "fpn",
    fpn_channels: int = 256,
    box_head: str = "2fc",
    batch_norm: str = "train",
    neck_norm: str | None = None,
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    teacher_rois: str = "rpn",
    regions: str = "rounded",
) -> TwoStage:
    """Faster R-CNN over `backbone`, its weights untouched.

    `neck`: "fpn", a pyramid of strides 4 to 64, or, of a torchvision ResNet, "c4", its map of stride 16 as it is, with
    the last stage as the box head (`C4Detector`); `fpn_channels`, `box_head` and `neck_norm` are for the pyramid.
    `box_head`: "2fc", two linear layers of 1,024, or "4conv1fc", four 3×3 convolutions as wide as the pyramid and one
    linear layer. `batch_norm` rules the backbone's (`apply_batch_norm`): "train", "frozen" or "sync"; that of a C4
    box head always trains. `neck_norm`
    (None, "bn", "gn") goes into the pyramid and into the box head's convolutions. `image_size` is the long side (px)
    that images will have: it sets the sides of the anchors and which regions a level gets (`working_scale`).
    `score_threshold` and `detections` bound an image's result. `teacher_rois`: what the teacher of box-domain
    pre-training embeds, "rpn", the regions of its own RPN, or "proposals", the given boxes alone, which is cheaper.
    `regions`: "rounded", anchors and pooling as torchvision's, or "exact", as mmdet's and detectron2's, for a pyramid:
    weights of the one are off by half a pixel in the other (`UnroundedAnchorGenerator`, `AlignedRoIAlign`).

    Raises: UserError for values out of range.
    Source: Ren et al. 2015, Faster R-CNN; torchvision.models.detection.FasterRCNN. Its losses and numbers are that
    class's; the paper of AlignDet pre-trains "4conv1fc".
    """
    options = {
        "neck": neck,
        "fpn_channels": fpn_channels,
        "box_head": box_head,
        "batch_norm": batch_norm,
        "neck_norm": neck_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "teacher_rois": teacher_rois,
        "regions": regions,
    }
    check_rcnn(num_classes, backbone, options)
    detector: TwoStage
    if neck == "c4":
        detector = c4_detector(num_classes, backbone, options)
    else:
        net = FasterRCNN(num_classes=num_classes + 1, **pyramid_settings(backbone, options))
        detector = FasterRCNNDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


def pyramid_settings(backbone: Backbone, options: dict[str, Any]) -> dict[str, Any]:
    """What torchvision's R-CNNs on a pyramid are built with, but for the classes."""
    channels, image_size, neck_norm = options["fpn_channels"], options["image_size"], options["neck_norm"]
    body = BackboneWithFPN(backbone, channels, neck_norm, extra="pool")
    scale = working_scale(image_size)
    sides = tuple((int(8 * stride * scale),) for stride in body.strides)
    exact = options.get("regions") == "exact"
    anchors = UnroundedAnchorGenerator(sides, RATIOS, body.strides) if exact else None
    pool = AlignedRoIAlign if exact else ExactScaleRoIAlign
    return {
        "backbone": body,
        "rpn_anchor_generator": anchors or ExactAnchorGenerator(sides, (RATIOS,) * len(sides)),
        "box_roi_pool": pool(body.strides[:-1], RESOLUTION, int(224 * scale)),
        "box_head": build_box_head(options["box_head"], channels, neck_norm),
        **rcnn_settings(backbone, body.strides[-2], image_size, options["score_threshold"], options["detections"]),
    }


def check_rcnn(num_classes: int, backbone: Backbone, options: dict[str, Any]) -> None:
    """Refuse what no R-CNN can be built with. Raises: UserError."""
    check_detector(num_classes, backbone, options["fpn_channels"], options["image_size"])
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            raise UserError(f"{name} {options[name]!r}", f"expected {' or '.join(choices)}")


def build_box_head(kind: str, channels: int, norm: str | None) -> nn.Module:
    """What makes `REPRESENTATION` features of a RoI (channels, 7, 7): "2fc" or "4conv1fc"."""
    if kind == "2fc":
        return TwoMLPHead(channels * RESOLUTION**2, REPRESENTATION)
    size = (channels, RESOLUTION, RESOLUTION)
    return FastRCNNConvFCHead(size, [channels] * 4, [REPRESENTATION], NORMS[norm])
