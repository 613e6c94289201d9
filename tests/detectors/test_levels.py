"""The levels that a check speaks of are those that the detectors use."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from selfdet.detectors.fcos import fcos
from selfdet.detectors.levels import box_size, count_levels, pyramid_levels, under_finest
from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("image_size", [256, 640, 1024])
def test_every_size_has_one_level(detector: str, image_size: int) -> None:
    levels = pyramid_levels(detector, image_size)
    assert levels[0].low == 0
    assert levels[-1].high == float("inf")
    assert all(one.high == next_one.low and one.stride * 2 == next_one.stride for one, next_one in pairwise(levels))
    sides = np.random.default_rng(0).uniform(1, 1000, (50, 2))
    assert sum(count_levels(detector, levels, sides)) == 50


def test_fcos_learns_a_box_on_the_level_that_is_told() -> None:
    detector = fcos(1, build_backbone("test_resnet"), image_size=256, fpn_channels=64, head_convs=1)
    sides = [anchors[0] for anchors in detector.config()["anchor_sizes"]]
    levels = pyramid_levels("fcos", 256)
    for level, side in zip(levels[1:], sides[1:]):
        assert level.low == 2 * 4 * side
    assert [level.stride for level in levels] == [8, 16, 32, 64, 128]


def test_sizes_are_the_long_side_for_fcos_and_the_root_of_the_area_else() -> None:
    sides = np.array([[10.0, 40.0]])
    assert box_size("fcos", sides).tolist() == [40]
    assert box_size("retinanet", sides).tolist() == [20]


def test_a_box_narrower_than_a_cell_is_under_the_finest_level() -> None:
    sides = np.array([[7.0, 40.0], [8.0, 8.0], [100.0, 3.0]])
    assert under_finest(pyramid_levels("fcos", 640), sides) == 2
    assert under_finest(pyramid_levels("mask_rcnn", 640), sides) == 1
    assert under_finest(pyramid_levels("fcos", 640), np.zeros((0, 2))) == 0
