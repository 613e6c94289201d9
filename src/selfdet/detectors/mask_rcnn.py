"""Mask R-CNN: Faster R-CNN on a pyramid with a third branch that gives each region a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from selfdet.detectors._torchvision_rcnn import (
    MaskRCNN,
    RoIs,
    mask_logits,
    mask_loss,
    mask_probabilities,
)
from selfdet.detectors.base import Batch
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.faster_rcnn import check_rcnn, pyramid_settings
from selfdet.detectors.network import Part
from selfdet.detectors.two_stage import TwoStage
from selfdet.models.backbones import Backbone

RESOLUTION = 14  # cells of a region, along and across, that the mask branch sees; its masks have twice as many


class MaskRCNNDetector(TwoStage):
    """torchvision's Mask R-CNN behind the `Detector` protocol; build it with `mask_rcnn`."""

    net: MaskRCNN
    key = "mask_rcnn"
    has_masks = True
    labels_only = Part([r"roi_heads\.mask_"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Faster R-CNN's losses and torchvision's own "loss_mask" (scalar, float32) of the RoIs that hold an object.

        It is a mean over those whose object has a mask that is not empty. Where there is none, boxes train as in
        Faster R-CNN, and the mask's loss is 0 with gradients of 0.
        """
        losses, maps, rois = self._losses(batch)
        losses["loss_mask"] = object_mask_loss(
            lambda boxes: mask_logits(self.net, maps, boxes, batch.sizes), rois, batch.targets
        )
        return losses

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1 and
        "masks" (N, 28, 28), the probability of the object at the cells of its box."""
        found, maps = self._detections(batch)
        logits = mask_logits(self.net, maps, [each["boxes"] for each in found], batch.sizes)
        with torch.autocast(logits.device.type, enabled=False):
            masks = mask_probabilities(logits, [each["labels"] for each in found])
        return [{**each, "masks": own} for each, own in zip(found, masks)]

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """Faster R-CNN's parts, and "mask", the convolutions of the mask branch; its output layers count to the last.

        Box-domain pre-training leaves the whole mask branch at its random start.
        """
        parts = super().parts(keep_box_outputs)
        last = parts.pop("last")
        outputs = Part([*last.patterns, r"roi_heads\.mask_predictor\."], reinit=True)
        return {**parts, "mask": Part([r"roi_heads\.mask_head\."]), "last": outputs}


def mask_rcnn(
    num_classes: int,
    backbone: Backbone,
    *,
    fpn_channels: int = 256,
    box_head: str = "2fc",
    batch_norm: str = "train",
    neck_norm: str | None = None,
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    teacher_rois: str = "rpn",
    regions: str = "rounded",
) -> MaskRCNNDetector:
    """Mask R-CNN on a pyramid of strides 4 to 64 over `backbone`, its weights untouched; masks of 28 × 28 cells a box.

    The arguments are those of `faster_rcnn` on a pyramid. The mask branch has four 3×3 convolutions of 256 and no norm.

    Raises: UserError for values out of range.
    Source: He et al. 2017, Mask R-CNN; torchvision.models.detection.MaskRCNN.
    """
    options = {
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
    settings = pyramid_settings(backbone, options)
    net = MaskRCNN(num_classes=num_classes + 1, mask_roi_pool=mask_pool(settings), **settings)
    detector = MaskRCNNDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector


def mask_pool(settings: dict[str, Any]) -> nn.Module:
    """What cuts out regions for masks, of the `pyramid_settings`: twice as fine as for boxes, otherwise alike."""
    boxes = settings["box_roi_pool"]
    return type(boxes)(settings["backbone"].strides[:-1], RESOLUTION, boxes.canonical_scale)


def object_mask_loss(logits: Callable[[list[Tensor]], Tensor], rois: RoIs, targets: list[dict[str, Tensor]]) -> Tensor:
    """torchvision's own mask loss of the RoIs that hold an object with a mask that is not empty (scalar), a mean over
    them; 0 on the graph where there is none. `logits` gives those of boxes (R, 4) xyxy px of each image."""
    masks = [target.get("masks", target["boxes"].new_zeros(0, 1, 1)) for target in targets]
    held = [_masked(*each) for each in zip(rois.labels, rois.rows, masks)]
    boxes = [each[objects] for each, objects in zip(rois.boxes, held)]
    rows = [each[objects] for each, objects in zip(rois.rows, held)]
    labels = [target["labels"] + 1 for target in targets]
    return mask_loss(logits(boxes), boxes, masks, labels, rows)


def _masked(labels: Tensor, rows: Tensor, masks: Tensor) -> Tensor:
    """Which RoIs, (R,) bool, hold an object with a mask: of `labels` (R,), 0 background, `rows` (R,) in the targets
    and their masks (N, H, W), where there are masks at all."""
    held = labels > 0
    known = masks.flatten(1).any(1)
    held[held.clone()] = known[rows[held]] if len(known) else False
    return held
