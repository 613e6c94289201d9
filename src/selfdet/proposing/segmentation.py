"""Graph segmentation of an image into regions (Felzenszwalb and Huttenlocher 2004)."""

from __future__ import annotations

import math

import numpy as np

from selfdet.proposing.compiling import kernel

# Colour differences are sorted by counting, in steps this fine; the largest is 255 · √3.
STEPS = 32
LEVELS = 442 * STEPS


@kernel
def sorted_edges(image):  # type: ignore[no-untyped-def]
    """The pairs of neighbouring pixels, least different first.

    image: (H, W, 3) float32. Returns edges (E,) int32, pixel · 4 + direction (0 right, 1 down, 2 down right, 3 down
    left), and ends (LEVELS,) int64: those of difference `level / STEPS` end before `ends[level]`.
    """
    height, width, _ = image.shape
    levels = np.empty((height * width, 4), np.uint16)
    count = np.zeros(LEVELS + 1, np.int64)
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                row = y + (direction > 0)
                column = x + (1, 0, 1, -1)[direction]
                if row >= height or column < 0 or column >= width:
                    continue
                total = np.float32(0)
                for c in range(3):
                    difference = image[y, x, c] - image[row, column, c]
                    total += difference * difference
                level = min(int(math.sqrt(total) * STEPS), LEVELS - 1)
                levels[y * width + x, direction] = level
                count[level + 1] += 1
    ends = np.cumsum(count)
    edges = np.empty(ends[-1], np.int32)
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                row = y + (direction > 0)
                column = x + (1, 0, 1, -1)[direction]
                if row >= height or column < 0 or column >= width:
                    continue
                pixel = y * width + x
                level = levels[pixel, direction]
                edges[ends[level]] = pixel * 4 + direction
                ends[level] += 1
    return edges, ends[:-1]


@kernel
def segment(edges, ends, height, width, scale, smallest):  # type: ignore[no-untyped-def]
    """Regions whose inner differences are small beside those at their borders.

    edges, ends: of `sorted_edges`; scale: k of the paper, larger for larger regions; smallest: pixels below which a
    region joins its most similar neighbour. Returns labels (H, W) int32, 0…R-1 in reading order, and R.

    Source: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004, algorithm 1.
    """
    pixels = height * width
    parent = np.arange(pixels).astype(np.int32)
    size = np.ones(pixels, np.int32)
    limit = np.full(pixels, scale, np.float32)
    left = np.empty(len(edges), np.int32)
    kept = 0
    start = 0
    for level in range(len(ends)):
        weight = np.float32(level) / np.float32(STEPS)
        for position in range(start, ends[level]):
            edge = edges[position]
            one, two = _root(parent, edge >> 2), _root(parent, _other_end(edge, width))
            if one == two:
                continue
            if weight <= limit[one] and weight <= limit[two]:
                root = _join(parent, size, one, two)
                limit[root] = weight + scale / size[root]
            else:
                left[kept] = edge
                kept += 1
        start = ends[level]
    for position in range(kept):
        edge = left[position]
        one, two = _root(parent, edge >> 2), _root(parent, _other_end(edge, width))
        if one != two and (size[one] < smallest or size[two] < smallest):
            _join(parent, size, one, two)
    labels = np.empty(pixels, np.int32)
    number = np.full(pixels, -1, np.int32)
    count = 0
    for pixel in range(pixels):
        root = _root(parent, pixel)
        if number[root] < 0:
            number[root] = count
            count += 1
        labels[pixel] = number[root]
    return labels.reshape(height, width), count


@kernel
def _other_end(edge, width):  # type: ignore[no-untyped-def]
    direction = edge & 3
    return (edge >> 2) + (1 if direction == 0 else width + (0, 0, 1, -1)[direction])


@kernel
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def _join(parent, size, one, two):  # type: ignore[no-untyped-def]
    if size[one] < size[two]:
        one, two = two, one
    parent[two] = one
    size[one] += size[two]
    return one
