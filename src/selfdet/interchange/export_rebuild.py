"""The detector of this folder on torch, torchvision, timm and safetensors alone: detector.json + detector.safetensors.

    from rebuild import build
    net = build(".")            # torchvision's own network in evaluation mode; run it in float32
    found = net([image])[0]     # image: (3, H, W) float, RGB in 0…1, of any size
    found["boxes"]              # (N, 4) x1 y1 x2 y2 in pixels of that image; with "scores" (N,) falling
    found["labels"]             # (N,) from 0: positions in detector.json's "classes" and "category_ids"
    found["masks"]              # of a network of masks, (N, 1, H, W) bool

    python rebuild.py photo.jpg other.png       # detections as JSON

The network is not one of torchvision's ready-made ones: it has its own pyramid width, anchor sizes and image size.
`build(".", score_threshold=0.3)` leaves out what scores no more.
Images one at a time give the figures that the export was checked with; those of different shapes in one call share
their padding, which shifts scores at their edges a little. This is a copy of selfdet/interchange/export_rebuild.py and
imports nothing of selfdet. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, roi_align
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

NORMS: dict[str | None, Callable[[int], nn.Module] | None] = {
    None: None,
    "bn": nn.BatchNorm2d,
    "gn": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
}


class LongSide(GeneralizedRCNNTransform):
    """Images as the network saw them in training: long side `max_size` px, smaller ones enlarged, then normalised.

    torchvision's own transform interpolates normalised values without antialiasing and rounds sides down; training
    resized bytes, antialiased, to the nearest whole sides, and so does this one.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """Nothing yet but a check: `resize` normalises, after resizing."""
        if not image.is_floating_point():
            raise TypeError(f"expected images of floats in 0…1, got {image.dtype}")
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image (3, H, W) in 0…1 and its target's boxes (xyxy px), both resized, the image normalised."""
        height, width = image.shape[-2:]
        scale = self.max_size / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        pixels = F.resize((image * 255).round().clamp(0, 255).to(torch.uint8), size, antialias=True).float()
        mean, std = (image.new_tensor(x, dtype=torch.float32).mul(255) for x in (self.image_mean, self.image_std))
        pixels = pixels.sub(mean[:, None, None]).mul(std.reciprocal()[:, None, None]).to(image.dtype)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], size)
        return pixels, target


class BackgroundFirst(LongSide):
    """The same for networks whose class 0 is the background: outside of them the first class is 0 here as well.

    torchvision's own transform keeps masks as floats, all at once; 100 of a photo of 12 megapixels take 10 GB.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As above; the target's masks (N, H, W) are resized too."""
        pixels, target = super().resize(image, target)
        if target is not None:
            target["labels"] = target["labels"] + 1
            if "masks" in target:
                masks, size = target["masks"].to(torch.uint8), list(pixels.shape[-2:])
                target["masks"] = F.resize(masks, size, InterpolationMode.NEAREST_EXACT).bool()
        return pixels, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[Any], original_image_sizes: list[Any]
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels and masks of the images as given: inside of them, from 0, (N, 1, H, W) bool."""
        if self.training:
            return result
        for found, inner, size in zip(result, image_shapes, original_image_sizes):
            found["labels"] = found["labels"] - 1
            found["boxes"] = clip_boxes_to_image(resize_boxes(found["boxes"], inner, size), size)
            if "masks" in found:
                masks = torch.zeros(len(found["masks"]), 1, *size, dtype=torch.bool, device=found["masks"].device)
                for row, mask, box in zip(masks, found["masks"], found["boxes"]):
                    row.copy_(paste_masks_in_image(mask[None], box[None], size)[0] > 0.5)
                found["masks"] = masks
        return result


class Pyramid(nn.Module):
    """A body with a feature pyramid over its last maps, and the coarser levels that `extra` adds."""

    def __init__(
        self,
        body: nn.Module,
        maps: Callable[[Tensor], list[Tensor]],
        extra: ExtraFPNBlock,
        channels: list[int],
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.body = body
        self.maps = maps
        self.out_channels = config["fpn_channels"]
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra, NORMS[config["neck_norm"]])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(self.maps(x))))


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


class C4(nn.Module):
    """A ResNet up to its fourth stage."""

    def __init__(self, resnet: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.body(x)


class Res5(nn.Module):
    """A ResNet's fifth stage over regions, then their mean."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer4(regions).mean((2, 3))


