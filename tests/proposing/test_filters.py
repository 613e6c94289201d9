"""Boxes pass within the stated bounds, and no image with boxes is left without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from selfdet.errors import UserError
from selfdet.proposing.filters import Filters, apply_filters, filter_or_relax, overlaps

WIDTH, HEIGHT = 200, 100


def boxes_of(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def passes(box: tuple[float, float, float, float], **bounds: float) -> bool:
    return len(apply_filters(boxes_of(box), WIDTH, HEIGHT, Filters(**bounds))) == 1  # type: ignore[arg-type]


def test_both_sides_have_a_share_of_the_images_long_side() -> None:
    assert passes((0, 0, 10, 10))
    assert not passes((0, 0, 10, 9.9))
    assert not passes((0, 0, 9.9, 10))
    assert passes((0, 0, 4, 4), min_side=0.02)


def test_the_aspect_is_bounded_both_ways() -> None:
    assert passes((0, 0, 60, 20))
    assert passes((0, 0, 20, 60))
    assert not passes((0, 0, 61, 20))
    assert not passes((0, 0, 20, 61))
    assert passes((0, 0, 20, 100), max_aspect=5)


def test_the_largest_size_is_that_of_the_square_roots() -> None:
    assert passes((0, 0, 160, 80))
    assert not passes((0, 0, 161, 80))
    assert passes((0, 0, 200, 100), max_size=1)


def test_a_box_gives_way_to_earlier_ones_only() -> None:
    boxes = boxes_of((0, 0, 40, 40), (0, 0, 40, 30), (100, 0, 140, 40), (0, 0, 40, 44))
    assert apply_filters(boxes, WIDTH, HEIGHT, Filters()).tolist() == [0, 2]
    assert apply_filters(boxes[::-1], WIDTH, HEIGHT, Filters()).tolist() == [0, 1]
    assert apply_filters(boxes, WIDTH, HEIGHT, Filters(iou=1)).tolist() == [0, 1, 2, 3]
    assert apply_filters(boxes, WIDTH, HEIGHT, Filters(iou=1, top_k=2)).tolist() == [0, 1]
    assert apply_filters(boxes[:0], WIDTH, HEIGHT, Filters()).tolist() == []


def test_overlaps_and_suppression_are_torchvisions() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (60, 2))], 1).astype(np.float32)
    tensors = torch.from_numpy(boxes)
    np.testing.assert_allclose(overlaps(boxes, boxes), box_iou(tensors, tensors), atol=1e-6)
    kept = nms(tensors, torch.linspace(1, 0, 60), 0.5)
    everything = Filters(min_side=0, max_aspect=1e9, max_size=1, top_k=0)
    assert apply_filters(boxes, 140, 140, everything).tolist() == kept.tolist()
    assert overlaps(boxes_of((3, 3, 3, 3)), boxes_of((3, 3, 3, 3))).tolist() == [[0]]


@pytest.mark.parametrize(
    ("box", "step"),
    [
        ((0, 0, 40, 40), ""),
        ((0, 0, 100, 20), "aspect"),
        ((0, 0, 5, 5), "small"),
        ((0, 0, 3, 60), "small"),
        ((0, 0, 199, 100), "large"),
        ((0, 0, 200, 100), "whole"),
    ],
)
def test_bounds_are_relaxed_step_by_step_until_a_box_passes(box: tuple[float, float, float, float], step: str) -> None:
    positions, told = filter_or_relax(boxes_of((0, 0, 1, 1), box), WIDTH, HEIGHT, Filters())
    assert told == step
    assert positions.tolist() == [1]


def test_where_nothing_is_left_to_relax_nothing_passes() -> None:
    for boxes in (boxes_of(), boxes_of((0, 0, 2, 2))):
        assert filter_or_relax(boxes, WIDTH, HEIGHT, Filters())[0].tolist() == []


@pytest.mark.parametrize(
    ("bounds", "flag"),
    [
        ({"min_side": 1.0}, "--min-side"),
        ({"min_side": float("nan")}, "--min-side"),
        ({"max_aspect": 0.5}, "--max-aspect"),
        ({"max_size": 0.0}, "--max-size"),
        ({"iou": 50.0}, "--iou"),
        ({"top_k": -1}, "--top-k"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, float], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        Filters(**bounds).check()  # type: ignore[arg-type]
