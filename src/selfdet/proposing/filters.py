"""Which boxes are worth learning from, and what an image gets that would be left without any."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from selfdet.errors import UserError


@dataclass(frozen=True)
class Filters:
    """Bounds on the boxes of an image.

    min_side: the shortest side allowed, as a share of the image's long side.
    max_aspect: long side over short side, at most.
    max_size: square root of the box's share of the image's area, at most.
    iou: a box that overlaps an earlier one by more is left out; 1 keeps all.
    top_k: boxes an image, at most; 0 for no limit.
    """

    min_side: float = 0.05
    max_aspect: float = 3.0
    max_size: float = 0.8
    iou: float = 0.5
    top_k: int = 50

    def check(self) -> None:
        """Raises: UserError for a bound that no box or every box would meet by mistake."""
        wrong = [
            ("--min-side", self.min_side, "a share of the long side from 0 to 1", 0 <= self.min_side < 1),
            ("--max-aspect", self.max_aspect, "1 or more", self.max_aspect >= 1),
            ("--max-size", self.max_size, "above 0 and at most 1", 0 < self.max_size <= 1),
            ("--iou", self.iou, "above 0 and at most 1", 0 < self.iou <= 1),
            ("--top-k", self.top_k, "0 (no limit) or more", self.top_k >= 0),
        ]
        for flag, value, expected, right in wrong:
            if not right:
                raise UserError(f"{flag} is {value:g}, expected {expected}", "Leave it out for the default")


# What an image gets that would be left without a box, first to last: see `filter_or_relax`.
FALLBACKS = ("aspect", "small", "large", "whole")
# Above this size a box is the whole image.
NEARLY_ALL = 1 - 1e-6


def apply_filters(boxes: np.ndarray, width: int, height: int, filters: Filters) -> np.ndarray:
    """The positions of the boxes that pass, in the order of the boxes, which is their priority.

    boxes: (N, 4) xyxy in pixels of the `width` × `height` image, inside it. Returns (M,) int64.
    Source: AlignDet, section 3.2, with SoCo's bounds made relative to the image.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    short, long = sides.min(1), sides.max(1)
    good = (short >= filters.min_side * max(width, height)) & (short > 0)
    good &= long <= filters.max_aspect * short
    good &= sides[:, 0] * sides[:, 1] <= filters.max_size**2 * width * height
    positions = np.flatnonzero(good)
    return positions[_suppress(boxes[positions], filters.iou, filters.top_k or len(boxes))]


def filter_or_relax(boxes: np.ndarray, width: int, height: int, filters: Filters) -> tuple[np.ndarray, str]:
    """The positions of the boxes that pass, or that pass when the bounds are relaxed step by step until some do.

    boxes: as for `apply_filters`. Returns (M,) int64 and "" or the step that gave them: `aspect` (of any aspect), then
    `small` (and down to a quarter of the shortest side), then `large` (and of any size below the image's), then `whole`
    (the image itself, where it is among the boxes). M may be 0 after that only.
    """
    steps = {"": filters}
    steps["aspect"] = replace(filters, max_aspect=np.inf)
    steps["small"] = replace(steps["aspect"], min_side=filters.min_side / 4)
    steps["large"] = replace(steps["small"], max_size=NEARLY_ALL)
    for step, bounds in steps.items():
        positions = apply_filters(boxes, width, height, bounds)
        if len(positions):
            return positions, step
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.flatnonzero(areas > NEARLY_ALL**2 * width * height)[:1], "whole"


def overlaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU of every pair: (N, 4) and (M, 4) xyxy → (N, M) in 0…1; 0 where both are empty."""
    one, two = one[:, None].astype(np.float64), two[None].astype(np.float64)
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.prod(np.clip(sides, 0, None), axis=2)
    either = np.prod(one[..., 2:] - one[..., :2], axis=2) + np.prod(two[..., 2:] - two[..., :2], axis=2) - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


def _suppress(boxes: np.ndarray, iou: float, top_k: int) -> list[int]:
    """Go through (N, 4) boxes in order, leaving out each that overlaps a kept one by more than `iou`."""
    kept: list[int] = []
    open_ = np.ones(len(boxes), bool)
    while len(kept) < top_k and open_.any():
        first = int(open_.argmax())
        kept.append(first)
        open_[first] = False
        if iou < 1:
            open_ &= overlaps(boxes[first : first + 1], boxes)[0] <= iou
    return kept
