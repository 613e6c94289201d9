"""Part of rebuild.py: FCOS and RetinaNet, torchvision's own and as mmdet's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from selfdet.interchange.companions.anchors import anchors
from selfdet.interchange.companions.bodies import NORMS, pyramid


class Coarse(LastLevelP6P7):
    """The two coarsest levels as mmdet makes them, by the `form` of its settings."""

    p6: Any
    p7: Any

    def __init__(self, channels: int, width: int, form: dict[str, Any], norm: str | None) -> None:
        super().__init__(channels if form["add_extra_convs"] == "on_input" else width, width)
        self.form, layer = form, NORMS[norm]
        if layer is not None:
            self.p6.bias = self.p7.bias = None
            self.p6, self.p7 = nn.Sequential(self.p6, layer(width)), nn.Sequential(self.p7, layer(width))

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6((c if self.form["add_extra_convs"] == "on_input" else p)[-1])
        p7 = self.p7(functional.relu(p6) if self.form["relu_before_extra_convs"] else p6)
        return [*p, p6, p7], [*names, "p6", "p7"]


class FoundAsMMDet:
    """mmdet's way from a head's outputs to detections: places are chosen by the classifier alone, where there is a
    centerness a score is its product with the class's, boxes without area are left out."""

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        net: Any = self
        made = []
        for row, size in enumerate(image_shapes):
            every = []
            for level, places in enumerate(anchors[row]):
                outputs = {name: values[level][row] for name, values in head_outputs.items()}
                likely = outputs["cls_logits"].sigmoid()
                pairs = torch.where(likely.flatten() > net.score_thresh)[0]
                scores, best = likely.flatten()[pairs].topk(min(net.topk_candidates, len(pairs)))
                cells, labels = pairs[best] // likely.shape[1], pairs[best] % likely.shape[1]
                moves = outputs["bbox_regression"][cells]
                if "bbox_ctrness" in outputs:
                    scores = scores * outputs["bbox_ctrness"][cells, 0].sigmoid()
                    boxes = net.box_coder.decode(moves, places[cells])
                else:
                    limit = net.box_coder.bbox_xform_clip
                    moves = torch.cat([moves[:, :2], moves[:, 2:].clamp(min=-limit)], 1)
                    boxes = net.box_coder.decode_single(moves, places[cells])
                boxes = clip_boxes_to_image(boxes, size)
                whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
                every.append((boxes[whole], scores[whole], labels[whole]))
            boxes, scores, labels = (torch.cat(each) for each in zip(*every))
            kept = batched_nms(boxes, scores, labels, net.nms_thresh)[: net.detections_per_img]
            made.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return made


class MMDetRetinaNet(FoundAsMMDet, RetinaNet):
    """RetinaNet that finds what mmdet's does."""


class MMDetFCOS(FoundAsMMDet, FCOS):
    """FCOS that finds what mmdet's does."""


class MMDetFCOSHead(FCOSHead):
    """FCOS's head as mmdet's: exponentials, or distances in strides, of outputs times a factor of their level; the
    centerness stands on either tower."""

    def __init__(self, channels: int, classes: int, convs: int, strides: list[int], form: dict[str, Any]) -> None:
        super().__init__(channels, 1, classes, num_convs=convs)
        self.strides, self.form = strides, form
        self.regression_head.scales = nn.Parameter(torch.ones(len(strides)))

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        classes, boxes, found = self.classification_head, self.regression_head, []
        for level, features in enumerate(x):
            seen, own = classes.conv(features), boxes.conv(features)
            moves = boxes.bbox_reg(own) * boxes.scales[level]
            distances = moves.relu() if self.form["norm_on_bbox"] else moves.exp() / self.strides[level]
            centered = boxes.bbox_ctrness(own if self.form["centerness_on_reg"] else seen)
            found.append([each.flatten(2).transpose(1, 2) for each in (classes.cls_logits(seen), distances, centered)])
        every = (torch.cat(each, 1) for each in zip(*found))
        return dict(zip(("cls_logits", "bbox_regression", "bbox_ctrness"), every))


def one_stage(config: dict[str, Any]) -> dict[str, Any]:
    """What FCOS and RetinaNet are both built with, at random."""
    width, form = config["fpn_channels"], config.get("mmdet")
    coarse = LastLevelP6P7(width, width)
    if form is not None:
        coarse = Coarse(config["backbone"]["channels"][-1], width, form, config["neck_norm"])
    return {
        "backbone": pyramid(config, coarse),
        "num_classes": len(config["classes"]),
        "anchor_generator": anchors(config),
        "score_thresh": config["score_threshold"],
        "nms_thresh": config["nms_threshold"],
        "detections_per_img": config["detections"],
    }


def fcos(config: dict[str, Any]) -> FCOS:
    """FCOS, at random."""
    width, classes, convs = (config[name] for name in ("fpn_channels", "classes", "head_convs"))
    form = config.get("mmdet")
    settings = {"center_sampling_radius": config["center_sampling_radius"], **one_stage(config)}
    if form is None:
        return FCOS(head=FCOSHead(width, 1, len(classes), num_convs=convs), **settings)
    return MMDetFCOS(head=MMDetFCOSHead(width, len(classes), convs, config["strides"], form), **settings)


def retinanet(config: dict[str, Any]) -> RetinaNet:
    """RetinaNet, at random, its towers as long as they were trained; torchvision's head always has four layers."""
    width = config["fpn_channels"]
    head = RetinaNetHead(width, anchors(config).num_anchors_per_location()[0], len(config["classes"]))
    for branch in (head.classification_head, head.regression_head):
        convs = (Conv2dNormActivation(width, width, norm_layer=None) for _ in range(config["head_convs"]))
        branch.conv = nn.Sequential(*convs)
    network = RetinaNet if config.get("mmdet") is None else MMDetRetinaNet
    return network(head=head, **one_stage(config))
