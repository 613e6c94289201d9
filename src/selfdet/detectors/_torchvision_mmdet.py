"""What mmdet's one-stage networks do otherwise than torchvision's, as classes of torchvision's: a contract test each.

Legend: as in `_torchvision`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from selfdet.detectors._torchvision import decoded

__all__ = ["MMDetRetinaNet"]


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
