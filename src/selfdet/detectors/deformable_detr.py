"""Deformable DETR: queries that look at a few places of several maps, and refine their boxes layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion
from selfdet.detectors._transformers_deformable import (
    LEVELS,
    decoded,
    deformable_criterion,
    deformable_network,
    projected,
)
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.network import Part
from selfdet.detectors.queries import BODY, CONNECTIONS, Found, QueryDetector, check_queries, each_pair
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import DeformableDetrForObjectDetection


class DeformableDETRDetector(QueryDetector):
    """transformers' Deformable DETR behind the `Detector` protocol; build it with `deformable_detr`."""

    net: DeformableDetrForObjectDetection
    key = "deformable_detr"
    levels = LEVELS

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps as wide as a query, (B, 256, H/stride, W/stride), and one of half the last one's cells."""
        return {str(level): each for level, each in enumerate(projected(self.net, list(maps.values())))}

    def queries(self, maps: Mapping[str, Tensor], mask: Tensor) -> Found:
        """The queries after each layer; a logit a class."""
        return Found(*decoded(self.net, list(maps.values()), mask))

    def criterion(self, like: Tensor) -> Criterion:
        """Focal loss (α 0.25, γ 2), L1 and generalised IoU, weighted 1, 5 and 2 as in the library; the paper's class
        loss weighs 2."""
        return deformable_criterion(self.net)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs of a query and a class."""
        return each_pair(logits)

    def shared(self) -> list[nn.Module]:
        """The queries are the same for the online detector and its teacher."""
        return [self.net.model.query_position_embeddings]

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the projections of its maps, the transformer with its queries, and the last layers of each
        layer's heads, of which those that give boxes have a second name in the decoder.

        With `keep_box_outputs` the last layers that give boxes count to the head.
        """
        boxes = r"(model\.decoder\.)?bbox_embed\.\d+\.layers"
        head = [
            r"model\.(encoder|decoder\.layers|query_position_embeddings|reference_points)\.",
            r"model\.level_embed$",
            rf"{boxes}\.[01]\.",
        ]
        last = [r"class_embed\."]
        (head if keep_box_outputs else last).append(rf"{boxes}\.2\.")
        return {
            "backbone": Part([BODY]),
            "neck": Part([CONNECTIONS, r"model\.input_proj\."]),
            "head": Part(head),
            "last": Part(last, reinit=True),
        }


def deformable_detr(
    num_classes: int,
    backbone: Backbone,
    *,
    batch_norm: str = "train",
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    queries: int = 300,
    layers: int = 6,
) -> DeformableDETRDetector:
    """Deformable DETR over the last three maps of `backbone`, whose weights are untouched, and a fourth made of the
    last: a transformer of `layers` encoder and as many decoder layers, 256 channels and 8 heads, each decoder layer
    with heads of its own that refine the boxes of the one before, and `queries` that are learned (one stage).

    `batch_norm` rules the backbone's (`apply_batch_norm`); the paper freezes it. `image_size` is the long side (px)
    that images will have. `score_threshold` and `detections` bound an image's result.

    Raises: UserError for values out of range, and without transformers (the extra `detr`).
    Source: Zhu et al. 2021, Deformable DETR; transformers.DeformableDetrForObjectDetection.
    """
    check_queries(num_classes, backbone, image_size, queries, layers)
    options = {
        "batch_norm": batch_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "queries": queries,
        "layers": layers,
    }
    net = deformable_network(backbone, num_classes, queries, layers)
    detector = DeformableDETRDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector
