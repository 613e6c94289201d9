"""Selective search: boxes around whatever may be an object, from the hierarchy of an image's regions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from selfdet.errors import UserError
from selfdet.proposing.colour import SPACES, bins, convert, smooth
from selfdet.proposing.grouping import describe, group
from selfdet.proposing.segmentation import segment, sorted_edges

# Weights of the similarities by colour, texture, size and fill, and how far back in the order a hierarchy's boxes are
# put: the two sets of the paper's fast version, and a third that costs little and finds other objects (size and fill
# together say: whichever two regions have the smallest box). Put back, its boxes add about a point to the average
# recall of all boxes and take nothing from that of the first.
SIMILARITIES = (((1, 1, 1, 1), 1), ((0, 1, 1, 1), 1), ((0, 0, 1, 1), 4))
# Before the regions are segmented; the paper's figure.
SIGMA = 0.8
# A region below this share of the image, and below so many pixels, joins its neighbour. It bounds the time that an
# image of noise takes: there are never more than 3,333 regions to group.
SMALLEST_SHARE, SMALLEST_PIXELS = 0.0003, 16


class TimeLimit(Exception):
    """An image took longer than it may."""


@dataclass(frozen=True)
class Search:
    """How to search.

    side: long side in pixels that an image is shrunk to; smaller ones stay as they are.
    scales: of the segmentation (k), larger for larger first regions; each is used in each colour space.
    seed: of the jitter in the order of the boxes.
    """

    side: int = 400
    scales: tuple[float, ...] = (50.0, 100.0)
    seed: int = 0

    def check(self) -> None:
        """Raises: UserError for a side or scale that nothing can be found with."""
        if self.side < 16:
            raise UserError(f"--side is {self.side}, expected 16 pixels or more", "Leave it out for the default")
        if not self.scales or min(self.scales) <= 0:
            shown = " ".join(f"{scale:g}" for scale in self.scales)
            raise UserError(f"--scales is '{shown}', expected numbers above 0", "Leave it out for the default")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}, expected 0 or more")


def selective_search(image: Tensor, search: Search | None = None, deadline: float = float("inf")) -> np.ndarray:
    """Boxes of all regions of an image's hierarchies, each box once, the likelier objects first.

    image: (3, H, W) uint8 RGB, as `read_image` gives it. search: how; the default where None. deadline: time of
    `time.monotonic` after which to give up; looked at between the steps, each of which takes a fraction of a second.
    Returns (N, 4) float32, xyxy in pixels of `image`, N >= 1; the last merged region is the whole image. The order is
    that of the hierarchies' ranks, largest region first, times a uniform random number: the same for the same seed.

    Raises: TimeLimit.
    Source: Uijlings et al., Selective Search for Object Recognition, IJCV 2013, sections 3 and 4.
    """
    search = search or Search()
    rng = np.random.default_rng(search.seed)
    height, width = image.shape[-2:]
    pixels = shrink(image.permute(1, 2, 0).numpy(), search.side)
    boxes, ranks = [], []
    for hierarchy, back in _hierarchies(pixels, search, deadline):
        boxes.append(hierarchy)
        ranks.append(back * np.arange(1, len(hierarchy) + 1) * rng.random(len(hierarchy)))
    ordered = np.concatenate(boxes)[np.argsort(np.concatenate(ranks), kind="stable")]
    _, first = np.unique(ordered, axis=0, return_index=True)
    scale = np.array([width / pixels.shape[1], height / pixels.shape[0]] * 2)
    return (ordered[np.sort(first)] * scale).astype(np.float32)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 with a long side of at most `side` pixels; neither side falls below 1."""
    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        return np.ascontiguousarray(pixels)
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)


def _hierarchies(pixels: np.ndarray, search: Search, deadline: float) -> Iterator[tuple[np.ndarray, int]]:
    """For each colour space, scale and set of similarities: (2R - 1, 4) int32 xyxy, the largest region first; and how
    far back they belong."""
    height, width = pixels.shape[:2]
    smallest = max(SMALLEST_PIXELS, round(SMALLEST_SHARE * height * width))
    smoothed = smooth(pixels, SIGMA)
    for space in SPACES.values():
        _check(deadline)
        image = convert(smoothed, space)
        places = bins(image)
        edges, ends = sorted_edges(image)
        for scale in search.scales:
            _check(deadline)
            labels, count = segment(edges, ends, height, width, np.float32(scale), smallest)
            regions = describe(labels, count, places)
            for weights, back in SIMILARITIES:
                _check(deadline)
                histograms, sizes, boxes, pairs = (array.copy() for array in regions)
                group(histograms, sizes, boxes, pairs, height * width, np.array(weights, np.float32))
                yield boxes[::-1], back


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeLimit


def compile_search() -> None:
    """Compile the loops, or load them from disk, on an image of a few pixels; once, before processes share them."""
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for _ in _hierarchies(pixels, Search(), float("inf")):
        pass
