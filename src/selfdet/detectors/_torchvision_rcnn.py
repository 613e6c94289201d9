"""What we use of torchvision's two-stage detectors beyond its documented interface: a contract test for each.

Legend: B images, N anchors an image, R regions of interest (RoIs) of all images, image by image, K classes, M the side
of a mask as the network gives it. The library's class 0 is the background, ours is its class 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
    paste_masks_in_image,
)
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

__all__ = [
    "AlignedRoIAlign",
    "ExactScaleRoIAlign",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "FasterRCNN",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "RoIHeads",
    "RoIs",
    "TwoMLPHead",
    "box_features",
    "box_regression_loss",
    "class_losses",
    "decoded_boxes",
    "mask_logits",
    "mask_loss",
    "mask_outputs",
    "mask_probabilities",
    "paste",
    "roi_detections",
    "roi_outputs",
    "rpn_boxes",
    "training_rois",
]

Maps = dict[str, Tensor]
Sizes = list[tuple[int, int]]
Targets = list[dict[str, Tensor]]
# Which of the anchors or RoIs of each image are trained, of their labels (N,) 1… object, 0 background, −1 neither:
# masks of the objects and of the background.
Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]
M = TypeVar("M", bound=nn.Module)


class RoIs(NamedTuple):
    """RoIs to train with; of each image "boxes" (R, 4) xyxy px, "rows" (R,) int64 in its targets, "labels" (R,) int64
    (0 background) and "deltas" (R, 4), the targets of the box regression, all without gradient."""

    boxes: list[Tensor]
    rows: list[Tensor]
    labels: list[Tensor]
    deltas: list[Tensor]


class ExactScaleRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling, told the strides of the maps.

    The library guesses them from the first batch's maps and unpadded sizes and never again: images that are small
    beside their padding (33 px in 64) make it pool from the wrong place for good.
    """

    def __init__(self, strides: Sequence[int], output_size: int, canonical_scale: int = 224) -> None:
        super().__init__([str(level) for level in range(len(strides))], output_size, 2, canonical_scale=canonical_scale)
        self.scales = [1 / stride for stride in strides]
        finest, coarsest = (int(math.log2(strides[end])) for end in (0, -1))
        self.map_levels = initLevelMapper(finest, coarsest, canonical_scale, self.canonical_level)


