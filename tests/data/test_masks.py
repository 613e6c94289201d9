"""Masks are pycocotools' to the last pixel, and a segmentation that means nothing is refused before it does harm."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as reference

from selfdet.data.masks import decode_mask, encode_masks, has_segmentation, mask_area, segmentation_rle

SIZE = (37, 53)


def random_polygons(rng: np.random.Generator) -> list[list[float]]:
    """One to three polygons, some of them crossing themselves, thin, or leaving the image."""
    return [rng.uniform(-15, 70, 2 * rng.integers(3, 12)).round(2).tolist() for _ in range(rng.integers(1, 4))]


def blob(rng: np.random.Generator) -> np.ndarray:
    """A random mask of runs and single pixels."""
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    y, x, radius = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(1, 20)
    mask: np.ndarray = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2) ^ (rng.random(SIZE) < 0.05)
    return mask


def run_lengths(mask: np.ndarray) -> list[int]:
    """A slow loop down the columns."""
    runs, now = [0], False
    for pixel in mask.T.flatten():
        if pixel != now:
            runs.append(0)
            now = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("seed", range(20))
def test_polygons_give_the_pixels_of_pycocotools(seed: int) -> None:
    polygons = random_polygons(np.random.default_rng(seed))
    expected = reference.decode(reference.merge(reference.frPyObjects(polygons, *SIZE))).astype(bool)
    packed = segmentation_rle(polygons, SIZE)
    np.testing.assert_array_equal(decode_mask(packed), expected)
    assert mask_area(packed) == expected.sum()
    np.testing.assert_array_equal(decode_mask(segmentation_rle([*polygons, [3, 3, 9, 9]], SIZE)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_of_every_kind_give_the_same_mask(seed: int) -> None:
    mask = blob(np.random.default_rng(seed))
    packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    kinds: list[dict[str, Any]] = [
        {"size": list(SIZE), "counts": run_lengths(mask)},
        packed,
        {**packed, "counts": packed["counts"].decode()},
    ]
    for kind in kinds:
        np.testing.assert_array_equal(decode_mask(segmentation_rle(kind, SIZE)), mask)


def test_masks_survive_json_and_are_what_pycocotools_reads_and_writes() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([blob(rng), np.zeros(SIZE, bool), np.ones(SIZE, bool)])
    for given in (torch.from_numpy(masks), masks, torch.from_numpy(masks.transpose(0, 2, 1).copy()).transpose(1, 2)):
        packed = json.loads(json.dumps(encode_masks(given)))
        np.testing.assert_array_equal(np.stack([decode_mask(each) for each in packed]), masks)
        for each, mask in zip(packed, masks):
            theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert each == {"size": list(SIZE), "counts": theirs["counts"].decode()}
            np.testing.assert_array_equal(reference.decode(each), mask)
    assert encode_masks(torch.zeros(0, *SIZE, dtype=torch.bool)) == []


def test_nothing_lines_and_points_tell_no_pixels() -> None:
    for nothing in (None, [], [[]], [[1, 2]], [[1, 2, 3, 4], [5, 6]]):
        assert not has_segmentation(nothing)
    for something in ([[1, 2, 3, 4, 5, 6]], [[1, 2], [1, 2, 3, 4, 5, 6]], {"size": [1, 1], "counts": [1]}, "x", ["x"]):
        assert has_segmentation(something)
    assert not decode_mask(segmentation_rle([[1, 2, 3, 4]], SIZE)).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("a polygon", "neither polygons nor RLE"),
        ({"counts": [6]}, "neither polygons nor RLE"),
        ([1, 1, 4, 1, 4, 3], "not a list of x, y"),
        ([[1, 1, 4, 1, 4, 3, 1]], "not a list of x, y"),
        ([[1, 1, 4, 1, 4, None]], "not a list of x, y"),
        ([[1, float("nan"), 4, 1, 4, 3]], "further away"),
        ([[1, 1, 1e12, 1, 1e12, 1e12]], "further away"),
        ({"size": [2, 3], "counts": [6]}, r"\[2, 3\] where the image's is \[3, 2\]"),
        ({"size": 6, "counts": [6]}, "its size is 6"),
        ({"size": [3, 2], "counts": [5]}, "add up to 3 × 2"),
        ({"size": [3, 2], "counts": [7]}, "add up to 3 × 2"),
        ({"size": [3, 2], "counts": [-1, 7]}, "whole numbers"),
        ({"size": [3, 2], "counts": [2.5, 3.5]}, "whole numbers"),
        ({"size": [3, 2], "counts": 6}, "neither a list nor a string"),
        ({"size": [3, 2], "counts": "what's this"}, "no run lengths"),
    ],
)
def test_a_segmentation_without_a_meaning_is_refused_with_the_reason(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segmentation_rle(wrong, (3, 2))


def test_runs_that_end_early_are_refused() -> None:
    packed = segmentation_rle({"size": [3, 2], "counts": "1"}, (3, 2))
    with pytest.raises(ValueError, match="no run lengths"):
        decode_mask(packed)
