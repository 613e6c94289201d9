"""Networks as functions of bytes alone, written so that a graph of them can be taken down: images in, results out.

Each takes `images` (B, 3, H, W) uint8 RGB, padded at the right and bottom to multiples of its `step` px, and resizes
nothing. Detectors also take `sizes` (B, 2) int64, height and width (px) of each image inside, so that anything may be
in the padding, and, where they suppress, `threshold` (1,), the score above which something is found. Legend: B images,
N places an image, K classes, M detections of all images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfdet.data.pixels import normalise
from selfdet.detectors.one_stage import OneStage
from selfdet.detectors.segmenter import STRIDE, Segmenter
from selfdet.interchange.suppression import Suppression
from selfdet.models.backbones import Backbone

CANDIDATES = 1000  # of a level, before suppression
MOST_GROWTH = 4.135166556742356  # log(1000 / 16), torchvision's
FOUND = ("boxes", "scores", "labels", "rows")


class BackboneGraph(nn.Module):
    """A backbone's maps (B, C, H/stride, W/stride), finest first."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.step = backbone.strides[-1]
        self.outputs = tuple(f"map{level}" for level in range(len(backbone.channels)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(normalise(images, self.backbone.mean, self.backbone.std)).values())


class SegmenterGraph(nn.Module):
    """A segmenter's scores (B, K, H, W), before the softmax, of images seen as a whole."""

    outputs = ("scores",)
    step = STRIDE

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> tuple[Tensor]:
        backbone = self.segmenter.backbone
        return (self.segmenter(normalise(images, backbone.mean, backbone.std)),)


class OneStageGraph(nn.Module):
    """FCOS or RetinaNet.

    With a `suppress`: "boxes" (M, 4) xyxy px, "scores" (M,), "labels" (M,) int64 0…K−1 and "rows" (M,) int64, which
    image, image by image, the best first. Without: "boxes" (B, N, 4) and "scores" (B, N, K) of every place.
    """

    def __init__(self, detector: OneStage, suppress: Suppression | None) -> None:
        super().__init__()
        self.detector = detector
        self.step = detector.size_divisor
        self.coarsest = detector.config()["strides"][-1]
        self.suppress = suppress
        self.outputs = FOUND if suppress else ("boxes", "scores")
        self.anchors = Anchors(detector.net.anchor_generator, detector.config())
        self.mmdet = detector.options["mmdet"] is not None

    def forward(self, images: Tensor, sizes: Tensor, threshold: Tensor | None = None) -> tuple[Tensor, ...]:
        detector, net = self.detector, self.detector.net
        tensor = framed(images, sizes, detector.backbone)
        maps = list(detector.neck(detector.body(tensor)).values())
        boxes, scores = [], []
        for level, features in enumerate(maps):
            found = net.head.of_level(level, features) if hasattr(net.head, "of_level") else net.head([features])
            anchors = self.anchors(level, features, tensor)
            likely = found["cls_logits"].sigmoid()
            centered = found["bbox_ctrness"].sigmoid() if "bbox_ctrness" in found else torch.ones_like(likely[..., :1])
            if "bbox_ctrness" in found:
                moved = from_distances(found["bbox_regression"], anchors)
            else:
                moved = from_deltas(found["bbox_regression"], anchors, bounded=self.mmdet)
            moved = clipped(moved, sizes[:, None])
            if self.mmdet:
                # A factor of scores, which has no say in which places are looked at, goes along.
                centered = centered * (moved[..., 2:] > moved[..., :2]).all(-1, keepdim=True)
                moved = torch.cat([moved, centered], -1)
            elif "bbox_ctrness" in found:
                likely = (likely * centered).sqrt()
            boxes.append(moved)
            scores.append(likely)
        if self.suppress is None or threshold is None:
            places, likely = torch.cat(boxes, 1), torch.cat(scores, 1)
            return places[..., :4], likely * places[..., 4:] if self.mmdet else likely
        kept = [best_of(*level, CANDIDATES) for level in zip(boxes, scores)]
        places, likely, labels = (torch.cat(each, 1) for each in zip(*kept))
        if self.mmdet:
            likely, threshold = likely * (likely > threshold) * places[..., 4], 0 * threshold
            places = places[..., :4]
        left = self.suppress(places, likely, labels, threshold, net.detections_per_img, net.nms_thresh)
        rows, columns = left[:, 0], left[:, 1]
        return places[rows, columns], likely[rows, columns], labels[rows, columns], rows


class Anchors(nn.Module):
    """The anchors of a generator of torchvision's, for maps of any size."""

    def __init__(self, generator: Any, config: dict[str, Any]) -> None:
        super().__init__()
        for level, (sizes, ratios) in enumerate(zip(generator.sizes, generator.aspect_ratios)):
            self.register_buffer(f"level{level}", generator.generate_anchors(sizes, ratios), persistent=False)
        # Where padding leaves a level's stride in doubt, torchvision takes what the sizes of the maps say.
        known = hasattr(generator, "strides")
        divisor = config["size_divisible"]
        self.strides = [stride if known or divisor % stride == 0 else None for stride in config["strides"]]

    def forward(self, level: int, features: Tensor, tensor: Tensor) -> Tensor:
        """(h · w · A, 4) xyxy px of a level's map (B, C, h, w) of the padded images (B, 3, H, W)."""
        stride = self.strides[level]
        rows, columns = features.shape[-2:]
        down, along = (tensor.shape[-2] // rows, tensor.shape[-1] // columns) if stride is None else (stride, stride)
        y, x = (torch.arange(rows) * down).float(), (torch.arange(columns) * along).float()
        shifts = torch.stack([x[None, :].expand(rows, columns), y[:, None].expand(rows, columns)] * 2, 2)
        return (shifts[:, :, None] + getattr(self, f"level{level}")).flatten(0, 2)


def framed(images: Tensor, sizes: Tensor, backbone: Backbone) -> Tensor:
    """The images normalised, with zeros outside of their sizes."""
    rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
    inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None]
    return normalise(images, backbone.mean, backbone.std) * inside


def from_distances(distances: Tensor, anchors: Tensor) -> Tensor:
    """FCOS's boxes (B, N, 4) xyxy px of distances (B, N, 4), in sides of the anchors (N, 4)."""
    centres, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    return torch.cat([centres - distances[..., :2] * sides, centres + distances[..., 2:] * sides], -1)


def from_deltas(
    deltas: Tensor, anchors: Tensor, factors: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0), bounded: bool = False
) -> Tensor:
    """Boxes (…, N, 4) xyxy px of deltas (…, N, 4) at the anchors (N, 4), as Faster R-CNN codes them; where `bounded`
    they are no more smaller than their anchors than larger."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + sides / 2
    deltas = deltas / deltas.new_tensor(factors)
    centres = centres + deltas[..., :2] * sides
    halves = deltas[..., 2:].clamp(min=-MOST_GROWTH if bounded else None, max=MOST_GROWTH).exp() * sides / 2
    return torch.cat([centres - halves, centres + halves], -1)


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (…, 4) xyxy px inside of images of `sizes` (…, 2), height and width."""
    return torch.minimum(boxes.clamp(min=0), torch.cat([sizes.flip(-1)] * 2, -1).to(boxes.dtype))


def best_of(boxes: Tensor, scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes (B, N, D) with scores (B, N, K) the `most` pairs of box and class with the highest: boxes (B, n, D),
    scores (B, n) and labels (B, n) int64."""
    classes = scores.shape[2]
    flat = scores.flatten(1)
    best, places = flat.topk(torch.sym_min(most, flat.shape[1]), 1)
    rows = (places // classes)[..., None].expand(-1, -1, boxes.shape[2])
    return boxes.gather(1, rows), best, places % classes
