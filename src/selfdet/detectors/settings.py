"""What all detectors are built with alike."""

from __future__ import annotations

from typing import Any

from selfdet.errors import UserError
from selfdet.models.backbones import Backbone


def check_detector(num_classes: int, backbone: Backbone, fpn_channels: int, image_size: int) -> None:
    """Refuse what no detector can be built with. Raises: UserError."""
    if num_classes < 1:
        raise UserError(f"{num_classes} classes: a detector needs at least one", "check the label file's categories")
    if fpn_channels < 64 or fpn_channels % 32:  # 32 groups a norm; groups of one cannot normalise a single cell
        raise UserError(f"fpn_channels {fpn_channels}: expected a multiple of 32 from 64 on", "use 128 or 256")
    backbone.check_image_size(image_size, any_shape=True)


def image_settings(backbone: Backbone, divisor: int, image_size: int) -> dict[str, Any]:
    """What torchvision's networks are told of images, padded to multiples of `divisor` px.

    torchvision spaces a level's anchors by padded size // cells, which is the stride only where that divides: the last
    stride of a pyramid but one keeps all levels but the coarsest exact.
    """
    return {
        "min_size": image_size,
        "max_size": image_size,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
        "size_divisible": divisor,
    }