class AlignedRoIAlign(ExactScaleRoIAlign):
    """Pooling as mmdet and detectron2 do it: cells are points half a pixel from their corners, and each bin of a
    region averages as many samples as it spans cells. torchvision's is half a cell off, with 2 × 2 samples."""

    def forward(self, x: Maps, boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        """Regions (R, C, cells, cells) of the maps (B, C, H/stride, W/stride), of `boxes` (R, 4) xyxy px an image."""
        maps = [x[name] for name in self.featmap_names]
        levels = self.map_levels(boxes)
        rows = torch.cat([torch.full_like(each[:, :1], row) for row, each in enumerate(boxes)])
        rois = torch.cat([rows, torch.cat(boxes)], 1)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (features, scale) in enumerate(zip(maps, self.scales)):
            places = torch.where(levels == level)[0]
            own = roi_align(features, rois[places].to(features.dtype), self.output_size, scale, -1, aligned=True)
            pooled = pooled.index_put((places,), own.to(pooled.dtype))
        return pooled


def _exact(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _tuned(module: M, **settings: Any) -> M:
    """The module with the same weights and other settings, in the library's training or evaluation code whatever its
    own mode is. The module itself stays as it was."""
    twin = copy.copy(module)
    for name, value in settings.items():
        object.__setattr__(twin, name, value)  # not as a child, which both would share
    return twin


def _autocast_off(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def rpn_boxes(
    net: FasterRCNN,
    tensor: Tensor,
    sizes: Sizes,
    maps: Maps,
    targets: Targets | None = None,
    *,
    counts: tuple[int, int] | None = None,
    sampler: Sampler | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of each image the boxes (R, 4) xyxy px that the RPN proposes, the best first, without gradient; and of `targets`
    ("boxes" (M, 4) xyxy px) the library's own "loss_objectness" and "loss_rpn_box_reg", in float32 or double.

    `tensor` (B, 3, H, W) and `sizes` (h, w) are the padded images. `counts`: boxes of a level before suppression and
    of an image after it; the network's own for training or evaluation if None. `sampler`: its own if None.
    """
    rpn = net.rpn
    outputs = [[_exact(level) for level in kind] for kind in rpn.head(list(maps.values()))]

    def assign(anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = rpn.assign_targets_to_anchors(anchors, targets)
        return [each.to(outputs[0][0].dtype) for each in labels], boxes  # else their float32 would be the loss's

    settings: dict[str, Any] = {
        "training": targets is not None,
        "head": lambda maps: outputs,
        "assign_targets_to_anchors": assign,
    }
    if counts is not None:
        settings["_pre_nms_top_n"], settings["_post_nms_top_n"] = (
            {"training": count, "testing": count} for count in counts
        )
    if sampler is not None:
        settings["fg_bg_sampler"] = sampler
    with _autocast_off(tensor):
        return _tuned(rpn, **settings)(ImageList(tensor, sizes), maps, targets)


@torch.no_grad()
def training_rois(heads: RoIHeads, boxes: list[Tensor], targets: Targets, sampler: Sampler | None = None) -> RoIs:
    """The RoIs that a stage's heads train with: `boxes` (R, 4) xyxy px of each image and its targets' own, assigned and
    sampled. `targets` hold "boxes" (M, 4) and "labels" (M,) int64 from 1 on."""
    settings: dict[str, Any] = {"mask_roi_pool": None}  # else it asks for masks, which it does not use here
    if sampler is not None:
        settings["fg_bg_sampler"] = sampler
    with _autocast_off(boxes[0]):
        return RoIs(*map(list, _tuned(heads, **settings).select_training_samples(boxes, targets)))


def box_features(heads: RoIHeads, maps: Maps, boxes: list[Tensor], sizes: Sizes) -> Tensor:
    """What the box head makes of each RoI: (R, D), of `boxes` (R, 4) xyxy px of each image. Where there are none its
    weights are on the graph all the same."""
    if any(len(each) for each in boxes):
        return heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
    # Batch norm refuses to train on nothing: one RoI of the whole image, which is dropped.
    height, width = sizes[0]
    whole = [boxes[0].new_tensor([[0.0, 0.0, width, height]]), *boxes[1:]]
    return heads.box_head(heads.box_roi_pool(maps, whole, sizes))[:0]


def roi_outputs(heads: RoIHeads, *features: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (R, 1 + K) and box regression (R, 4 + 4K) of `box_features`, float32 or double. Where the heads'
    predictor takes two, the second are those that the logits are of."""
    logits, regression = heads.box_predictor(*features)
    return _exact(logits), _exact(regression)


def class_losses(logits: Tensor, regression: Tensor, rois: RoIs) -> dict[str, Tensor]:
    """The library's own "loss_classifier" and "loss_box_reg" of `roi_outputs`; 0 on the graph without RoIs."""
    if not len(logits):
        return {"loss_classifier": logits.sum(), "loss_box_reg": regression.sum()}
    with _autocast_off(logits):
        classifier, boxes = fastrcnn_loss(logits, regression, rois.labels, rois.deltas)
    return {"loss_classifier": classifier, "loss_box_reg": boxes}


def box_regression_loss(regression: Tensor, deltas: Tensor) -> Tensor:
    """The library's own box loss of RoIs that all hold an object of the first class; 0 on the graph without any.

    `regression` (R, 4 + 4K) as of `roi_outputs`, `deltas` (R, 4).
    """
    if not len(regression):
        return regression.sum()
    labels = torch.ones(len(regression), dtype=torch.int64, device=regression.device)
    with _autocast_off(regression):
        return fastrcnn_loss(regression[:, ::4].detach(), regression, [labels], [deltas])[1]


def decoded_boxes(heads: RoIHeads, regression: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (R, 4) xyxy px of the first class's regression in (R, 4 + 4K) at the RoIs (R, 4)."""
    return heads.box_coder.decode_single(regression[:, 4:8], boxes)


def roi_detections(
    heads: RoIHeads, logits: Tensor, regression: Tensor, boxes: list[Tensor], sizes: Sizes
) -> list[dict[str, Tensor]]:
    """The heads' own thresholding and suppression: per image "boxes" (M, 4) xyxy px of the unpadded image, "scores"
    (M,) falling, "labels" (M,) 0…K−1."""
    with _autocast_off(logits):
        found = heads.postprocess_detections(logits, regression, boxes, sizes)
    return [{"boxes": b, "scores": s, "labels": labels - 1} for b, s, labels in zip(*found)]


def mask_logits(net: MaskRCNN, maps: Maps, boxes: list[Tensor], sizes: Sizes) -> Tensor:
    """The masks' logits (R, 1 + K, M, M), float32 or double, of `boxes` (R, 4) xyxy px of each image."""
    heads = net.roi_heads
    return mask_outputs(heads, heads.mask_head(heads.mask_roi_pool(maps, boxes, sizes)))


def mask_outputs(heads: RoIHeads, features: Tensor) -> Tensor:
    """The masks' logits (R, 1 + K, M, M), float32 or double, of what a mask head has made of regions."""
    return _exact(heads.mask_predictor(features))


def mask_loss(
    logits: Tensor, boxes: list[Tensor], masks: list[Tensor], labels: list[Tensor], rows: list[Tensor]
) -> Tensor:
    """The library's own mask loss of `mask_logits` (scalar), 0 on the graph without RoIs.

    Of each image: `boxes` (R, 4) xyxy px, `masks` (N, H, W) and `labels` (N,) int64 from 1 on of its targets, `rows`
    (R,) int64, which of them each box is.
    """
    if not len(logits):
        return logits.sum()
    with _autocast_off(logits):
        return maskrcnn_loss(logits, boxes, masks, labels, rows)


def mask_probabilities(logits: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Of each image the masks (N, M, M), 0…1, of the classes `labels` (N,) 0…K−1, of `mask_logits`."""
    return [masks[:, 0] for masks in maskrcnn_inference(logits, [each + 1 for each in labels])]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, M, M), 0…1, of boxes (N, 4) xyxy px as (N, H, W) bool masks of an image of `size` (H, W)."""
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for row, mask, box in zip(pasted, masks, boxes):  # one by one: only the result need fit into memory
        row.copy_(paste_masks_in_image(mask[None, None], box[None], size)[0, 0] > 0.5)
    return pasted
