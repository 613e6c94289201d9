"""DETR: queries that each look for an object in the whole image, matched one to one with the boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from selfdet.detectors._transformers import Matched, decoder_states, detr_network, shrunk
from selfdet.detectors.base import Batch, Detector, Regions
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.network import Part
from selfdet.detectors.settings import check_detector
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone, evaluating
from selfdet.models.place_heads import RegionHead

if TYPE_CHECKING:
    from transformers import DetrForObjectDetection

MOST_BOXES = 50  # proposals of an image in the box domain, as in AlignDet: there must be fewer than queries
WIDTH = 256  # channels of a query


class DETRDetector(Detector):
    """transformers' DETR behind the `Detector` protocol; build it with `detr`."""

    net: DetrForObjectDetection
    key = "detr"
    boxes_per_image = MOST_BOXES

    def __init__(
        self, net: DetrForObjectDetection, backbone: Backbone, num_classes: int, options: dict[str, Any]
    ) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options
        self.size_divisor = backbone.strides[-1]

    def body(self, tensor: Tensor, net: nn.Module | None = None) -> dict[str, Tensor]:
        """The last map "0" (B, C, H/32, W/32) of (B, 3, H, W) normalised images."""
        maps = self.backbone.maps(self.backbone.net if net is None else net, tensor)
        return {"0": list(maps.values())[-1]}

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The map "0" as wide as a query, (B, 256, H/32, W/32)."""
        return {"0": self.net.model.input_projection(maps["0"])}

    def _queries(self, maps: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """After each of L layers the queries (L, B, Q, 256), their logits (L, B, Q, K + 1) and boxes (L, B, Q, 4),
        cx cy w h as shares of their image, float32 or double."""
        mask = torch.zeros(len(batch.sizes), *batch.tensor.shape[-2:], dtype=torch.bool, device=batch.tensor.device)
        for row, (height, width) in zip(mask, batch.sizes):
            row[:height, :width] = True
        features = maps["0"]
        states = decoder_states(self.net, features, shrunk(mask, features.shape[-2:]))
        logits = self.net.class_labels_classifier(states)
        boxes = self.net.bbox_predictor(states)
        logits, boxes = (each if each.dtype == torch.float64 else each.float() for each in (logits, boxes))
        return states, logits, boxes.sigmoid()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """transformers' own "loss_class" (no object weighs 0.1), "loss_bbox" (L1) and "loss_giou" (scalars, float32),
        weighted 1, 5 and 2, sums over the decoder's layers, each of which is matched by itself."""
        _, logits, boxes = self._queries(self.features(batch), batch)
        targets = _targets(batch, boxes)
        total: dict[str, Tensor] = {}
        with torch.autocast(logits.device.type, enabled=False):
            for layer in zip(logits, boxes):
                for name, loss in Matched(self.net, *layer, targets).losses().items():
                    total[name] = total[name] + loss if name in total else loss
        return total

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1: each
        query's best class, of the last layer; nothing is suppressed."""
        _, logits, boxes = self._queries(self.features(batch), batch)
        found = []
        for own, shares, size in zip(logits[-1].softmax(-1)[..., :-1], boxes[-1], batch.sizes):
            scores, labels = own.max(1)
            order = scores.argsort(descending=True, stable=True)[: self.options["detections"]]
            order = order[scores[order] > self.options["score_threshold"]]
            pixels = clip_boxes_to_image(_pixels(shares[order], size), size)
            found.append({"boxes": pixels, "scores": scores[order], "labels": labels[order]})
        return found

    def projector(self, dim: int) -> nn.Module:
        """Linear → ReLU → linear in place of the classifier: an embedding of size `dim` a query."""
        return RegionHead(WIDTH, dim)

    def shared(self) -> list[nn.Module]:
        """The queries are the same for the online detector and its teacher."""
        return [self.net.model.query_position_embeddings]

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

        `losses`: the library's own "loss_class" into the targets' labels, one class where they have none, "loss_bbox"
        and "loss_giou". Without `losses` nothing is dropped out. Boxes are always the predicted ones.

        Source: Li et al., AlignDet, arXiv 2307.11077.
        """
        if losses:
            states, logits, boxes = self._queries(maps, batch)
        else:
            with evaluating(self.net.model.encoder), evaluating(self.net.model.decoder):
                states, logits, boxes = self._queries(maps, batch)
        targets, result = _targets(batch, boxes), []
        with torch.autocast(logits.device.type, enabled=False):
            for layer, queries in zip(zip(logits, boxes), states):
                matched = Matched(self.net, *layer, targets)
                ids = torch.cat([_ids(row, target["ids"]) for row, target in zip(matched.rows(), batch.targets)])
                pixels = [_pixels(each, size) for each, size in zip(layer[1].detach(), batch.sizes)]
                result.append(Regions(queries.flatten(0, 1), ids, torch.cat(pixels)))
                if losses:
                    result[-1].losses = matched.losses()
        for regions in result:
            regions.embeddings = projector(regions.embeddings)
        return result

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the projection of its map, the transformer with its queries, and the last layers of both heads.

        With `keep_box_outputs` the last layer that gives boxes counts to the head.
        """
        classes, boxes = r"class_labels_classifier\.", r"bbox_predictor\.layers\.2\."
        head = [r"model\.(encoder|decoder|query_position_embeddings)\.", r"bbox_predictor\.layers\.[01]\."]
        return {
            "backbone": Part([r"model\.backbone\.model\."]),
            "neck": Part([r"model\.input_projection\."]),
            "head": Part([*head, boxes] if keep_box_outputs else head),
            "last": Part([classes] if keep_box_outputs else [classes, boxes], reinit=True),
        }

    def config(self) -> dict[str, Any]:
        """Plain values: `DETECTORS[detector](num_classes, build_backbone(backbone), **options)` rebuilds it."""
        return {
            "detector": self.key,
            "num_classes": self.num_classes,
            "backbone": self.backbone.name,
            "options": dict(self.options),
            "strides": [self.size_divisor],
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
            "size_divisible": self.size_divisor,
        }


