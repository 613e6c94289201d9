"""Which level of a detector's pyramid learns boxes of which size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfdet.detectors.anchors import level_sides, working_scale

QUERIES = {
    "detr": 32,
    "deformable_detr": 8,
    "rtdetr": 8,
}  # detectors without levels, and the stride of their finest map


@dataclass(frozen=True)
class Level:
    """Cells of `stride` px, and the boxes from `low` to below `high` px that they learn, in a resized image."""

    stride: int
    low: float
    high: float


def pyramid_levels(detector: str, image_size: int) -> list[Level]:
    """The levels of a detector over a usual backbone (its finest map has stride 4), finest first.

    Sizes are those of `box_size`: FCOS takes at a box's centre the level of which half its long side is 4 to 8 anchor
    sides; of the others it is the one with the anchor nearest in size. The ends take what is left over. DETRs
    have one level.
    """
    if detector in QUERIES:  # which see all of the maps; this is the finest one's stride
        return [Level(QUERIES[detector], 0.0, float("inf"))]
    if detector == "fcos":
        strides = [8, 16, 32, 64, 128]
        edges = [16.0 * side for side in level_sides(image_size, strides)][:-1]
    elif detector == "retinanet":
        strides = [8, 16, 32, 64, 128]
        # Three anchors a level, a third of an octave apart, the next level's an octave above the first.
        edges = [4 * side * 2 ** (5 / 6) for side in level_sides(image_size, strides)][:-1]
    else:
        strides = [4, 8, 16, 32, 64]
        edges = [8 * stride * working_scale(image_size) * 2**0.5 for stride in strides][:-1]
    return [Level(*each) for each in zip(strides, [0.0, *edges], [*edges, float("inf")])]


def box_size(detector: str, sides: np.ndarray) -> np.ndarray:
    """(N, 2) widths and heights → (N,) the size by which the detector chooses a level, in the same pixels."""
    return sides.max(1) if detector == "fcos" else np.sqrt(sides.prod(1))


def count_levels(detector: str, levels: Sequence[Level], sides: np.ndarray) -> list[int]:
    """How many boxes of (N, 2) widths and heights, in pixels of the resized image, fall on each level."""
    sizes = box_size(detector, sides)
    return [int(((sizes >= level.low) & (sizes < level.high)).sum()) for level in levels]


def under_finest(levels: Sequence[Level], sides: np.ndarray) -> int:
    """How many boxes are narrower or lower than a cell of the finest level."""
    return int((sides.min(1) < levels[0].stride).sum()) if len(sides) else 0
