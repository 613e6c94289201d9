"""Part of rebuild.py: Faster and Mask R-CNN."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from selfdet.interchange.companions.anchors import anchors
from selfdet.interchange.companions.bodies import C4, NORMS, Res5, pyramid


class Aligned(MultiScaleRoIAlign):
    """Regions as mmdet and detectron2 cut them out: cells half a pixel from their corners, as many samples as cells."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Any]) -> Tensor:
        levels = self.map_levels(boxes)
        rows = torch.cat([torch.full_like(each[:, :1], row) for row, each in enumerate(boxes)])
        rois, maps = torch.cat([rows, torch.cat(boxes)], 1), [x[name] for name in self.featmap_names]
        cut = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (features, scale) in enumerate(zip(maps, self.scales)):
            own = levels == level
            cut[own] = roi_align(features, rois[own], self.output_size, scale, -1, aligned=True)
        return cut


def pool(config: dict[str, Any], cells: int) -> MultiScaleRoIAlign:
    """What cuts regions of `cells` × `cells` out of the maps.

    torchvision guesses the strides of the maps from the first image and keeps them, wrong ones where that is small
    beside its padding. So the first one here is an empty image of a size that leaves no doubt.
    """
    strides = config["strides"][:4]  # regions aren't cut out of a pyramid's fifth, subsampled map
    names = [str(level) for level in range(len(strides))]
    cut = MultiScaleRoIAlign(names, cells, 2, canonical_scale=config["canonical_scale"])
    side = 2 * strides[-1]
    maps = {name: torch.zeros(1, 1, side // stride, side // stride) for name, stride in zip(names, strides)}
    cut(maps, [torch.tensor([[0.0, 0.0, side, side]])], [(side, side)])
    if config.get("regions") == "exact":
        cut.__class__ = Aligned  # the same, with the strides that it has found
    return cut


def two_stage(config: dict[str, Any], cells: int) -> dict[str, Any]:
    """What R-CNNs are built with that see regions as `cells` × `cells`."""
    return {
        "rpn_anchor_generator": anchors(config),
        "box_roi_pool": pool(config, cells),
        "box_score_thresh": config["score_threshold"],
        "box_nms_thresh": config["nms_threshold"],
        "box_detections_per_img": config["detections"],
    }


def on_pyramid(config: dict[str, Any]) -> dict[str, Any]:
    """What Faster and Mask R-CNN on a pyramid are both built with, at random."""
    width, cells, features = config["fpn_channels"], 7, 1024
    if config["box_head"] == "2fc":
        head: nn.Module = TwoMLPHead(width * cells**2, features)
    else:
        head = FastRCNNConvFCHead((width, cells, cells), [width] * 4, [features], NORMS[config["neck_norm"]])
    body, classes = pyramid(config, LastLevelMaxPool()), len(config["classes"]) + 1
    return {"backbone": body, "num_classes": classes, "box_head": head, **two_stage(config, cells)}


def faster_rcnn(config: dict[str, Any]) -> FasterRCNN:
    """Faster R-CNN, at random: on a pyramid, or on a ResNet's fourth stage with the fifth as the box head."""
    if config["neck"] == "fpn":
        return FasterRCNN(**on_pyramid(config))
    resnet = torchvision.models.get_model(config["backbone"]["name"], weights=None)
    channels, features = config["backbone"]["channels"]
    training, evaluation = config["rpn_boxes"]
    return FasterRCNN(
        C4(resnet, channels),
        box_head=Res5(resnet.layer4),
        box_predictor=FastRCNNPredictor(features, len(config["classes"]) + 1),
        rpn_pre_nms_top_n_train=training,
        rpn_pre_nms_top_n_test=evaluation,
        **two_stage(config, 14),
    )


def mask_rcnn(config: dict[str, Any]) -> MaskRCNN:
    """Mask R-CNN on a pyramid, at random."""
    return MaskRCNN(mask_roi_pool=pool(config, 14), **on_pyramid(config))