class Composite(nn.Module):
    """Two copies of a network; the later stages of the assistant go into the earlier ones of the lead.

    `connections.S.I` leads from the assistant's stage S + I into the lead's stage S.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.swin = not hasattr(torchvision.models.resnet, name)
        self.lead = timm_features(name).model if self.swin else torchvision.models.get_model(name, weights=None)
        if not self.swin:
            del self.lead.avgpool, self.lead.fc
        self.assistant = copy.deepcopy(self.lead)
        with torch.no_grad():
            given = [each.shape[1] for each in self.run(self.lead.eval(), torch.zeros(1, 3, 224, 224), [])]
        taken = [self.lead.embed_dim if self.swin else self.lead.conv1.out_channels, *given[:-1]]
        self.connections: Any = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) for a in given[stage:])
            for stage, b in enumerate(taken)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.run(self.lead, x, self.run(self.assistant, x, []))

    def run(self, net: Any, x: Tensor, higher: list[Tensor]) -> list[Tensor]:
        """The maps of one copy, finest first; what enters its stages gets `higher`, the maps of the other."""
        if self.swin:
            x, stages = net.patch_embed(x).permute(0, 3, 1, 2), list(net.layers)
        else:
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        maps = []
        for number, stage in enumerate(stages):
            for connect, features in zip(self.connections[number], higher[number:]) if higher else ():
                x = x + functional.interpolate(connect(features), x.shape[2:])
            x = stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous() if self.swin else stage(x)
            maps.append(x)
        return maps


class Simple(nn.Module):
    """Maps of the strides `wanted`, made of a plain transformer's one: transposed convolutions and pooling."""

    def __init__(self, channels: int, stride: int, wanted: list[int]) -> None:
        super().__init__()
        from timm.layers import LayerNorm2d

        self.channels, levels = [], []
        for other in wanted:
            width, layers = channels, list[nn.Module]()
            if other > stride:
                layers.append(nn.MaxPool2d(other // stride))
            while other < stride:
                layers += [LayerNorm2d(width), nn.GELU()] if layers else []
                layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
                width, other = width // 2, 2 * other
            levels.append(nn.Sequential(*layers))
            self.channels.append(width)
        self.norm, self.levels = LayerNorm2d(channels), nn.ModuleList(levels)

    def forward(self, last: Tensor) -> list[Tensor]:
        last = self.norm(last)
        return [level(last) for level in self.levels]


def pyramid(config: dict[str, Any], extra: ExtraFPNBlock) -> Pyramid:
    """The backbone named in `config`, at random, with its pyramid."""
    name, channels = config["backbone"]["name"], config["backbone"]["channels"]
    levels = len(channels)
    if name.startswith("cb-"):
        pair = Composite(name.removeprefix("cb-"))
        return Pyramid(pair, lambda x: pair(x)[-levels:], extra, channels, config)
    if config["backbone"]["library"] == "torchvision":
        layers = {f"layer{5 - levels + level}": str(level) for level in range(levels)}
        body = IntermediateLayerGetter(torchvision.models.get_model(name, weights=None), layers)
        return Pyramid(body, lambda x: list(body(x).values()), extra, channels, config)
    getter = timm_features(name)
    net, indices = getter.model, list(getter.out_indices)[-levels:]

    def maps(x: Tensor) -> list[Tensor]:
        return net.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)

    if levels > 1:
        return Pyramid(net, maps, extra, channels, config)
    patch = getter.feature_info.reduction()[-1]
    stride = 2 ** round(math.log2(patch))  # each patch spans so many pixels of the image as given
    made = config["strides"][: -2 if isinstance(extra, LastLevelP6P7) else -1]
    simple = Simple(channels[0], stride, made)

    def one_map(x: Tensor) -> list[Tensor]:
        rows, columns = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        x = functional.pad(x, (0, columns * stride - x.shape[3], 0, rows * stride - x.shape[2]))
        if patch != stride:
            x = functional.interpolate(x, (rows * patch, columns * patch), mode="bilinear")
        return simple(maps(x)[0])

    whole = Pyramid(net, one_map, extra, simple.channels, config)
    whole.simple = simple
    return whole


def timm_features(name: str) -> Any:
    """timm's network by name, cut behind its last map, in the form that takes images of any size."""
    import timm

    options: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for option in options:
        try:
            return timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", **option)
        except TypeError:  # an option that this network doesn't know
            if not option:
                raise


class Unrounded(AnchorGenerator):
    """Anchors as mmdet and detectron2 place them: not rounded to whole pixels, at the strides of the maps."""

    strides: list[int]
    offset = 0.0  # of an anchor's centre from the corner of its cell, in sides

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        halves = torch.stack([(sides / roots).flatten(), (sides * roots).flatten()], 1) / 2
        return torch.cat([-halves, halves], 1) + self.offset * sides.repeat(len(aspect_ratios))[:, None]

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        known = [[torch.full_like(side, stride) for side in sides] for stride, sides in zip(self.strides, strides)]
        return super().grid_anchors(grid_sizes, known)


class Cells(Unrounded):
    """The same around the centres of cells."""

    offset = 0.5


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


def anchors(config: dict[str, Any]) -> AnchorGenerator:
    """The anchors of each level."""
    sizes = tuple(tuple(level) for level in config["anchor_sizes"])
    exact = config.get("regions") == "exact" or config.get("mmdet") is not None
    kind = Cells if exact and config["detector"] == "fcos" else Unrounded if exact else AnchorGenerator
    made = kind(sizes, (tuple(config["aspect_ratios"]),) * len(sizes))
    made.strides = config["strides"]
    return made


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


NETWORKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
}


def build(folder: str | Path = Path(__file__).parent, score_threshold: float | None = None) -> nn.Module:
    """The detector with its weights, on the CPU in evaluation mode; `score_threshold` replaces detector.json's."""
    config = json.loads((Path(folder) / "detector.json").read_text(encoding="utf-8"))
    if score_threshold is not None:
        config["score_threshold"] = score_threshold
    net = NETWORKS[config["detector"]](config)
    size = config["image_size"]
    transform = BackgroundFirst if isinstance(net, FasterRCNN) else LongSide
    net.transform = transform(size, size, config["mean"], config["std"], size_divisible=config["size_divisible"])
    net.load_state_dict(load_file(Path(folder) / "detector.safetensors"))
    return net.eval()


def read(path: str | Path) -> Tensor:
    """An 8-bit image file as (3, H, W) float32 RGB in 0…1: turned as its EXIF says, transparency on black."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGBA")
    black = Image.new("RGBA", picture.size, "black")
    pixels = np.array(Image.alpha_composite(black, picture).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed RLE of a mask (H, W) bool."""
    pixels = mask.numpy().ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *([0] if pixels[0] else []), *changes, len(pixels)]).tolist()
    characters = []
    for position, count in enumerate(counts):
        rest, more = count - (counts[position - 2] if position > 2 else 0), True
        while more:  # five bits a character, the lowest first; the last one's highest bit is the sign
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(characters)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Detect objects in images; prints JSON, boxes as x y width height.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    files = parser.parse_args().images
    folder = Path(__file__).parent
    net, config = build(folder), json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    listed = []
    for path in files:
        image = read(path)
        found = net([image])[0]
        detections = [
            {
                "category_id": config["category_ids"][label],
                "category": config["classes"][label],
                "score": round(score, 5),
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            }
            for (x1, y1, x2, y2), score, label in zip(*(found[name].tolist() for name in ("boxes", "scores", "labels")))
        ]
        for detection, mask in zip(detections, found.get("masks", ())):
            detection["segmentation"] = run_lengths(mask[0])
        listed.append({"file": path, "height": image.shape[1], "width": image.shape[2], "detections": detections})
    print(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
