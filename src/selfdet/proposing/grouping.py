"""Hierarchical grouping: the two most similar neighbours become one region, until one is left."""

from __future__ import annotations

import numpy as np

from selfdet.proposing.colour import COLOUR_BINS, TEXTURE_BINS
from selfdet.proposing.compiling import kernel

COLOUR = 3 * COLOUR_BINS
DIM = COLOUR + 3 * TEXTURE_BINS


@kernel
def describe(labels, count, bins):  # type: ignore[no-untyped-def]
    """What the similarities need of each region.

    labels: (H, W) int32, 0…R-1; count: R; bins: (H, W, 6) uint8. Returns histograms (2R - 1, DIM) float32, colour and
    texture each of sum 1; sizes (2R - 1,) int32 pixels; boxes (2R - 1, 4) int32 xyxy pixels; all with room for the
    regions that grouping makes; pairs (P, 2) int32 of regions that touch.
    """
    height, width = labels.shape
    total = 2 * count - 1
    histograms = np.zeros((total, DIM), np.float32)
    sizes = np.zeros(total, np.int32)
    boxes = np.zeros((total, 4), np.int32)
    # Neighbours as linked lists, each pair in that of the region of the lower number. As many pairs as pixels touch
    # would be enough in any case; memory that is never written costs nothing.
    head = np.full(count, -1, np.int32)
    pairs = np.empty((2 * height * width, 2), np.int32)
    following = np.empty(2 * height * width, np.int32)
    found = 0
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if sizes[label] == 0:
                boxes[label, 0] = x
                boxes[label, 1] = y
            sizes[label] += 1
            for c in range(3):
                histograms[label, c * COLOUR_BINS + bins[y, x, c]] += 1
                histograms[label, COLOUR + c * TEXTURE_BINS + bins[y, x, 3 + c]] += 1
            boxes[label, 0] = min(boxes[label, 0], x)
            boxes[label, 2] = max(boxes[label, 2], x + 1)
            boxes[label, 3] = y + 1
            for step in range(2):
                row, column = y + step, x + 1 - step
                if row >= height or column >= width or labels[row, column] == label:
                    continue
                low, high = min(label, labels[row, column]), max(label, labels[row, column])
                at = head[low]
                while at >= 0 and pairs[at, 1] != high:
                    at = following[at]
                if at >= 0:
                    continue
                pairs[found, 0] = low
                pairs[found, 1] = high
                following[found] = head[low]
                head[low] = found
                found += 1
    for region in range(count):
        for d in range(DIM):
            histograms[region, d] /= np.float32(3 * sizes[region])
    return histograms, sizes, boxes, pairs[:found]


@kernel
def group(histograms, sizes, boxes, pairs, pixels, weights):  # type: ignore[no-untyped-def]
    """Fill in the regions that grouping makes, R to 2R - 2, each of two earlier ones; the last is the whole image.

    histograms, sizes, boxes, pairs: of `describe`, all of them written to; pixels: of the image; weights: (4,) float32
    of the similarities by colour, texture, size and fill.

    Source: Uijlings et al., Selective Search for Object Recognition, IJCV 2013, algorithm 1 and equations 1 to 6.
    """
    total = len(sizes)
    likeness = np.empty(len(pairs), np.float32)
    # The last merged region that a region is known to touch.
    touched = np.zeros(total, np.int32)
    around = np.empty(total, np.int32)
    # Of the pairs, those before `known` have their likeness; those up to `filled` are to get it.
    known, filled, best = 0, len(pairs), 0
    for new in range((total + 1) // 2, total):
        for edge in range(known, filled):
            likeness[edge] = _similarity(histograms, sizes, boxes, pairs[edge, 0], pairs[edge, 1], pixels, weights)
            if likeness[edge] > likeness[best]:
                best = edge
        one, two = pairs[best, 0], pairs[best, 1]
        sizes[new] = sizes[one] + sizes[two]
        share = np.float32(sizes[one]) / np.float32(sizes[new])
        for d in range(DIM):
            histograms[new, d] = share * histograms[one, d] + (np.float32(1) - share) * histograms[two, d]
        for side in range(2):
            boxes[new, side] = min(boxes[one, side], boxes[two, side])
            boxes[new, side + 2] = max(boxes[one, side + 2], boxes[two, side + 2])
        known, neighbours, best = 0, 0, 0
        for edge in range(filled):
            low, high = pairs[edge, 0], pairs[edge, 1]
            low_ends, high_ends = low in (one, two), high in (one, two)
            if low_ends or high_ends:
                other = high if low_ends else low
                if not (low_ends and high_ends) and touched[other] != new:
                    touched[other] = new
                    around[neighbours] = other
                    neighbours += 1
                continue
            pairs[known, 0] = low
            pairs[known, 1] = high
            likeness[known] = likeness[edge]
            if likeness[known] > likeness[best]:
                best = known
            known += 1
        # Each of them ended one pair or two, so there is room for one.
        for i in range(neighbours):
            pairs[known + i, 0] = around[i]
            pairs[known + i, 1] = new
        filled = known + neighbours


@kernel
def _similarity(histograms, sizes, boxes, one, two, pixels, weights):  # type: ignore[no-untyped-def]
    similarity = np.float32(0)
    if weights[0] > 0:
        common = np.float32(0)
        for d in range(COLOUR):
            common += min(histograms[one, d], histograms[two, d])
        similarity += weights[0] * common
    if weights[1] > 0:
        common = np.float32(0)
        for d in range(COLOUR, DIM):
            common += min(histograms[one, d], histograms[two, d])
        similarity += weights[1] * common
    together = np.float32(sizes[one] + sizes[two])
    width = max(boxes[one, 2], boxes[two, 2]) - min(boxes[one, 0], boxes[two, 0])
    height = max(boxes[one, 3], boxes[two, 3]) - min(boxes[one, 1], boxes[two, 1])
    similarity += weights[2] * (np.float32(1) - together / np.float32(pixels))
    similarity += weights[3] * (np.float32(1) - (np.float32(width * height) - together) / np.float32(pixels))
    return similarity
