"""Selective search finds what stands out, the same each time, in images of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfdet.data.images import read_image
from selfdet.data.labels import load_labels
from selfdet.data.synthetic import make_scenes
from selfdet.errors import UserError
from selfdet.proposing.filters import overlaps
from selfdet.proposing.recall import recall
from selfdet.proposing.selective_search import Search, TimeLimit, selective_search


def squares(height: int = 300, width: int = 500) -> tuple[Tensor, np.ndarray]:
    """A grey image with two squares of other colours, and their boxes."""
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    boxes = np.array([[50, 40, 150, 140], [300, 150, 420, 270]])
    for (left, top, right, bottom), colour in zip(boxes, [(200, 30, 30), (30, 60, 220)]):
        image[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return image, boxes


@pytest.mark.parametrize("side", [600, 400, 160])
def test_objects_are_found_in_pixels_of_the_original(side: int) -> None:
    image, objects = squares()
    boxes = selective_search(image, Search(side=side))
    assert overlaps(objects, boxes).max(1).min() > 0.93
    assert boxes.dtype == np.float32


def test_boxes_are_unlike_and_inside_the_image_and_one_is_the_image(tmp_path) -> None:
    for record in load_labels(make_scenes(tmp_path, count=2, size=96)).records:
        boxes = selective_search(read_image(record.path))
        assert len(np.unique(boxes, axis=0)) == len(boxes) > 20
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() == 0
        assert boxes.max(0).tolist() == [*boxes.max(0).tolist()[:2], 96, 96]
        assert [0, 0, 96, 96] in boxes.tolist()


def test_most_generated_objects_are_among_the_boxes(tmp_path) -> None:
    records = load_labels(make_scenes(tmp_path, count=6, size=160)).records
    figures = recall([(record.boxes, selective_search(read_image(record.path))) for record in records])
    assert figures["all"]["recall"] > 0.7


def test_a_seed_decides_the_order_and_nothing_else(tmp_path) -> None:
    record = load_labels(make_scenes(tmp_path, count=1, size=96)).records[0]
    image = read_image(record.path)
    first, again, other = (selective_search(image, Search(seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(other, axis=0))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2000), (40, 2000), (2000, 40), (3000, 4000), (64, 64)])
@pytest.mark.parametrize("kind", ["flat", "noise"])
def test_images_of_any_shape_have_boxes(size: tuple[int, int], kind: str) -> None:
    height, width = size
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    if kind == "noise":
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    boxes = selective_search(image)
    assert len(boxes) >= 1
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    if kind == "flat":
        assert boxes.tolist() == [[0, 0, width, height]]


def test_the_deadline_is_kept() -> None:
    with pytest.raises(TimeLimit):
        selective_search(squares()[0], deadline=0.0)


@pytest.mark.parametrize("search", [Search(side=8), Search(scales=()), Search(scales=(50.0, 0.0)), Search(seed=-1)])
def test_a_search_that_finds_nothing_is_refused(search: Search) -> None:
    with pytest.raises(UserError, match="--s"):
        search.check()
