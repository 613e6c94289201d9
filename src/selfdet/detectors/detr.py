"""DETR: queries that each look for an object in the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion, shrunk
from selfdet.detectors._transformers_detr import decoder_states, detr_criterion, detr_network
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.network import Part
from selfdet.detectors.queries import BODY, CONNECTIONS, Found, QueryDetector, check_queries
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import DetrForObjectDetection


class DETRDetector(QueryDetector):
    """transformers' DETR behind the `Detector` protocol; build it with `detr`."""

    net: DetrForObjectDetection
    key = "detr"

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The map "0" as wide as a query, (B, 256, H/32, W/32)."""
        return {"0": self.net.model.input_projection(maps["0"])}

    def queries(self, maps: Mapping[str, Tensor], mask: Tensor) -> Found:
        """The queries after each layer; the logits' last column is that of no object."""
        features = maps["0"]
        states = decoder_states(self.net, features, shrunk(mask, features.shape[-2:]))
        states = states if states.dtype == torch.float64 else states.float()
        with torch.autocast(states.device.type, enabled=False):
            return Found(states, self.net.class_labels_classifier(states), self.net.bbox_predictor(states).sigmoid())

    def criterion(self, like: Tensor) -> Criterion:
        """Cross-entropy, in which queries without an object weigh `no_object`, L1 and generalised IoU: 1, 5 and 2."""
        return detr_criterion(self.net, like)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each query's best class."""
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        return scores, torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape), labels

    def shared(self) -> list[nn.Module]:
        """The queries are the same for the online detector and its teacher."""
        return [self.net.model.query_position_embeddings]

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the projection of its map, the transformer with its queries, and the last layers of both heads.

        With `keep_box_outputs` the last layer that gives boxes counts to the head.
        """
        classes, boxes = r"class_labels_classifier\.", r"bbox_predictor\.layers\.2\."
        head = [r"model\.(encoder|decoder|query_position_embeddings)\.", r"bbox_predictor\.layers\.[01]\."]
        return {
            "backbone": Part([BODY]),
            "neck": Part([CONNECTIONS, r"model\.input_projection\."]),
            "head": Part([*head, boxes] if keep_box_outputs else head),
            "last": Part([classes] if keep_box_outputs else [classes, boxes], reinit=True),
        }


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
    no_object: float = 0.1,
) -> DETRDetector:
    """DETR over the last map of `backbone`, whose weights are untouched: a transformer of `layers` encoder and as many
    decoder layers, 256 channels and 8 heads, and `queries` that each may find one object.

    `batch_norm` rules the backbone's (`apply_batch_norm`); the paper freezes it. `image_size` is the long side (px)
    that images will have. `score_threshold` and `detections` bound an image's result. `no_object`: what a query
    without an object weighs in the loss of classes, beside 1 of one that has one.

    Raises: UserError for values out of range, and without transformers (the extra `detr`).
    Source: Carion et al. 2020, End-to-End Object Detection with Transformers; transformers.DetrForObjectDetection.
    """
    check_queries(num_classes, backbone, image_size, queries, layers)
    if not 0 < no_object <= 1:
        raise UserError(f"no_object {no_object}", "expected a number above 0, at most 1; 0.1 is usual")
    options = {
        "batch_norm": batch_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "queries": queries,
        "layers": layers,
        "no_object": no_object,
    }
    net = detr_network(backbone, num_classes, queries, layers, no_object)
    detector = DETRDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector
