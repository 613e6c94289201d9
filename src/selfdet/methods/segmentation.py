"""Supervised segmentation: cross-entropy of every labelled pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from selfdet.data.class_maps import IGNORED
from selfdet.data.masked import MaskedBatch
from selfdet.detectors.segmenter import Segmenter
from selfdet.methods.base import Method


class SupervisedSegmentation(Method):
    """Fine-tunes `segmenter` (kept in `.segmenter`) on images with class maps."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._right = self._labelled = 0.0

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """The mean cross-entropy over labelled pixels, under "loss"; 0 where there are none."""
        device = next(self.segmenter.parameters()).device
        batch = batch.to(device)
        images = self.segmenter.prepare(list(batch.images))
        height, width = batch.classes.shape[-2:]
        scores = self.segmenter(images.contiguous(memory_format=torch.channels_last))[..., :height, :width]
        with torch.no_grad():
            known = batch.classes != IGNORED
            self._labelled = float(known.float().mean())
            self._right = float((scores.argmax(1) == batch.classes)[known].float().mean()) if known.any() else 0.0
        return {"loss": pixel_cross_entropy(scores, batch.classes)}

    def health(self) -> dict[str, float]:
        """Of the last batch: `batch_accuracy`, the share of labelled pixels that are right, and `labelled_pixels`, the
        share of pixels that are labelled."""
        return {"batch_accuracy": self._right, "labelled_pixels": self._labelled}


def pixel_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of scores (B, K, H, W) over the pixels of `classes` (B, H, W) uint8 that are not 255; without
    any it is 0, and so is its gradient."""
    total = functional.cross_entropy(scores.float(), classes.long(), ignore_index=IGNORED, reduction="sum")
    return total / (classes != IGNORED).sum().clamp_min(1)
