"""Part of rebuild.py: images in, detections out, as torchvision's networks take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


class LongSide(GeneralizedRCNNTransform):
    """Images as the network saw them in training: long side `max_size` px, smaller ones enlarged, then normalised.

    torchvision's own transform interpolates normalised values without antialiasing and rounds sides down; training
    resized bytes, antialiased, to the nearest whole sides, and so does this one.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """Nothing yet but a check: `resize` normalises, after resizing."""
        if not image.is_floating_point():
            raise TypeError(f"expected images of floats in 0…1, got {image.dtype}")
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image (3, H, W) in 0…1 and its target's boxes (xyxy px), both resized, the image normalised."""
        height, width = image.shape[-2:]
        scale = self.max_size / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        pixels = F.resize((image * 255).round().clamp(0, 255).to(torch.uint8), size, antialias=True).float()
        mean, std = (image.new_tensor(x, dtype=torch.float32).mul(255) for x in (self.image_mean, self.image_std))
        pixels = pixels.sub(mean[:, None, None]).mul(std.reciprocal()[:, None, None]).to(image.dtype)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], size)
        return pixels, target


class BackgroundFirst(LongSide):
    """The same for networks whose class 0 is the background: outside of them the first class is 0 here as well.

    torchvision's own transform keeps masks as floats, all at once; 100 of a photo of 12 megapixels take 10 GB.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As above; the target's masks (N, H, W) are resized too."""
        pixels, target = super().resize(image, target)
        if target is not None:
            target["labels"] = target["labels"] + 1
            if "masks" in target:
                masks, size = target["masks"].to(torch.uint8), list(pixels.shape[-2:])
                target["masks"] = F.resize(masks, size, InterpolationMode.NEAREST_EXACT).bool()
        return pixels, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[Any], original_image_sizes: list[Any]
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels and masks of the images as given: inside of them, from 0, (N, 1, H, W) bool."""
        if self.training:
            return result
        for found, inner, size in zip(result, image_shapes, original_image_sizes):
            found["labels"] = found["labels"] - 1
            found["boxes"] = clip_boxes_to_image(resize_boxes(found["boxes"], inner, size), size)
            if "masks" in found:
                masks = torch.zeros(len(found["masks"]), 1, *size, dtype=torch.bool, device=found["masks"].device)
                for row, mask, box in zip(masks, found["masks"], found["boxes"]):
                    row.copy_(paste_masks_in_image(mask[None], box[None], size)[0] > 0.5)
                found["masks"] = masks
        return result
