"""DETRs as functions of bytes; see `graphs`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from selfdet.detectors.queries import QueryDetector
from selfdet.interchange.graphs import clipped, framed


class QueryGraph(nn.Module):
    """A DETR of any kind: "boxes" (M, 4) xyxy px, "scores" (M,), "labels" (M,) int64 0…K−1 and "rows" (M,) int64, which
    image, image by image, the best first. Nothing is suppressed."""

    outputs = ("boxes", "scores", "labels", "rows")

    def __init__(self, detector: QueryDetector) -> None:
        super().__init__()
        self.detector = detector
        self.step = detector.size_divisor
        self.least = detector.padded_size(1, 1)[0]

    def forward(self, images: Tensor, sizes: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        tensor = framed(images, sizes, detector.backbone)
        rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
        mask = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
        found = detector.queries(detector.neck(detector.body(tensor)), mask)
        scores, queries, labels = detector.best(found.logits[-1])
        scores, order = scores.topk(min(detector.options["detections"], scores.shape[1]), 1)
        queries, labels = queries.gather(1, order), labels.gather(1, order)
        shares = found.boxes[-1].gather(1, queries[..., None].expand(-1, -1, 4))
        whole = torch.ones_like(sizes) * torch.tensor([tensor.shape[-2], tensor.shape[-1]])
        frames = (sizes if detector.masked else whole).flip(1)
        boxes = box_convert(shares, "cxcywh", "xyxy") * torch.cat([frames, frames], 1)[:, None].to(shares.dtype)
        image, place = torch.where(scores > threshold)
        boxes = clipped(boxes, sizes[:, None])
        return boxes[image, place], scores[image, place], labels[image, place], image
