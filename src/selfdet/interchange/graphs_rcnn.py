"""R-CNNs as functions of bytes alone; as `graphs.py`, of which this is the part for two-stage detectors.

Legend: R regions of all images, image by image.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from selfdet.detectors._torchvision_rcnn import AlignedRoIAlign
from selfdet.detectors.batch_norm import scale_and_shift
from selfdet.detectors.two_stage import TwoStage
from selfdet.interchange.graphs import FOUND, Anchors, best_of, clipped, framed, from_deltas
from selfdet.interchange.suppression import Suppression

SMALLEST, SMALLEST_FOUND = 1e-3, 1e-2  # px, sides of proposals and of detections


class RCNNGraph(nn.Module):
    """Faster, Mask or Cascade R-CNN.

    Where it `finds`: "boxes" (M, 4) xyxy px, "scores" (M,), "labels" (M,) int64 0…K−1 and "rows" (M,) int64, which
    image, image by image, the best first; with masks "masks" (M, 28, 28), probabilities in the frame of the box.
    Else, before the last suppression: "boxes" (R, K, 4), "scores" (R, K) and "rows" (R,) int64.
    """

    def __init__(self, detector: TwoStage, suppress: Suppression, finds: bool) -> None:
        super().__init__()
        self.detector = detector
        self.step = detector.size_divisor
        self.suppress = suppress
        self.finds = finds
        masks = ("masks",) if detector.has_masks else ()
        self.outputs = (*FOUND, *masks) if finds else ("boxes", "scores", "rows")
        for module in detector.net.roi_heads.modules():  # there may be no region at all
            scale_and_shift(module)
        self.anchors = Anchors(detector.net.rpn.anchor_generator, detector.config())

    def forward(self, images: Tensor, sizes: Tensor, threshold: Tensor | None = None) -> tuple[Tensor, ...]:
        detector, heads = self.detector, self.detector.net.roi_heads
        tensor = framed(images, sizes, detector.backbone)
        maps = detector.neck(detector.body(tensor))
        boxes, rows = self._proposed(maps, tensor, sizes)
        stages = getattr(detector, "stages", [heads])
        total: Any = 0.0
        masks: Any = 0.0
        for number, stage in enumerate(stages):
            logits, regression = stage.box_predictor(stage.box_head(pooled(stage.box_roi_pool, maps, boxes, rows)))
            total = total + logits.softmax(1)
            if number < len(stages) - 1:
                moved = from_deltas(regression[:, 4:8], boxes, stage.box_coder.weights)
                boxes = clipped(moved, sizes[rows])
        scores = (total / len(stages))[:, 1:]
        deltas = regression.unflatten(1, (-1, 4))[:, 1:]
        found = from_deltas(deltas, boxes[:, None], stage.box_coder.weights)
        found = clipped(found, sizes[rows][:, None])
        if not self.finds or threshold is None:
            return found, scores, rows
        boxes, scores, labels, rows = self._best(found, scores, rows, sizes, threshold)
        if not detector.has_masks:
            return boxes, scores, labels, rows
        regions, features = pooled(heads.mask_roi_pool, maps, boxes, rows), None
        for stage in stages:  # of a cascade each branch is told what the one before makes of a region
            features = stage.mask_head(regions if features is None else regions + stage.mask_flow(features))
            masks = masks + stage.mask_predictor(features).sigmoid() / len(stages)
        chosen = (labels + 1)[:, None, None, None].expand(-1, 1, masks.shape[-2], masks.shape[-1])
        return boxes, scores, labels, rows, masks.gather(1, chosen)[:, 0]

    def _proposed(self, maps: dict[str, Tensor], tensor: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The RPN's boxes (R, 4) xyxy px, the best of each image first, and which image each is of, (R,) int64."""
        rpn = self.detector.net.rpn
        levels = list(maps.values())
        boxes, scores, numbers = [], [], []
        for level, (features, likely, deltas) in enumerate(zip(levels, *rpn.head(levels))):
            flat = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            moved = clipped(from_deltas(flat, self.anchors(level, features, tensor)), sizes[:, None])
            likely = likely.permute(0, 2, 3, 1).flatten(1)[..., None].sigmoid()
            taken, best, _ = best_of(moved, likely, rpn.pre_nms_top_n())
            boxes.append(taken)
            scores.append(best * large(taken, SMALLEST))
            numbers.append(torch.full_like(best, level, dtype=torch.int64))
        together = torch.cat(boxes, 1)
        nothing = together.new_zeros(1)
        left = self.suppress(
            together, torch.cat(scores, 1), torch.cat(numbers, 1), nothing, rpn.post_nms_top_n(), rpn.nms_thresh
        )
        return together[left[:, 0], left[:, 1]], left[:, 0]

    def _best(
        self, boxes: Tensor, scores: Tensor, rows: Tensor, sizes: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is left of boxes (R, K, 4) and scores (R, K): boxes (M, 4), scores, labels and rows (M,)."""
        heads, most = self.detector.net.roi_heads, self.detector.net.rpn.post_nms_top_n()
        images, classes = sizes.shape[0], scores.shape[1]
        counts = (rows[:, None] == torch.arange(images)).long().sum(0)
        places = torch.arange(rows.shape[0]) - (counts.cumsum(0) - counts)[rows]
        likely = boxes.new_zeros(images, most, classes).index_put((rows, places), scores * large(boxes, SMALLEST_FOUND))
        filled = boxes.new_zeros(images, most, classes, 4).index_put((rows, places), boxes)
        likely, filled = likely.flatten(1), filled.flatten(1, 2)
        labels = torch.arange(classes).repeat(most).expand(images, -1)
        left = self.suppress(filled, likely, labels, threshold, heads.detections_per_img, heads.nms_thresh)
        kept = (left[:, 0], left[:, 1])
        return filled[kept], likely[kept], labels[kept], left[:, 0]


def large(boxes: Tensor, side: float) -> Tensor:
    """1 for boxes (…, 4) whose sides are at least `side` px, 0 for others."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1).to(boxes.dtype)


def pooled(pool: Any, maps: dict[str, Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
    """Regions (R, C, cells, cells), as `pool` cuts them out of the maps, of boxes (R, 4) xyxy px of images `rows`."""
    features = [maps[name] for name in pool.featmap_names]
    rois = torch.cat([rows[:, None].to(boxes.dtype), boxes], 1)
    aligned = isinstance(pool, AlignedRoIAlign)
    ratio = -1 if aligned else pool.sampling_ratio
    if len(features) == 1:
        return roi_align(features[0], rois, pool.output_size, pool.scales[0], ratio, aligned)
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.floor(pool.canonical_level + torch.log2(sides / pool.canonical_scale) + 1e-6)
    finest = -math.log2(pool.scales[0])
    levels = levels.clamp(finest, finest + len(features) - 1) - finest
    cut = features[0].new_zeros(boxes.shape[0], features[0].shape[1], *pool.output_size)
    for level, (each, scale) in enumerate(zip(features, pool.scales)):
        places = torch.where(levels == level)[0]
        own = roi_align(each, rois[places], pool.output_size, scale, ratio, aligned)
        cut = cut.index_put((places,), own)
    return cut
