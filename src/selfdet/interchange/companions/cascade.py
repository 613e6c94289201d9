"""Part of rebuild.py: Cascade R-CNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from selfdet.interchange.companions.two_stage import on_pyramid, pool


class OneBox(nn.Module):
    """A stage's outputs: logits of each class, and one box, which is the same for all of them."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(features, classes), nn.Linear(features, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.cls_score(x)
        return logits, self.bbox_pred(x).repeat(1, logits.shape[1])


class Looks(RoIHeads):
    """The first stage of a cascade, which calls the `later` ones: each looks where the one before has moved a box."""

    later: list[RoIHeads]

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[Any], targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            raise RuntimeError("this network is for detection: torchvision has no cascade to train it with")
        scores: Any = 0.0
        for heads in (self, *self.later):
            boxes, counts = proposals, [len(each) for each in proposals]
            logits, regression = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, image_shapes)))
            scores = scores + logits.softmax(1) / (1 + len(self.later))
            moved = heads.box_coder.decode_single(regression[:, :4], torch.cat(boxes)).split(counts)
            proposals = [clip_boxes_to_image(each, size) for each, size in zip(moved, image_shapes)]
        found = heads.postprocess_detections(scores.log(), regression, boxes, image_shapes)
        if self.mask_head is None:
            return [dict(zip(("boxes", "scores", "labels"), each)) for each in zip(*found)], {}
        masks = self.masks(features, found[0], image_shapes, torch.cat(found[2]))
        whole = zip(*found, masks.split([len(each) for each in found[0]]))
        return [dict(zip(("boxes", "scores", "labels", "masks"), each)) for each in whole], {}

    def masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Any], labels: Tensor
    ) -> Tensor:
        """The masks (R, 1, 28, 28), 0…1, of the boxes' classes: the mean of the branches, each told what the one before
        it makes of a region."""
        regions, seen = self.mask_roi_pool(features, boxes, image_shapes), None
        total = torch.zeros(len(labels), 1, 1, 1, device=labels.device)
        for heads in (self, *self.later):
            seen = heads.mask_head(regions if seen is None else regions + heads.mask_flow(seen))
            likely = heads.mask_predictor(seen).sigmoid()[torch.arange(len(labels)), labels]
            total = total + likely[:, None] / (1 + len(self.later))
        return total


def cascade_rcnn(config: dict[str, Any]) -> FasterRCNN:
    """Cascade R-CNN, at random: `roi_heads` is the first stage, `refine` has the others."""
    settings = on_pyramid(config)
    classes = settings.pop("num_classes")
    net, stages = FasterRCNN(box_predictor=OneBox(1024, classes), **settings), []
    for kind, (overlap, factors) in zip((Looks, RoIHeads, RoIHeads), config["cascade"]):
        head, ends = on_pyramid(config)["box_head"], OneBox(1024, classes)
        bounds = (config["score_threshold"], config["nms_threshold"], config["detections"])
        stages.append(kind(settings["box_roi_pool"], head, ends, overlap, overlap, 512, 0.25, factors, *bounds))
        if config.get("masks"):
            stages[-1].mask_roi_pool = pool(config, 14)
            stages[-1].mask_head = MaskRCNNHeads(config["fpn_channels"], (256,) * 4, 1)
            stages[-1].mask_predictor = MaskRCNNPredictor(256, 256, classes)
            if len(stages) > 1:
                stages[-1].mask_flow = nn.Conv2d(256, config["fpn_channels"], 1)
    net.roi_heads, *later = stages
    net.roi_heads.later = later
    net.refine = nn.ModuleList(later)
    return net
