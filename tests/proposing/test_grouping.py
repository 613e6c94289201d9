"""The hierarchy is that of the paper, written down slowly here."""

from __future__ import annotations

import numpy as np
import pytest

from selfdet.proposing.grouping import COLOUR, DIM, describe, group

HEIGHT, WIDTH = 31, 43


def scene(seed: int, count: int = 14) -> tuple[np.ndarray, int, np.ndarray]:
    """Labels of the pixels nearest to random points, uneven enough that no two pairs are equally alike; random bins."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, 2)) * [HEIGHT, WIDTH]
    pixels = np.stack(np.mgrid[:HEIGHT, :WIDTH], 2)[:, :, None]
    labels = np.abs(pixels - points).sum(3).argmin(2).astype(np.int32)
    assert len(np.unique(labels)) == count
    places = np.concatenate([rng.integers(0, 25, (HEIGHT, WIDTH, 3)), rng.integers(0, 32, (HEIGHT, WIDTH, 3))], 2)
    return labels, count, places.astype(np.uint8)


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [int(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def touch(one: np.ndarray, two: np.ndarray) -> bool:
    grown = one.copy()
    grown[1:] |= one[:-1]
    grown[:-1] |= one[1:]
    grown[:, 1:] |= one[:, :-1]
    grown[:, :-1] |= one[:, 1:]
    return bool((grown & two).any())


def test_regions_are_described_by_their_pixels() -> None:
    labels, count, places = scene(0)
    histograms, sizes, boxes, pairs = describe(labels, count, places)
    masks = [labels == number for number in range(count)]
    assert sizes[:count].tolist() == [mask.sum() for mask in masks]
    assert boxes[:count].tolist() == [box_of(mask) for mask in masks]
    np.testing.assert_allclose(histograms[:count, :COLOUR].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(histograms[:count, COLOUR:].sum(1), 1, rtol=1e-5)
    expected = {(i, j) for i in range(count) for j in range(i + 1, count) if touch(masks[i], masks[j])}
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 2, 1), (1, 0, 0, 0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_grouping_joins_the_most_similar_neighbours_first(seed: int, weights: tuple[int, ...]) -> None:
    labels, count, places = scene(seed)
    histograms, sizes, boxes, pairs = describe(labels, count, places)
    masks = {number: labels == number for number in range(count)}
    colours = {number: histograms[number].astype(float) for number in range(count)}
    live = set(masks)

    def similarity(one: int, two: int) -> float:
        common = np.minimum(colours[one], colours[two])
        together = masks[one] | masks[two]
        left, top, right, bottom = box_of(together)
        terms = [common[:COLOUR].sum(), common[COLOUR:DIM].sum(), 1 - together.sum() / labels.size]
        terms.append(1 - ((right - left) * (bottom - top) - together.sum()) / labels.size)
        return float(np.dot(weights, terms))

    expected = []
    for new in range(count, 2 * count - 1):
        near = [(i, j) for i in live for j in live if i < j and touch(masks[i], masks[j])]
        one, two = max(near, key=lambda pair: similarity(*pair))
        share = masks[one].sum() / (masks[one] | masks[two]).sum()
        colours[new] = share * colours[one] + (1 - share) * colours[two]
        masks[new] = masks[one] | masks[two]
        live = live - {one, two} | {new}
        expected.append(box_of(masks[new]))

    group(histograms, sizes, boxes, pairs, labels.size, np.array(weights, np.float32))
    assert boxes[count:].tolist() == expected
    assert boxes[-1].tolist() == [0, 0, WIDTH, HEIGHT]


def test_a_single_region_is_its_own_hierarchy() -> None:
    labels, places = np.zeros((4, 5), np.int32), np.zeros((4, 5, 6), np.uint8)
    histograms, sizes, boxes, pairs = describe(labels, 1, places)
    group(histograms, sizes, boxes, pairs, 20, np.ones(4, np.float32))
    assert boxes.tolist() == [[0, 0, 5, 4]]
