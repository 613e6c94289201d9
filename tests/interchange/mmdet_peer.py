"""A Mask R-CNN in mmdet's conventions, written from its documentation in the plainest way: the judge of our import.

Its `state` has mmdet's names. Anchors are not rounded and stand at the corners of cells; the background is the last
class; regions are pooled at the map of their size, half a pixel from the corners, with as many samples as cells.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

State = dict[str, Tensor]


class Peer:
    def __init__(self, state: State) -> None:
        self.state = state
        self.resnet = torchvision.models.resnet18().eval()
        own = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
        self.resnet.load_state_dict(own, strict=False)

    def conv(self, x: Tensor, name: str, padding: int = 0) -> Tensor:
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=padding)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def maps(self, x: Tensor) -> list[Tensor]:
        net, found = self.resnet, []
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for level in range(4):
            x = getattr(net, f"layer{level + 1}")(x)
            found.append(self.conv(x, f"neck.lateral_convs.{level}.conv"))
        for level in (2, 1, 0):
            found[level] = found[level] + functional.interpolate(found[level + 1], found[level].shape[-2:])
        outs = [self.conv(each, f"neck.fpn_convs.{level}.conv", 1) for level, each in enumerate(found)]
        return [*outs, functional.max_pool2d(outs[-1], 1, 2)]

    def rpn(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        hidden = [functional.relu(self.conv(each, "rpn_head.rpn_conv", 1)) for each in maps]
        return [(self.conv(h, "rpn_head.rpn_cls"), self.conv(h, "rpn_head.rpn_reg")) for h in hidden]

    def anchors(self, level: int, height: int, width: int) -> Tensor:
        stride, rows = 4 * 2**level, []
        for y in range(height):
            for x in range(width):
                for ratio in (0.5, 1.0, 2.0):
                    w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    rows.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
        return torch.tensor(rows)

    @staticmethod
    def decode(boxes: Tensor, deltas: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
        deltas = deltas * torch.tensor(stds)
        size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        most = abs(math.log(16 / 1000))
        centre, size = centre + deltas[:, :2] * size, size * deltas[:, 2:].clamp(-most, most).exp()
        return torch.cat([centre - size / 2, centre + size / 2], 1)

    def proposals(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(self.rpn(maps)):
            score = logits[0].permute(1, 2, 0).flatten().sigmoid()
            delta = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            best = score.argsort(descending=True)[:1000]
            anchors = self.anchors(level, *logits.shape[-2:])[best]
            boxes.append(clip_boxes_to_image(self.decode(anchors, delta[best], (1, 1, 1, 1)), size))
            scores.append(score[best])
            levels.append(torch.full_like(best, level))
        every = torch.cat(boxes)
        whole = ((every[:, 2:] - every[:, :2]) > 0).all(1)
        every = every[whole]
        return every[batched_nms(every, torch.cat(scores)[whole], torch.cat(levels)[whole], 0.7)[:1000]]

    def pooled(self, maps: list[Tensor], boxes: Tensor, cells: int) -> Tensor:
        size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        levels = (size / 56 + 1e-6).log2().floor().clamp(0, 3).long().tolist()
        return torch.cat(
            [
                roi_align(maps[level], [box[None]], cells, 1 / (4 * 2**level), 0, aligned=True)
                for box, level in zip(boxes, levels)
            ]
        )

    def heads(self, maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        name, x = "roi_head.bbox_head", self.pooled(maps, boxes, 7)
        for layer in range(4):
            if f"{name}.shared_convs.{layer}.conv.weight" in self.state:
                x = functional.relu(self.conv(x, f"{name}.shared_convs.{layer}.conv", 1))
        x = x.flatten(1)
        for layer in range(2):
            if f"{name}.shared_fcs.{layer}.weight" in self.state:
                x = functional.relu(self.linear(x, f"{name}.shared_fcs.{layer}"))
        return self.linear(x, f"{name}.fc_cls"), self.linear(x, f"{name}.fc_reg")

    def masks(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        name, x = "roi_head.mask_head", self.pooled(maps, boxes, 14)
        for layer in range(4):
            x = functional.relu(self.conv(x, f"{name}.convs.{layer}.conv", 1))
        weight, bias = (self.state[f"{name}.upsample.{kind}"] for kind in ("weight", "bias"))
        return self.conv(functional.relu(functional.conv_transpose2d(x, weight, bias, stride=2)), f"{name}.conv_logits")

    def found(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4), scores and labels of one image, the best 100."""
        size = (images.shape[-2], images.shape[-1])
        maps = self.maps(images)
        rois = self.proposals(maps, size)
        logits, deltas = self.heads(maps, rois)
        scores, classes = logits.softmax(1)[:, :-1], logits.shape[1] - 1
        agnostic = deltas.shape[1] == 4
        boxes = torch.stack(
            [
                self.decode(rois, deltas if agnostic else deltas[:, 4 * k : 4 * k + 4], (0.1, 0.1, 0.2, 0.2))
                for k in range(classes)
            ],
            1,
        )
        boxes = clip_boxes_to_image(boxes, size)
        # torchvision leaves out boxes of no area, mmdet doesn't; no trained network gives any.
        whole = ((boxes[..., 2:] - boxes[..., :2]) > 0.01).all(2)
        rows, labels = ((scores > threshold) & whole).nonzero(as_tuple=True)
        boxes, scores = boxes[rows, labels], scores[rows, labels]
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        return boxes[kept], scores[kept], labels[kept]
