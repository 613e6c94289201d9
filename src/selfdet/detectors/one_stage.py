"""Detectors that predict at every cell of a pyramid: FCOS."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from selfdet.detectors._torchvision import (
    FCOS,
    ExactAnchorGenerator,
    FCOSHead,
    fcos_detections,
    fcos_losses,
    fcos_outputs,
)
from selfdet.detectors.base import Batch, Detector, Part
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone
from selfdet.models.fpn import BackboneWithFPN

# FCOS regresses distances through ReLU. From torchvision's start at 0 half of them are cut off, and boxes without area
# are a saddle of the GIoU loss: with few steps some runs never leave it (loss exactly 1, all distances 0). Objects are
# about this many anchor sides away from the borders of their boxes.
FIRST_DISTANCE = 3.0


class FCOSDetector(Detector):
    """torchvision's FCOS behind the `Detector` protocol; build it with `fcos`."""

    net: FCOS

    def __init__(self, net: FCOS, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options
        self.size_divisor = net.transform.size_divisible

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Pyramid maps (B, fpn_channels, H/stride, W/stride), finest first."""
        return self.net.backbone(batch.tensor)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """torchvision's own "classification", "bbox_regression" and "bbox_ctrness" losses (scalars, float32)."""
        maps = list(self.features(batch).values())
        outputs = fcos_outputs(self.net, maps)
        return fcos_losses(self.net, batch.tensor, batch.sizes, maps, outputs, batch.targets)

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1."""
        maps = list(self.features(batch).values())
        outputs = fcos_outputs(self.net, maps)
        return fcos_detections(self.net, batch.tensor, batch.sizes, maps, outputs)

    def parts(self) -> dict[str, Part]:
        """The backbone, the pyramid, the two towers and the three output layers."""
        return {
            "backbone": Part([r"backbone\.body\."]),
            "neck": Part([r"backbone\.fpn\."]),
            "head": Part([r"head\.(classification|regression)_head\.conv\."]),
            "last": Part(
                [r"head\.classification_head\.cls_logits\.", r"head\.regression_head\.(bbox_reg|bbox_ctrness)\."],
                reinit=True,
            ),
        }

    def config(self) -> dict[str, Any]:
        """Plain values: `DETECTORS[detector](num_classes, build_backbone(backbone), **options)` rebuilds it; the rest
        is what a stock torchvision FCOS needs to know beside the weights."""
        transform = self.net.transform
        return {
            "detector": "fcos",
            "num_classes": self.num_classes,
            "backbone": self.backbone.name,
            "options": dict(self.options),
            "strides": list(self.net.backbone.strides),
            "anchor_sizes": [size for (size,) in self.net.anchor_generator.sizes],
            "center_sampling_radius": self.net.center_sampling_radius,
            "nms_threshold": self.net.nms_thresh,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "size_divisible": transform.size_divisible,
        }


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
    if num_classes < 1:
        raise UserError(f"{num_classes} classes: a detector needs at least one", "check the label file's categories")
    if fpn_channels < 64 or fpn_channels % 32:  # 32 groups a norm; groups of one cannot normalise a single cell
        raise UserError(f"fpn_channels {fpn_channels}: expected a multiple of 32 from 64 on", "use 128 or 256")
    if head_convs < 1:
        raise UserError(f"head_convs {head_convs}: expected at least 1", "the usual number is 4")
    backbone.check_image_size(image_size, any_shape=True)
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
        min_size=image_size,
        max_size=image_size,
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        anchor_generator=ExactAnchorGenerator(tuple((size,) for size in sizes), ((1.0,),) * len(sizes)),
        head=FCOSHead(fpn_channels, 1, num_classes, num_convs=head_convs),
        center_sampling_radius=1.5 * body.strides[0] / sizes[0],
        score_thresh=score_threshold,
        detections_per_img=detections,
        # torchvision spaces a level's anchors by padded size // cells, which is the stride only where that divides:
        # a multiple of 64 keeps all levels but the coarsest exact, and 320 px as they are.
        size_divisible=body.strides[-2],
    )
    nn.init.constant_(net.head.regression_head.bbox_reg.bias, FIRST_DISTANCE)
    detector = FCOSDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


def anchor_sizes(image_size: int, strides: list[int]) -> list[int]:
    """FCOS's anchor side (px) of each level, for images with a long side of `image_size` px.

    torchvision derives everything scale-like from it: a level takes the boxes whose farthest side lies between 4 and
    8 anchor sides from the cell, and distances are regressed in anchor sides. Sides equal to the strides suit its
    usual 800 to 1333 px; at 320 px they leave the two coarsest levels empty and put three boxes in four on the
    finest. Scaling in proportion asks coarse grids to separate objects they have no cell for. We take the geometric
    mean of both, √(image_size / 1024) strides, as even whole pixels (the generator rounds half sides) between half a
    stride and a stride: 4, 8, 16, 32, 64 px up to 400 px, the strides themselves from 784 px on. On COCO photographs
    at 320 px this uses four levels and leaves hardly more boxes without a cell than the strides do (11 % against 10 %;
    19 % with a quarter stride).
    """
    finest = strides[0]
    side = min(finest, max(finest // 2, 2 * round(finest * (image_size / 1024) ** 0.5 / 2)))
    return [side * stride // finest for stride in strides]
