"""Where a view's pixels come from: random crops, their affine maps, and the true matches between two views' grids.

All coordinates are continuous pixels: pixel `i` covers `[i, i + 1)`, so its centre is `i + 0.5`. A view is an integer
crop of the source, resized to `size × size` and then perhaps mirrored; resizing follows the same convention (half-pixel
centres), hence the map from view to source is exactly affine and the crop's edges meet the view's edges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Crop(NamedTuple):
    """An integer rectangle of the source image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """Draw a crop: area uniform in `scale` (shares of the image's), width : height log-uniform in `ratio`.

    Ten draws that do not fit are followed by the largest central crop with an allowed aspect ratio, as in torchvision's
    `RandomResizedCrop`; images of one pixel are fine.

    Source: Szegedy et al., "Going deeper with convolutions", section 6.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w)
    w, h = width, height
    if width < ratio[0] * height:
        h = max(1, min(height, round(width / ratio[0])))
    elif width > ratio[1] * height:
        w = max(1, min(width, round(height * ratio[1])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def view_affine(crop: Crop, flip: bool, size: int) -> Tensor:
    """Return the map (2, 3) float32 from view to source pixels (x, y): crop, resize to `size` and mirroring in one."""
    step_x, step_y = crop.width / size, crop.height / size
    row_x = [-step_x, 0.0, crop.left + crop.width] if flip else [step_x, 0.0, crop.left]
    return torch.tensor([row_x, [0.0, step_y, crop.top]], dtype=torch.float32)


def grid_centres(view_size: int, grid: int) -> Tensor:
    """Return the centres (grid², 2) float64 (x, y) in view pixels of a view's `grid × grid` cells, row by row."""
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) * (view_size / grid)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def true_matches(query_affine: Tensor, key_affine: Tensor, view_size: int, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find, for each query cell's centre, the key cell that shows the same point of the source image.

    `query_affine`, `key_affine`: (B, 2, 3), view pixels to source pixels. Returns `match` (B, grid²) int64, the key
    cell's index row by row and -1 where the point lies outside the key view; `valid` (B, grid²) bool; `key_xy`
    (B, grid², 2) float32, the point in key view pixels, also where it lies outside. Computed in float64.
    """
    query, key = query_affine.double(), key_affine.double()
    centres = grid_centres(view_size, grid).to(query.device)
    source = centres @ query[:, :, :2].transpose(1, 2) + query[:, None, :, 2]
    key_xy = torch.linalg.solve(key[:, :, :2], (source - key[:, None, :, 2]).transpose(1, 2)).transpose(1, 2)
    valid = ((key_xy >= 0) & (key_xy < view_size)).all(dim=-1)
    column, row = (key_xy * (grid / view_size)).floor().long().clamp(0, grid - 1).unbind(dim=-1)
    return torch.where(valid, row * grid + column, -1), valid, key_xy.float()
