"""Part of rebuild.py: anchors, as torchvision has them and as mmdet and detectron2 do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Unrounded(AnchorGenerator):
    """Anchors as mmdet and detectron2 place them: not rounded to whole pixels, at the strides of the maps."""

    strides: list[int]
    offset = 0.0  # of an anchor's centre from the corner of its cell, in sides

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        halves = torch.stack([(sides / roots).flatten(), (sides * roots).flatten()], 1) / 2
        return torch.cat([-halves, halves], 1) + self.offset * sides.repeat(len(aspect_ratios))[:, None]

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        known = [[torch.full_like(side, stride) for side in sides] for stride, sides in zip(self.strides, strides)]
        return super().grid_anchors(grid_sizes, known)


class Cells(Unrounded):
    """The same around the centres of cells."""

    offset = 0.5


def anchors(config: dict[str, Any]) -> AnchorGenerator:
    """The anchors of each level."""
    sizes = tuple(tuple(level) for level in config["anchor_sizes"])
    exact = config.get("regions") == "exact" or config.get("mmdet") is not None
    kind = Cells if exact and config["detector"] == "fcos" else Unrounded if exact else AnchorGenerator
    made = kind(sizes, (tuple(config["aspect_ratios"]),) * len(sizes))
    made.strides = config["strides"]
    return made
