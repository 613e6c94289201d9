"""What mmdet's one-stage networks do otherwise than torchvision's, as classes of torchvision's: a contract test each.

Legend: as in `_torchvision`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.fcos import FCOSHead, FCOSRegressionHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from selfdet.detectors._torchvision import decoded

__all__ = ["MMDetFCOS", "MMDetFCOSHead", "MMDetRetinaNet"]


class _FoundAsMMDet:
    """mmdet's way from a head's outputs to detections.

    Which places are looked at goes by the classifier alone; where there is a centerness, a score is its product with
    the class's; boxes without area are left out.
    """

    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Per image "boxes" (M, 4) xyxy px inside of it, "scores" (M,) falling, "labels" (M,); of each level's
        outputs (B, n, …) and anchors (n, 4)."""
        made = []
        for row, size in enumerate(image_shapes):
            levels = zip(*([level[row] for level in values] for values in head_outputs.values()))
            found = [
                self._of_level(dict(zip(head_outputs, level)), places, size)
                for level, places in zip(levels, anchors[row])
            ]
            boxes, scores, labels = (torch.cat(each) for each in zip(*found))
            kept = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            made.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return made

    def _of_level(
        self, outputs: dict[str, Tensor], anchors: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        likely = outputs["cls_logits"].sigmoid()
        classes = likely.shape[1]
        likely = likely.flatten()
        pairs = torch.where(likely > self.score_thresh)[0]
        scores, best = likely[pairs].topk(min(self.topk_candidates, len(pairs)))
        places, labels = pairs[best] // classes, pairs[best] % classes
        if "bbox_ctrness" in outputs:
            scores = scores * outputs["bbox_ctrness"][places, 0].sigmoid()
        net: Any = self
        boxes = clip_boxes_to_image(decoded(net, outputs["bbox_regression"][places], anchors[places]), size)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[whole], scores[whole], labels[whole]


class _BoundedBoxCoder(BoxCoder):
    """Boxes that are no more smaller than their anchors than torchvision lets them be larger."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy px of deltas (N, 4) at the anchors (N, 4)."""
        moves, growths = rel_codes.split(2, 1)
        return super().decode_single(torch.cat([moves, growths.clamp(min=-self.bbox_xform_clip)], 1), boxes)


class MMDetRetinaNet(_FoundAsMMDet, RetinaNet):
    """RetinaNet that finds what mmdet's does."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.box_coder = _BoundedBoxCoder((1.0, 1.0, 1.0, 1.0))


class _MMDetRegressionHead(FCOSRegressionHead):
    """FCOS's branch of boxes with a factor for each level; `tower` is that of the classes, for a centerness on it."""

    tower: nn.Module | None

    def __init__(self, channels: int, convs: int, strides: list[int], relu: bool, tower: nn.Module | None) -> None:
        super().__init__(channels, 1, convs)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        self.strides, self.relu = strides, relu
        object.__setattr__(self, "tower", tower)  # not as a child: it is the other branch's

    def of_level(self, level: int, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances (B, h · w, 4) in strides, float32 or double, and centerness (B, h · w, 1) of a level's map
        (B, C, h, w); `seen`: what the tower of the classes makes of it."""
        own = self.conv(x)
        if self.tower is not None and seen is None:
            seen = self.tower(x)
        raw = self.bbox_reg(own)
        moves = (raw if raw.dtype == torch.float64 else raw.float()) * self.scales[level]
        distances = functional.relu(moves) if self.relu else moves.exp() / self.strides[level]
        return _rows(distances), _rows(self.bbox_ctrness(own if seen is None or self.tower is None else seen))

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Distances (B, N, 4) and centerness (B, N, 1) of all levels."""
        distances, centered = zip(*(self.of_level(level, features) for level, features in enumerate(x)))
        return torch.cat(distances, 1), torch.cat(centered, 1)


class MMDetFCOSHead(FCOSHead):
    """FCOS's head as mmdet's: distances are exponentials, or with `norm_on_bbox` in strides, of outputs times a factor
    of their level, and the centerness stands on either tower."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        convs: int,
        strides: list[int],
        norm_on_bbox: bool,
        centerness_on_reg: bool,
    ) -> None:
        super().__init__(channels, 1, num_classes, num_convs=convs)
        tower = None if centerness_on_reg else self.classification_head.conv
        self.regression_head = _MMDetRegressionHead(channels, convs, strides, norm_on_bbox, tower)

    def of_level(self, level: int, x: Tensor) -> dict[str, Tensor]:
        """The outputs (B, h · w, …) of a level's map (B, C, h, w)."""
        seen = self.classification_head.conv(x)
        distances, centered = self.regression_head.of_level(level, x, seen)
        logits = _rows(self.classification_head.cls_logits(seen))
        return {"cls_logits": logits, "bbox_regression": distances, "bbox_ctrness": centered}

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """The outputs (B, N, …) of all levels."""
        found = [self.of_level(level, features) for level, features in enumerate(x)]
        return {name: torch.cat([each[name] for each in found], 1) for name in found[0]}


def _rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h · w, C)."""
    return maps.flatten(2).transpose(1, 2)


class MMDetFCOS(_FoundAsMMDet, FCOS):
    """FCOS that finds what mmdet's does."""
