"""How large anchors are beside the images."""

import pytest

from selfdet.detectors.anchors import level_sides


@pytest.mark.parametrize(
    ("image_size", "finest"), [(64, 4), (128, 4), (256, 4), (320, 4), (512, 6), (800, 8), (1333, 8), (4000, 8)]
)
def test_the_sides_of_levels_follow_the_working_size(image_size, finest):
    assert level_sides(image_size, [8, 16, 32, 64, 128]) == [finest * 2**level for level in range(5)]
