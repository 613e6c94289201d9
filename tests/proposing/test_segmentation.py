"""Regions are those of the published algorithm, written down slowly here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfdet.proposing.segmentation import STEPS, segment, sorted_edges


def slow_regions(image: np.ndarray, scale: float, smallest: int) -> list[set[int]]:
    """Felzenszwalb and Huttenlocher's algorithm on sets of pixels."""
    height, width, _ = image.shape
    edges = []
    for pixel in range(height * width):
        y, x = divmod(pixel, width)
        for direction, (dy, dx) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
            if y + dy < height and 0 <= x + dx < width:
                difference = math.sqrt(((image[y, x] - image[y + dy, x + dx]) ** 2).sum())
                edges.append((int(difference * STEPS), pixel, direction, (y + dy) * width + x + dx))
    region = {pixel: {pixel} for pixel in range(height * width)}
    limit = {id(own): float(scale) for own in region.values()}

    def join(one: set[int], two: set[int]) -> set[int]:
        one |= two
        for pixel in two:
            region[pixel] = one
        return one

    for level, pixel, _, other in sorted(edges):
        one, two = region[pixel], region[other]
        if one is not two and level / STEPS <= min(limit[id(one)], limit[id(two)]):
            joined = join(one, two)
            limit[id(joined)] = level / STEPS + scale / len(joined)
    for _, pixel, _, other in sorted(edges):
        one, two = region[pixel], region[other]
        if one is not two and min(len(one), len(two)) < smallest:
            join(one, two)
    return list({id(own): own for own in region.values()}.values())


def found_regions(image: np.ndarray, scale: float, smallest: int) -> tuple[np.ndarray, int]:
    edges, ends = sorted_edges(image)
    labels, count = segment(edges, ends, *image.shape[:2], np.float32(scale), smallest)
    return labels, count


@pytest.mark.parametrize(("height", "width"), [(9, 14), (1, 12), (12, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize(("scale", "smallest"), [(30.0, 1), (200.0, 1), (60.0, 5)])
def test_regions_are_those_of_the_paper(height: int, width: int, scale: float, smallest: int) -> None:
    rng = np.random.default_rng(height + width)
    # Whole numbers, so that both compute the same differences exactly; patches, so that there is something to find.
    patches = rng.integers(0, 255, (3, 4, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    image = (patches + rng.integers(0, 20, (height, width, 3))).clip(0, 255).astype(np.float32)
    labels, count = found_regions(image, scale, smallest)
    found = {frozenset(np.flatnonzero(labels.ravel() == number).tolist()) for number in range(count)}
    assert found == {frozenset(region) for region in slow_regions(image, scale, smallest)}


def test_two_colours_are_two_regions_numbered_in_reading_order() -> None:
    image = np.zeros((20, 30, 3), np.float32)
    image[5:15, 10:20] = 200
    labels, count = found_regions(image, 50.0, 4)
    assert count == 2
    assert labels[0, 0] == 0
    assert (labels == 1).sum() == 100


def test_no_region_is_smaller_than_asked() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.float32)
    labels, count = found_regions(noise, 10.0, 16)
    assert count > 1
    assert np.bincount(labels.ravel()).min() >= 16
