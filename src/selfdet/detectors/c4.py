"""Faster R-CNN without a pyramid: a ResNet's fourth stage proposes, its fifth looks at each region.

Legend: C4 is the map of the fourth of a ResNet's five stages (`layer3`, stride 16); res5 is its fifth (`layer4`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from selfdet.detectors._torchvision import ExactAnchorGenerator
from selfdet.detectors._torchvision_rcnn import ExactScaleRoIAlign, FasterRCNN, FastRCNNPredictor
from selfdet.detectors.anchors import RATIOS, working_scale
from selfdet.detectors.network import Part
from selfdet.detectors.two_stage import TwoStage, rcnn_settings
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone, Trunk

STRIDE = 16
RESOLUTION = 14  # cells of a region before res5 halves them
SIDES = (32, 64, 128, 256, 512)  # px of the anchors at the usual sizes of images
# Boxes of the RPN before suppression, as is usual where one map gives them all (a pyramid has 2,000 and 1,000 a level).
PROPOSED = {"rpn_pre_nms_top_n_train": 12000, "rpn_pre_nms_top_n_test": 6000}


class C4Detector(TwoStage):
    """torchvision's Faster R-CNN on one map behind the `Detector` protocol; `faster_rcnn(…, neck="c4")` builds it."""

    key = "faster_rcnn"

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The body's map: there is no neck."""
        return dict(maps)

    def projector(self, dim: int) -> nn.Module:
        """Not for this detector: its box head is a part of the backbone, which box-domain pre-training freezes.

        Raises: UserError.
        """
        raise UserError(
            "a C4 detector has no neck or head to pre-train beside its backbone",
            "Pre-train its backbone alone, or faster_rcnn with the neck fpn",
        )

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone in both its halves (res5 is the box head), the RPN, and the two output layers.

        With `keep_box_outputs` the layer that gives boxes is the head.
        """
        parts = super().parts(keep_box_outputs)
        backbone = Part([*parts["backbone"].patterns, r"roi_heads\.box_head\."])
        boxes = {"head": Part(parts["head"].patterns[1:])} if keep_box_outputs else {}
        return {"backbone": backbone, "rpn": parts["rpn"], **boxes, "last": parts["last"]}

    def config(self) -> dict[str, Any]:
        """As on a pyramid, and "rpn_boxes", how many the RPN proposes before suppression in training and evaluation."""
        return {**super().config(), "rpn_boxes": list(PROPOSED.values())}


class C4Body(nn.Module):
    """A ResNet's children up to `layer3`, in `body`, giving their last map, with its `strides` and `out_channels`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        children = backbone.net.named_children()
        self.body = Trunk(nn.ModuleDict({name: child for name, child in children if name != "layer4"}))
        self.out_channels = backbone.channels[-2]
        self.strides = [STRIDE]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The map (B, C, H/16, W/16) of normalised images x (B, 3, H, W)."""
        return self.maps(self.body, x)

    @staticmethod
    def maps(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """The map "0" that `net`, the body or a copy of it, makes of images x."""
        return {"0": list(net(x).values())[-1]}


class Res5Head(nn.Module):
    """A ResNet's `layer4` over pooled regions, then their mean over cells."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, regions: Tensor) -> Tensor:
        """(R, D) of regions (R, C, 14, 14)."""
        return self.layer4(regions).mean((2, 3))


def c4_detector(num_classes: int, backbone: Backbone, options: dict[str, Any]) -> C4Detector:
    """The detector over a torchvision ResNet, whose `layer4` becomes the box head. Raises: UserError."""
    if backbone.library != "torchvision":
        raise UserError(
            f"neck c4 on backbone {backbone.name}", "take a ResNet of torchvision, such as resnet50, or fpn"
        )
    for name, usual in (("fpn_channels", 256), ("neck_norm", None), ("box_head", "2fc"), ("regions", "rounded")):
        if options[name] != usual:
            raise UserError(f"{name} {options[name]!r} with neck c4", f"leave {name} out: it is for the neck fpn")
    image_size = options["image_size"]
    scale = working_scale(image_size)
    sides = tuple(int(side * scale) for side in SIDES)
    body = C4Body(backbone)
    net = FasterRCNN(
        body,
        rpn_anchor_generator=ExactAnchorGenerator((sides,), (RATIOS,)),
        box_roi_pool=ExactScaleRoIAlign([STRIDE], RESOLUTION),
        box_head=Res5Head(backbone.net.get_submodule("layer4")),
        box_predictor=FastRCNNPredictor(backbone.channels[-1], num_classes + 1),
        **PROPOSED,
        **rcnn_settings(backbone, STRIDE, image_size, options["score_threshold"], options["detections"]),
    )
    return C4Detector(net, backbone, num_classes, options)
