"""`Sample`: one image with everything that is known about it, from unlabelled to labelled and masked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors


@dataclass
class Sample:
    """One image and its objects; unlabelled, proposed, augmented and labelled data differ only in the fields filled.

    image: (3, H, W) uint8 RGB.
    boxes: (N, 4) float32, xyxy in pixels of `image`, `canvas_size` = (H, W); N may be 0.
    ids: (N,) int64, one an object. They survive augmentation: "the same object" is an equality of ids, never of rows.
    labels: (N,) int64, 0…K-1, or None where classes are unknown.
    masks: (N, H, W) bool, or None. One that is empty says nothing of its object: no segmentation is known of it, or
        it is too small for a pixel. Its box holds nevertheless.
    image_id: the label file's image id, -1 without one.
    original_size: (H, W) of the file as read, before any resize; None where there is no file.
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    ids: Tensor
    labels: Tensor | None = None
    masks: tv_tensors.Mask | None = None
    path: str = ""
    image_id: int = -1
    original_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of `image` in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    def select(self, index: Tensor) -> Sample:
        """The same image with only the objects of `index`, a (N,) bool mask or (M,) int64 positions."""
        return replace(
            self,
            boxes=boxes_xyxy(self.boxes.as_subclass(Tensor)[index], self.size),
            ids=self.ids[index],
            labels=None if self.labels is None else self.labels[index],
            masks=None if self.masks is None else tv_tensors.Mask(self.masks.as_subclass(Tensor)[index]),
        )


def boxes_xyxy(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Wrap (N, 4) xyxy pixel boxes of an image of `size` (H, W) as float32 `BoundingBoxes`; N may be 0."""
    return tv_tensors.BoundingBoxes(boxes.reshape(-1, 4).to(torch.float32), format="XYXY", canvas_size=size)


def plain_sample(image: tv_tensors.Image, path: str = "") -> Sample:
    """A `Sample` of which only the image ((3, H, W) uint8) is known."""
    size = (image.shape[-2], image.shape[-1])
    return Sample(
        image=image,
        boxes=boxes_xyxy(torch.zeros(0, 4), size),
        ids=torch.zeros(0, dtype=torch.int64),
        path=path,
        original_size=size,
    )
