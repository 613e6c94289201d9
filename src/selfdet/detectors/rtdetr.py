"""RT-DETR: queries that begin where the maps look most like objects, with a convolutional encoder that is quick."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion, Matched
from selfdet.detectors._transformers_rtdetr import (
    LEVELS,
    decoded,
    encoded,
    noisily_decoded,
    rtdetr_criterion,
    rtdetr_network,
)
from selfdet.detectors.base import Batch
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.network import Part
from selfdet.detectors.queries import BODY, CONNECTIONS, Found, QueryDetector, added, check_queries, each_pair
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import RTDetrForObjectDetection


class RTDETRDetector(QueryDetector):
    """transformers' RT-DETR behind the `Detector` protocol; build it with `rtdetr`.

    The library's network knows no mask of padding: what it finds depends on it, and boxes are shares of the padded
    tensor. `predict` pads each image by itself, so that its result does not depend on the others'.
    """

    net: RTDetrForObjectDetection
    key = "rtdetr"
    levels = LEVELS
    masked = False
    labels_only = Part([r"model\.denoising_class_embed\."])

    @property
    def least(self) -> int:
        """The shortest side (px) of a padded tensor: a square of it has as many cells as there are queries."""
        side = self.size_divisor
        while sum((side // stride) ** 2 for stride in self.backbone.strides[-LEVELS:]) < self.options["queries"]:
            side += self.size_divisor
        return side

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) in px of the tensor that holds an image of this size."""
        height, width = super().padded_size(height, width)
        return max(self.least, height), max(self.least, width)

    def without_dropout(self) -> list[nn.Module]:
        """Nothing is dropped out, and the norms of the encoder look at the batch, as they do in training."""
        return []

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps as wide as a query and mixed with each other, (B, 256, H/stride, W/stride)."""
        return {str(level): each for level, each in enumerate(encoded(self.net, list(maps.values())))}

    def queries(self, maps: Mapping[str, Tensor], mask: Tensor) -> Found:
        """The queries after each layer; a logit a class. No noisy boxes are among them."""
        result, choice = decoded(self.net, list(maps.values()))
        return _found(result, choice)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """As of all of these detectors, and of the cells that become queries; a network in training mode learns from
        noisy boxes, too, whose losses are added (`denoising`)."""
        maps = list(self.features(batch).values())
        targets = self.targets(batch, maps[0].double() if maps[0].dtype == torch.float64 else maps[0].float())
        result = noisily_decoded(self.net, maps, targets)
        choice, noise = (result.enc_topk_logits, result.enc_topk_bboxes), result.denoising_meta_values
        if noise is None:
            return self._losses(_found(result, choice), batch)
        before = noise["dn_num_split"][0]
        total = self._losses(_found(result, choice, before), batch)
        criterion = self.criterion(total["loss_class"])
        indices = criterion.loss.get_cdn_matched_indices(noise, targets)
        for logits, boxes in zip(result.intermediate_logits.unbind(1), result.intermediate_reference_points.unbind(1)):
            matched = Matched(criterion, logits[:, :before], boxes[:, :before], targets, indices)
            total = added(total, matched.losses(share=noise["dn_num_group"]))
        return total

    def criterion(self, like: Tensor) -> Criterion:
        """Varifocal loss (α 0.75, γ 2), L1 and generalised IoU, weighted 1, 5 and 2, as in the library."""
        return rtdetr_criterion(self.net)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs of a query and a class."""
        return each_pair(logits)

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The backbone, the encoder, the choice of queries with the decoder, and the last layers of their heads.

        With `keep_box_outputs` the last layers that give boxes count to the head.
        """
        boxes = r"model\.(enc_bbox_head|decoder\.bbox_embed\.\d+)\.layers"
        head = [
            r"model\.(decoder_input_proj|enc_output|decoder\.layers|decoder\.query_pos_head)\.",
            rf"{boxes}\.[01]\.",
        ]
        last = [r"model\.(enc_score_head|decoder\.class_embed|denoising_class_embed)\."]
        (head if keep_box_outputs else last).append(rf"{boxes}\.2\.")
        return {
            "backbone": Part([BODY]),
            "neck": Part([CONNECTIONS, r"model\.(encoder_input_proj|encoder)\."]),
            "head": Part(head),
            "last": Part(last, reinit=True),
        }


def _found(result: Any, choice: tuple[Tensor, Tensor], start: int = 0) -> Found:
    """What the library's queries are, from row `start` on."""
    layers = (result.intermediate_hidden_states, result.intermediate_logits, result.intermediate_reference_points)
    states, logits, boxes = (each[:, :, start:].transpose(0, 1) for each in layers)
    return Found(states, logits, boxes, choice)


def rtdetr(
    num_classes: int,
    backbone: Backbone,
    *,
    batch_norm: str = "train",
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    queries: int = 300,
    layers: int = 6,
    denoising: int = 100,
) -> RTDETRDetector:
    """RT-DETR over the last three maps of `backbone`, whose weights are untouched: a convolutional encoder with
    attention among the cells of the last map, and `layers` decoder layers, 256 channels and 8 heads, whose `queries`
    are the cells that look most like objects.

    `batch_norm` rules the backbone's (`apply_batch_norm`). `image_size` is the long side (px) that images will have.
    `score_threshold` and `detections` bound an image's result. `denoising`: noisy boxes that are learned from beside
    the queries when labels are, 0 for none; pre-training has none.

    Raises: UserError for values out of range, and without transformers (the extra `detr`).
    Source: Zhao et al. 2024, DETRs Beat YOLOs on Real-time Object Detection; transformers.RTDetrForObjectDetection.
    """
    check_queries(num_classes, backbone, image_size, queries, layers)
    if denoising < 0:
        raise UserError(f"denoising {denoising}", "expected 0 or more")
    strides = backbone.strides[-LEVELS:]
    if len(strides) < LEVELS or any(2 * fine != coarse for fine, coarse in pairwise(strides)):
        raise UserError(
            f"rtdetr needs {LEVELS} maps, each of half the size of the one before; {backbone.name} has the strides "
            f"{', '.join(map(str, strides))}",
            "Take another backbone, or detr, which needs one map",
        )
    options = {
        "batch_norm": batch_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "queries": queries,
        "layers": layers,
        "denoising": denoising,
    }
    net = rtdetr_network(backbone, num_classes, queries, layers, denoising)
    detector = RTDETRDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector
