"""mmdet's RetinaNet and FCOS, written from its documentation in the plainest way: the judge of our import.

Its `state` has mmdet's names. Three maps make a pyramid, of the coarsest of the backbone's or the pyramid's two more
levels are made; nothing is rounded; what is looked at goes by the classifier; boxes without area are left out. FCOS's
points are the centres of cells, and a centerness is a factor of scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.interchange.foreign_files import State, body, layer, random, under
from tests.interchange.mmdet_peer import Peer
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou, clip_boxes_to_image

STRIDES = (8, 16, 32, 64, 128)
FCOS = "dict(neck=dict(relu_before_extra_convs=True), bbox_head=dict(type='FCOSHead'))"
TRICKS = FCOS.replace("Head'", "Head', norm_on_bbox=True, centerness_on_reg=True")
RETINANET = "dict(bbox_head=dict(type='RetinaHead', anchor_generator=dict(octave_base_scale=4, scales_per_octave=3)))"


class OneStagePeer(Peer):
    """`source`: "c5" or "p5", of which the sixth level is made; `relu`: before the seventh."""

    def __init__(self, state: State, source: str, relu: bool, overlap: float = 0.5) -> None:
        super().__init__(state)
        self.source, self.relu, self.overlap = source, relu, overlap

    def strided(self, x: Tensor, name: str) -> Tensor:
        bias = self.state.get(f"{name}.conv.bias")
        return self.normed(functional.conv2d(x, self.state[f"{name}.conv.weight"], bias, stride=2, padding=1), name)

    def normed(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.gn.weight" in self.state:
            return functional.group_norm(x, 32, self.state[f"{name}.gn.weight"], self.state[f"{name}.gn.bias"])
        if f"{name}.bn.weight" in self.state:
            words = ("running_mean", "running_var", "weight", "bias")
            return functional.batch_norm(x, *(self.state[f"{name}.bn.{word}"] for word in words))
        return x

    def module(self, x: Tensor, name: str, padding: int) -> Tensor:
        bias = self.state.get(f"{name}.conv.bias")
        return self.normed(functional.conv2d(x, self.state[f"{name}.conv.weight"], bias, padding=padding), name)

    def maps(self, x: Tensor) -> list[Tensor]:
        net, found = self.resnet, []
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        for stage in (net.layer2, net.layer3, net.layer4):
            x = stage(x)
            found.append(x)
        last = found[-1]
        sides = [self.module(each, f"neck.lateral_convs.{level}", 0) for level, each in enumerate(found)]
        for level in (1, 0):
            sides[level] = sides[level] + functional.interpolate(sides[level + 1], sides[level].shape[-2:])
        outs = [self.module(each, f"neck.fpn_convs.{level}", 1) for level, each in enumerate(sides)]
        outs.append(self.strided(last if self.source == "c5" else outs[-1], "neck.fpn_convs.3"))
        outs.append(self.strided(functional.relu(outs[-1]) if self.relu else outs[-1], "neck.fpn_convs.4"))
        return outs

    def tower(self, x: Tensor, name: str) -> Tensor:
        depth = 0
        while f"bbox_head.{name}.{depth}.conv.weight" in self.state:
            x = functional.relu(self.module(x, f"bbox_head.{name}.{depth}", 1))
            depth += 1
        return x

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a level of one image: logits (n, K), boxes (n, 4) and factors of scores (n)."""
        raise NotImplementedError

    def found_by(self, maps: list[Tensor], size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4), scores and labels of one image, the best 100."""
        every = []
        for level, features in enumerate(maps):
            logits, boxes, factors = self.outputs(features, level)
            likely = logits.sigmoid()
            cells, labels = (likely > threshold).nonzero(as_tuple=True)
            best = likely[cells, labels].argsort(descending=True)[:1000]
            cells, labels = cells[best], labels[best]
            every.append((clip_boxes_to_image(boxes[cells], size), likely[cells, labels] * factors[cells], labels))
        boxes, scores, labels = (torch.cat(each) for each in zip(*every))
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        order = scores[whole].argsort(descending=True)
        boxes, scores, labels = boxes[whole][order], scores[whole][order], labels[whole][order]
        kept: list[int] = []
        for row in range(len(boxes)):
            same = [other for other in kept if labels[other] == labels[row]]
            if not same or float(box_iou(boxes[row : row + 1], boxes[same]).max()) <= self.overlap:
                kept.append(row)
            if len(kept) == 100:
                break
        return boxes[kept], scores[kept], labels[kept]


class RetinaPeer(OneStagePeer):
    def cells(self, level: int, height: int, width: int) -> Tensor:
        rows, stride = [], STRIDES[level]
        for y in range(height):
            for x in range(width):
                for ratio in (0.5, 1.0, 2.0):
                    for third in range(3):
                        side = 4 * 2 ** (third / 3) * stride
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        rows.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
        return torch.tensor(rows)

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.conv(self.tower(x, "cls_convs"), "bbox_head.retina_cls", 1)[0].permute(1, 2, 0)
        deltas = self.conv(self.tower(x, "reg_convs"), "bbox_head.retina_reg", 1)[0].permute(1, 2, 0).reshape(-1, 4)
        logits = logits.reshape(len(deltas), -1)
        boxes = self.decode(self.cells(level, *x.shape[-2:]), deltas, (1, 1, 1, 1))
        return logits, boxes, torch.ones(len(boxes))


class FCOSPeer(OneStagePeer):
    """`norm`: distances come through a ReLU, in strides; `on_reg`: the centerness stands on the tower of the boxes."""

    def __init__(self, state: State, norm: bool, on_reg: bool, overlap: float = 0.5) -> None:
        super().__init__(state, "p5", True, overlap)
        self.norm, self.on_reg = norm, on_reg

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        classes, boxes = self.tower(x, "cls_convs"), self.tower(x, "reg_convs")
        logits = self.conv(classes, "bbox_head.conv_cls", 1)[0].permute(1, 2, 0).flatten(0, 1)
        centered = (
            self.conv(boxes if self.on_reg else classes, "bbox_head.conv_centerness", 1)[0, 0].flatten().sigmoid()
        )
        raw = self.conv(boxes, "bbox_head.conv_reg", 1)[0].permute(1, 2, 0).flatten(0, 1)
        raw = raw * self.state[f"bbox_head.scales.{level}.scale"]
        distances = raw.clamp(min=0) * STRIDES[level] if self.norm else raw.exp()
        rows = []
        for cell, (left, top, right, bottom) in enumerate(distances.tolist()):
            y, x_ = divmod(cell, x.shape[-1])
            across, down = (x_ + 0.5) * STRIDES[level], (y + 0.5) * STRIDES[level]
            rows.append([across - left, down - top, across + right, down + bottom])
        return logits, torch.tensor(rows), centered


def module(name: str, *shape: int, norm: str = "", std: float = 0.05) -> State:
    """A convolution of mmdet's, with a bias or a norm."""
    made = layer(f"{name}.conv", *shape, std=std)
    if not norm:
        return made
    del made[f"{name}.conv.bias"]
    made |= {f"{name}.{norm}.weight": 1 + random(shape[0], std=0.1), f"{name}.{norm}.bias": random(shape[0], std=0.1)}
    if norm == "bn":
        made |= {f"{name}.bn.running_mean": random(shape[0], std=0.1), f"{name}.bn.running_var": torch.ones(shape[0])}
    return made


def one_stage(width: int, convs: int, norm: str, tower_norm: str, source: str) -> State:
    """The tensors that RetinaNet and FCOS have alike, over a ResNet-18."""
    state = under("backbone.", body())
    torch.manual_seed(5)
    for level, channels in enumerate((128, 256, 512)):
        state |= module(f"neck.lateral_convs.{level}", width, channels, 1, 1, norm=norm)
        state |= module(f"neck.fpn_convs.{level}", width, width, 3, 3, norm=norm)
    state |= module("neck.fpn_convs.3", width, 512 if source == "c5" else width, 3, 3, norm=norm, std=0.02)
    state |= module("neck.fpn_convs.4", width, width, 3, 3, norm=norm)
    for number in range(convs):
        for tower in ("cls_convs", "reg_convs"):
            state |= module(f"bbox_head.{tower}.{number}", width, width, 3, 3, norm=tower_norm)
    return state


def mmdet_retinanet(
    convs: int = 2, norm: str = "", source: str = "c5", classes: int = 3, text: str = RETINANET
) -> dict[str, Any]:
    """mmdet's RetinaNet over a ResNet-18, as a file has it."""
    state = one_stage(64, convs, norm, "", source)
    state |= layer("bbox_head.retina_cls", 9 * classes, 64, 3, 3, std=0.03)
    state["bbox_head.retina_cls.bias"] -= 3  # so that some score little
    state |= layer("bbox_head.retina_reg", 36, 64, 3, 3, std=0.02)
    return {"meta": {"CLASSES": ("cat", "dog", "cow")[:classes], "config": text}, "state_dict": state}


def mmdet_fcos(text: str, bias: bool = False, norm: bool = False) -> dict[str, Any]:
    """mmdet's FCOS over a ResNet-18, as a file has it; with a `bias` before each norm of its towers, and outputs of
    boxes that suit a ReLU (`norm`) or an exponential."""
    state = one_stage(64, 2, "", "gn", "p5")
    if bias:
        convolutions = [name for name in state if name.startswith("bbox_head.") and name.endswith(".conv.weight")]
        state |= {name.replace("weight", "bias"): random(64) for name in convolutions}
    state |= layer("bbox_head.conv_cls", 3, 64, 3, 3, std=0.03) | layer("bbox_head.conv_reg", 4, 64, 3, 3, std=0.03)
    state |= layer("bbox_head.conv_centerness", 1, 64, 3, 3, std=0.03)
    state["bbox_head.conv_cls.bias"] -= 1.5
    state["bbox_head.conv_reg.bias"] += 1.0 if norm else 3.0
    state |= {f"bbox_head.scales.{level}.scale": torch.tensor(1 + 0.1 * level) for level in range(5)}
    return {"meta": {"CLASSES": ("cat", "dog", "cow"), "config": text}, "state_dict": state}


def pretrained(content: dict[str, Any], classifier: str) -> dict[str, Any]:
    """What AlignDet saves of a detector: it and its teacher, each with an embedding for a classifier."""
    state = {name: v for name, v in content["state_dict"].items() if not name.startswith(classifier)}
    state |= layer(f"{classifier}.0", 64, 64, 1, 1) | layer(f"{classifier}.2", 256, 64, 1, 1)
    return {"state_dict": {**under("online_backbone.", state), **under("target_backbone.", state)}}
