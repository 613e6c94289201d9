"""A painted mask shows its object through, ends where it ends, and may be of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfdet.drawing.masks import paint_mask

GROUND, SHADE = (90, 110, 90), (255, 0, 200)


def painted(mask: np.ndarray, line: int = 2, size: tuple[int, int] = (60, 40)) -> np.ndarray:
    picture = Image.new("RGB", size, GROUND)
    paint_mask(picture, mask, SHADE, line)
    return np.asarray(picture)


def test_the_outline_is_opaque_runs_inside_and_is_as_wide_as_asked() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    for line in (1, 2, 5):
        opaque = (painted(mask, line) == SHADE).all(-1)
        expected = mask.copy()
        expected[10 + line : 30 - line, 20 + line : 50 - line] = False
        np.testing.assert_array_equal(opaque, expected)
    drawn = painted(mask)
    np.testing.assert_array_equal((drawn != GROUND).any(-1), mask)
    assert len(np.unique(drawn[13:27, 23:47].reshape(-1, 3), axis=0)) == 1


def test_holes_and_separate_pieces_are_outlined_and_edges_of_the_picture_too() -> None:
    mask = np.ones((40, 60), bool)
    mask[15:25, 20:30] = mask[:, 45:48] = False
    opaque = (painted(mask, 1) == SHADE).all(-1)
    for y, x in ((0, 10), (20, 0), (14, 25), (20, 19), (20, 30), (10, 44), (10, 48), (10, 59)):
        assert opaque[y, x]
    for y, x in ((1, 10), (5, 5), (20, 25), (10, 46), (30, 25)):
        assert not opaque[y, x]


@pytest.mark.parametrize("size", [(120, 80), (30, 20), (61, 39)])
def test_a_mask_is_stretched_to_the_picture(size: tuple[int, int]) -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    drawn = (painted(mask, 1, size) != GROUND).any(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    expected = np.array([20, 10, 50, 30]) * ([size[0] / 60, size[1] / 40] * 2)
    assert np.abs(found - expected).max() <= 1


def test_nothing_and_what_is_too_thin_for_the_picture_leave_it_as_it_was() -> None:
    mask = np.zeros((400, 600), bool)
    for _ in range(2):
        assert (painted(mask) == GROUND).all()
        mask[7, 13] = True
