"""What all detectors have in common whose decoder's queries look for objects, matched one to one with the boxes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from selfdet.detectors._transformers import Criterion, Matched
from selfdet.detectors.base import Batch, Detector, Regions
from selfdet.detectors.network import body_patterns
from selfdet.detectors.settings import check_detector
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone, evaluating
from selfdet.models.place_heads import RegionHead

MOST_BOXES = 50  # proposals of an image in the box domain, as in AlignDet: there must be fewer than queries
WIDTH = 256  # channels of a query
BODY, CONNECTIONS = body_patterns(r"model\.backbone\.model\.")  # names of the backbone, and what of it is the neck's


class Found(NamedTuple):
    """What B images' Q queries are after each of L decoder layers: `states` (L, B, Q, 256), `logits` (L, B, Q, ·) and
    `boxes` (L, B, Q, 4), cx cy w h as shares of their frame, the last two float32 or double.

    `choice`: logits (B, Q, ·) and boxes (B, Q, 4) of the places that have become the queries, where such are chosen.
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor
    choice: tuple[Tensor, Tensor] | None = None


class QueryDetector(Detector):
    """transformers' DETRs behind the `Detector` protocol."""

    net: Any  # of transformers, whose modules mypy does not see into
    key: str
    boxes_per_image = MOST_BOXES
    levels = 1  # of the backbone's maps, the last ones
    masked = True  # padding is told from the image; else boxes are shares of the padded tensor

    def __init__(self, net: nn.Module, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options
        self.size_divisor = backbone.strides[-1]

    @abstractmethod
    def queries(self, maps: Mapping[str, Tensor], mask: Tensor) -> Found:
        """What the queries are, of the neck's maps and a `mask` (B, H, W) bool of the pixels that are no padding."""

    @abstractmethod
    def criterion(self, like: Tensor) -> Criterion:
        """The library's matching and losses, of the type and on the device of `like`."""

    @abstractmethod
    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of logits (…, Q, ·): scores (…, N), queries (…, N) and labels (…, N) of what may be found in each image."""

    def without_dropout(self) -> list[nn.Module]:
        """What drops values out while it trains: the teacher runs it in evaluation mode."""
        return [self.net.model.encoder, self.net.model.decoder]

    def frames(self, batch: Batch) -> list[tuple[int, int]]:
        """For each image the (h, w) px that its boxes are shares of."""
        height, width = batch.tensor.shape[-2:]
        return batch.sizes if self.masked else [(height, width)] * len(batch.sizes)

    def body(self, tensor: Tensor, net: nn.Module | None = None) -> dict[str, Tensor]:
        """The last of the backbone's maps, "0", …, (B, C, H/stride, W/stride) of (B, 3, H, W) normalised images."""
        maps = self.backbone.maps(self.backbone.net if net is None else net, tensor)
        return {str(level): each for level, each in enumerate(list(maps.values())[-self.levels :])}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """transformers' own "loss_class", "loss_bbox" (L1) and "loss_giou" (scalars, float32), weighted as there, sums
        over the decoder's layers, each of which is matched by itself."""
        return self._losses(self.queries(self.features(batch), pixel_mask(batch)), batch)

    def _losses(self, found: Found, batch: Batch) -> dict[str, Tensor]:
        """The sums of `losses`, with those of the choice of queries."""
        targets, criterion = self.targets(batch, found.boxes), self.criterion(found.logits)
        total: dict[str, Tensor] = {}
        with torch.autocast(found.logits.device.type, enabled=False):
            for layer in [*zip(found.logits, found.boxes), *([found.choice] if found.choice else [])]:
                total = added(total, Matched(criterion, *layer, targets).losses())
        return total

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1 of the
        last layer; nothing is suppressed."""
        last = self.queries(self.features(batch), pixel_mask(batch))
        found = []
        for logits, shares, frame, size in zip(last.logits[-1], last.boxes[-1], self.frames(batch), batch.sizes):
            scores, rows, labels = self.best(logits)
            order = scores.argsort(descending=True, stable=True)[: self.options["detections"]]
            order = order[scores[order] > self.options["score_threshold"]]
            pixels = clip_boxes_to_image(_pixels(shares[rows[order]], frame), size)
            found.append({"boxes": pixels, "scores": scores[order], "labels": labels[order]})
        return found

    def projector(self, dim: int) -> nn.Module:
        """Linear → ReLU → linear in place of the classifier: an embedding of size `dim` a query."""
        return RegionHead(WIDTH, dim)

    def regions(
        self,
        maps: Mapping[str, Tensor],
        batch: Batch,
        projector: nn.Module,
        generator: torch.Generator,
        *,
        losses: bool,
        samples: int | None = None,
    ) -> list[Regions]:
        """All queries of each decoder layer, a `Regions` a layer: with the id of the target that this layer's own
        matching gives the query, −1 for none. Nothing is drawn, and `samples` does not bound them.

        `losses`: the library's own "loss_class" into the targets' labels, which are pseudo classes here, one class
        where they have none, "loss_bbox" and "loss_giou"; those of the choice of queries count to the first layer.
        Without `losses` nothing is dropped out. Boxes are always the predicted ones.

        Source: Li et al., AlignDet, arXiv 2307.11077.
        """
        with evaluating(nn.ModuleList([] if losses else self.without_dropout())):
            found = self.queries(maps, pixel_mask(batch))
        targets, criterion = self.targets(batch, found.boxes), self.criterion(found.logits)
        result = []
        with torch.autocast(found.logits.device.type, enabled=False):
            for layer, queries in zip(zip(found.logits, found.boxes), found.states):
                matched = Matched(criterion, *layer, targets)
                ids = torch.cat([_ids(row, target["ids"]) for row, target in zip(matched.rows(), batch.targets)])
                pixels = [_pixels(each, frame) for each, frame in zip(layer[1].detach(), self.frames(batch))]
                result.append(Regions(queries.flatten(0, 1), ids, torch.cat(pixels)))
                if losses:
                    result[-1].losses = matched.losses()
            if losses and found.choice:
                result[0].losses = added(result[0].losses, Matched(criterion, *found.choice, targets).losses())
        for regions in result:
            regions.embeddings = projector(regions.embeddings)
        return result

    def targets(self, batch: Batch, like: Tensor) -> list[dict[str, Tensor]]:
        """ "boxes" as shares of their frame, and "class_labels", one class for all where there are none; of the type
        of `like`."""
        found = []
        for target, size, (height, width) in zip(batch.targets, batch.sizes, self.frames(batch)):
            boxes = clip_boxes_to_image(target["boxes"], size).to(like.dtype)
            shares = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
            labels = target.get("labels", torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device))
            found.append({"boxes": shares, "class_labels": labels})
        return found

    def config(self) -> dict[str, Any]:
        """Plain values: `DETECTORS[detector](num_classes, build_backbone(backbone), **options)` rebuilds it."""
        return {
            "detector": self.key,
            "num_classes": self.num_classes,
            "backbone": self.backbone.name,
            "options": dict(self.options),
            "strides": list(self.backbone.strides[-self.levels :]),
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
            "size_divisible": self.size_divisor,
        }


def pixel_mask(batch: Batch) -> Tensor:
    """The pixels (B, H, W) bool that are no padding."""
    mask = torch.zeros(len(batch.sizes), *batch.tensor.shape[-2:], dtype=torch.bool, device=batch.tensor.device)
    for row, (height, width) in zip(mask, batch.sizes):
        row[:height, :width] = True
    return mask


def each_pair(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`QueryDetector.best` of a focal loss: each query may be of each class, Q · K pairs."""
    scores, classes = logits.sigmoid().flatten(-2), logits.shape[-1]
    pairs = torch.arange(scores.shape[-1], device=logits.device).expand(scores.shape)
    return scores, pairs // classes, pairs % classes


def check_queries(num_classes: int, backbone: Backbone, image_size: int, queries: int, layers: int) -> None:
    """Refuse what none of these detectors can be built with. Raises: UserError."""
    check_detector(num_classes, backbone, WIDTH, image_size)
    if queries <= MOST_BOXES:
        raise UserError(f"queries {queries}", f"expected more than {MOST_BOXES}, the boxes of an image in pre-training")
    if layers < 1:
        raise UserError(f"layers {layers}", "expected 1 or more")


def added(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses by name, summed."""
    return {name: total[name] + loss if name in total else loss for name, loss in more.items()}


def _pixels(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cx cy w h as shares of a frame of `size` (h, w) as (N, 4) xyxy px."""
    height, width = size
    return box_convert(shares, "cxcywh", "xyxy") * shares.new_tensor([width, height, width, height])


def _ids(rows: Tensor, ids: Tensor) -> Tensor:
    """The ids (Q,) of targets `rows` (Q,), −1 where that is −1."""
    return torch.cat([ids, ids.new_tensor([-1])])[rows]
