"""Two images of noise as each training method takes them, to see what a pass of it takes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchvision import tv_tensors

from selfdet.data.box_views import BoxViewBatch
from selfdet.data.masked import MaskedBatch
from selfdet.data.sample import Sample, boxes_xyxy

ROWS = 3  # of boxes side by side: about as many objects as a photograph has


def trial_samples(side: int, with_masks: bool = False) -> list[Sample]:
    """Two labelled squares of `side` px, covered with boxes (and masks that fill them) of one class."""
    corners = side / ROWS * torch.cartesian_prod(torch.arange(ROWS), torch.arange(ROWS))
    boxes = torch.cat([corners, corners + side / ROWS], 1)
    masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist()):
        mask[top:bottom, left:right] = True
    sample = Sample(
        image=tv_tensors.Image(_noise(side)),
        boxes=boxes_xyxy(boxes, (side, side)),
        ids=torch.arange(len(boxes)),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        masks=tv_tensors.Mask(masks) if with_masks else None,
    )
    return [sample, sample]


def trial_box_views(side: int) -> BoxViewBatch:
    """Two pairs of views of `side` px; each view of a pair is the same, without labels."""
    samples = [replace(sample, labels=None) for sample in trial_samples(side)]
    return BoxViewBatch(samples, samples)


def trial_masked(side: int) -> MaskedBatch:
    """Two squares of `side` px, all of one class."""
    return MaskedBatch(torch.stack([_noise(side)] * 2), torch.zeros(2, side, side, dtype=torch.uint8))


def _noise(side: int) -> torch.Tensor:
    return torch.randint(256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
