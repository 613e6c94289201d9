"""What detectors share that first propose regions and then look at each: Faster and Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from selfdet.detectors._torchvision_rcnn import (
    FasterRCNN,
    RoIHeads,
    RoIs,
    box_features,
    box_regression_loss,
    class_losses,
    decoded_boxes,
    roi_detections,
    roi_outputs,
    rpn_boxes,
    training_rois,
)
from selfdet.detectors.base import Batch, Detector, Regions
from selfdet.detectors.network import Part, body_patterns
from selfdet.detectors.sampling import ObjectsFirst
from selfdet.detectors.settings import image_settings
from selfdet.models.backbones import Backbone, evaluating
from selfdet.models.place_heads import RegionHead

# In box-domain pre-training, of an image: anchors that train the RPN, RoIs that are compared, and boxes of the RPN
# before (a level's) and after suppression. All as in AlignDet.
ANCHORS = 4096
SAMPLES = 4096
PROPOSED = (2000, 1000)
# Background RoIs of an image that teach the classifier's layer what is no object.
BACKGROUND = 128
TEACHER_ROIS = ("rpn", "proposals")


class TwoStage(Detector):
    """A two-stage network of torchvision's behind the `Detector` protocol."""

    net: FasterRCNN
    key: ClassVar[str]
    # Names of what looks at the RoIs.
    heads: ClassVar[str] = r"roi_heads\."

    def __init__(self, net: FasterRCNN, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options
        self.size_divisor = net.transform.size_divisible

    def body(self, tensor: Tensor, net: nn.Module | None = None) -> dict[str, Tensor]:
        """The four maps (B, C, H/stride, W/stride) of (B, 3, H, W) normalised images that the pyramid stands on; of
        a plain transformer the one."""
        return self.net.backbone.maps(self.net.backbone.body if net is None else net, tensor)

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pyramid maps (B, fpn_channels, H/stride, W/stride), finest first, "pool" the last."""
        return self.net.backbone.neck(maps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """torchvision's own "loss_objectness" and "loss_rpn_box_reg" of the RPN, "loss_classifier" and "loss_box_reg"
        of the RoIs (scalars, float32), in torchvision's numbers: 256 anchors and 512 RoIs an image, a half and a
        quarter of them with an object where there are so many."""
        return self._losses(batch)[0]

    def _losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], RoIs]:
        """The losses, and for a branch that learns from the same RoIs the maps and these."""
        maps = self.features(batch)
        boxes, losses = rpn_boxes(self.net, batch.tensor, batch.sizes, maps, batch.targets)
        rois = training_rois(self.net.roi_heads, boxes, from_one(batch.targets, "labels"))
        outputs = roi_outputs(self.net.roi_heads, box_features(self.net.roi_heads, maps, rois.boxes, batch.sizes))
        return {**losses, **class_losses(*outputs, rois)}, maps, rois

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1."""
        return self._detections(batch)[0]

    def _detections(self, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        maps = self.features(batch)
        boxes, _ = rpn_boxes(self.net, batch.tensor, batch.sizes, maps)
        outputs = roi_outputs(self.net.roi_heads, box_features(self.net.roi_heads, maps, boxes, batch.sizes))
        return roi_detections(self.net.roi_heads, *outputs, boxes, batch.sizes), maps

    def projector(self, dim: int) -> nn.Module:
        """Linear → ReLU → linear in place of the classifier: an embedding of size `dim` a RoI."""
        return RegionHead(self.net.roi_heads.box_predictor.cls_score.in_features, dim)

    def regions(
        self,
        maps: Mapping[str, Tensor],
        batch: Batch,
        projector: nn.Module,
        generator: torch.Generator,
        *,
        losses: bool,
        samples: int | None = None,
    ) -> list[Regions]:
        """RoIs that hold a target: the RPN's boxes with an IoU of 0.5 with it, and the target's own; one `Regions`.

        At most `samples` of each image; background is left out. Without `losses` the option `teacher_rois` may take the
        targets' own boxes alone, and the RPN is not run. `losses`: the library's own "loss_objectness" and
        "loss_rpn_box_reg" of an image's 4,096 anchors, those of a target first, then background; "loss_box_reg" of the
        taken RoIs (a mean over them; as for the first class, whatever the target); and "loss_classifier", object or
        background, of the taken RoIs and up to 128 background ones an image. The last trains the classifier's layer
        alone, on features without gradient, so that what is pre-trained can already rank its boxes.
        Figures: "rpn_recall", the share of the targets that a box of the RPN meets with an IoU of 0.5.

        Source: Li et al., AlignDet, arXiv 2307.11077; of the classifier's loss: this project.
        """
        net, levels, most = self.net, dict(maps), SAMPLES if samples is None else samples
        own: dict[str, Tensor] = {}
        if losses or self.options["teacher_rois"] == "rpn":
            targets = batch.targets if losses else None
            sampler = ObjectsFirst(generator, ANCHORS)
            boxes, own = rpn_boxes(net, batch.tensor, batch.sizes, levels, targets, counts=PROPOSED, sampler=sampler)
        else:
            boxes = self._nothing_proposed(batch)
        sampler = ObjectsFirst(generator, most, BACKGROUND if losses else 0)
        rois = training_rois(net.roi_heads, boxes, from_one(batch.targets, "ids"), sampler)
        held = [labels > 0 for labels in rois.labels]
        taken = [each[objects] for each, objects in zip(rois.boxes, held)]
        features = box_features(net.roi_heads, levels, taken, batch.sizes)
        objects = torch.cat(held)
        regions = Regions(projector(features), torch.cat(rois.labels)[objects] - 1, torch.cat(taken))
        if losses:
            _, regression = roi_outputs(net.roi_heads, features)
            regions.boxes = decoded_boxes(net.roi_heads, regression.detach(), regions.boxes)
            own["loss_box_reg"] = box_regression_loss(regression, torch.cat(rois.deltas)[objects])
            rest = [each[~objects] for each, objects in zip(rois.boxes, held)]
            own["loss_classifier"] = self._object_or_not(features, levels, rest, batch.sizes)
            regions.losses, regions.figures = own, recall(boxes, batch.targets)
        return [regions]

    def _object_or_not(
        self, features: Tensor, maps: dict[str, Tensor], background: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        # The statistics of a batch norm in the box head stay those of the taken RoIs.
        with torch.no_grad(), evaluating(self.net.roi_heads.box_head):
            rest = box_features(self.net.roi_heads, maps, background, sizes)
        together = torch.cat([features, rest])
        truth = torch.zeros(len(together), dtype=torch.int64, device=together.device)
        truth[: len(features)] = 1
        return object_or_not(self.net.roi_heads, together, truth)

    def _nothing_proposed(self, batch: Batch) -> list[Tensor]:
        """Of each image no box, in the network's type."""
        dtype = next(self.net.parameters()).dtype
        return [target["boxes"].to(dtype)[:0] for target in batch.targets]

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the pyramid, the whole RPN, the box head and its two output layers.

        With `keep_box_outputs` the layer that gives boxes counts to the head. It has four rows a class: it fits where
        the number of classes is the same, so after pre-training (one class) where there is one.
        """
        classifier, boxes = (rf"{self.heads}box_predictor\.{layer}\." for layer in ("cls_score", "bbox_pred"))
        head = rf"{self.heads}box_head\."
        body, connections = body_patterns(r"backbone\.body\.")
        return {
            "backbone": Part([body]),
            "neck": Part([connections, r"backbone\.(fpn|simple)\."]),
            "rpn": Part([r"rpn\."]),
            "head": Part([head, boxes] if keep_box_outputs else [head]),
            "last": Part([classifier] if keep_box_outputs else [classifier, boxes], reinit=True),
        }

    def config(self) -> dict[str, Any]:
        """Plain values: `DETECTORS[detector](num_classes, build_backbone(backbone), **options)` rebuilds it; the rest
        is what torchvision's own network needs to know beside the weights: "anchor_sizes" (px) of each map,
        "canonical_scale" (px, of its `MultiScaleRoIAlign`)."""
        transform, generator = self.net.transform, self.net.rpn.anchor_generator
        return {
            "detector": self.key,
            "num_classes": self.num_classes,
            "backbone": self.backbone.name,
            "options": dict(self.options),
            "strides": list(self.net.backbone.strides),
            "anchor_sizes": [list(sizes) for sizes in generator.sizes],
            "aspect_ratios": list(generator.aspect_ratios[0]),
            "canonical_scale": self.net.roi_heads.box_roi_pool.canonical_scale,
            "nms_threshold": self.net.roi_heads.nms_thresh,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "size_divisible": transform.size_divisible,
        }


def object_or_not(heads: RoIHeads, features: Tensor, truth: Tensor) -> Tensor:
    """The mean cross-entropy of RoIs' `features` (R, D) with `truth` (R,) int64, 1 of an object and 0 of none, which
    trains the classifier's layer alone."""
    logits, _ = roi_outputs(heads, features.detach())
    with torch.autocast(logits.device.type, enabled=False):
        return functional.cross_entropy(logits, truth, reduction="sum") / max(1, len(logits))


def from_one(targets: list[dict[str, Tensor]], name: str) -> list[dict[str, Tensor]]:
    """Targets with their `name` counted from 1 as labels, 0 being the library's background."""
    return [{"boxes": target["boxes"], "labels": target[name] + 1} for target in targets]


def recall(boxes: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    hits = [
        (box_iou(target["boxes"].to(found.dtype), found) >= 0.5).any(1)
        for found, target in zip(boxes, targets)
        if len(target["boxes"])
    ]
    return {"rpn_recall": torch.cat(hits).float().mean()} if hits else {}


def rcnn_settings(
    backbone: Backbone, divisor: int, image_size: int, score_threshold: float, detections: int
) -> dict[str, Any]:
    """What torchvision's networks are told of images, padded to multiples of `divisor` px, and of results."""
    return {
        **image_settings(backbone, divisor, image_size),
        "box_score_thresh": score_threshold,
        "box_detections_per_img": detections,
    }