def _targets(batch: Batch, like: Tensor) -> list[dict[str, Tensor]]:
    """Boxes as shares of their image, and labels, one class for all where there are none."""
    found = []
    for target, (height, width) in zip(batch.targets, batch.sizes):
        boxes = clip_boxes_to_image(target["boxes"], (height, width)).to(like.dtype)
        shares = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
        labels = target.get("labels", torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device))
        found.append({"boxes": shares, "class_labels": labels})
    return found


def _pixels(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cx cy w h as shares of an image of `size` (h, w) as (N, 4) xyxy px."""
    height, width = size
    return box_convert(shares, "cxcywh", "xyxy") * shares.new_tensor([width, height, width, height])


def _ids(rows: Tensor, ids: Tensor) -> Tensor:
    """The ids (Q,) of targets `rows` (Q,), −1 where that is −1."""
    return torch.cat([ids, ids.new_tensor([-1])])[rows]


def detr(
    num_classes: int,
    backbone: Backbone,
    *,
    batch_norm: str = "train",
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    queries: int = 100,
    layers: int = 6,
) -> DETRDetector:
    """DETR over the last map of `backbone`, whose weights are untouched: a transformer of `layers` encoder and as many
    decoder layers, 256 channels and 8 heads, and `queries` that each may find one object.

    `batch_norm` rules the backbone's (`apply_batch_norm`); the paper freezes it. `image_size` is the long side (px)
    that images will have. `score_threshold` and `detections` bound an image's result.

    Raises: UserError for values out of range, and without transformers (the extra `detr`).
    Source: Carion et al. 2020, End-to-End Object Detection with Transformers; transformers.DetrForObjectDetection.
    """
    check_detector(num_classes, backbone, WIDTH, image_size)
    if queries <= MOST_BOXES:
        raise UserError(f"queries {queries}", f"expected more than {MOST_BOXES}, the boxes of an image in pre-training")
    if layers < 1:
        raise UserError(f"layers {layers}", "expected 1 or more")
    options = {
        "batch_norm": batch_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "queries": queries,
        "layers": layers,
    }
    net = detr_network(backbone, num_classes, queries, layers, no_object=0.1)
    detector = DETRDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector
