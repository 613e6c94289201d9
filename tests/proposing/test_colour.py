"""Colours and textures mean what the search takes them for."""

from __future__ import annotations

import numpy as np
import pytest

from selfdet.proposing.colour import COLOUR_BINS, HSV, LAB, TEXTURE_BINS, bins, convert, smooth


def one_pixel(colour: tuple[int, int, int], space: int) -> np.ndarray:
    image: np.ndarray = convert(np.array([[colour]], np.float32), space)
    return image[0, 0]


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 255, 255), (255, 128, 128)),
        ((0, 0, 0), (0, 128, 128)),
        # L*a*b* of the primaries as colour tables have them.
        ((255, 0, 0), (53.24 * 2.55, 80.09 + 128, 67.20 + 128)),
        ((0, 0, 255), (32.30 * 2.55, 79.19 + 128, -107.86 + 128)),
    ],
)
def test_lab_is_that_of_srgb(colour: tuple[int, int, int], expected: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(one_pixel(colour, LAB), expected, atol=0.6)


def test_hues_have_no_seam_and_greys_no_hue() -> None:
    reds = [one_pixel((255, 0, 4), HSV), one_pixel((255, 4, 0), HSV)]
    assert np.abs(reds[0] - reds[1]).max() < 10
    for value in (0, 3, 255):
        np.testing.assert_allclose(one_pixel((value, value, value), HSV), (127.5, 127.5, value))
    # Saturation is the distance from the middle, whatever the hue.
    for colour in ((255, 0, 0), (255, 255, 0), (0, 40, 0), (9, 0, 9)):
        across, down, _ = one_pixel(colour, HSV) - 127.5
        assert np.hypot(across, down) == pytest.approx(127.5, rel=1e-4)


def test_smoothing_keeps_flat_images_and_spreads_a_point_evenly() -> None:
    flat = np.full((5, 7, 3), 77, np.uint8)
    np.testing.assert_allclose(smooth(flat, 0.8), 77, rtol=1e-5)
    point = np.zeros((9, 9, 3), np.uint8)
    point[4, 4] = 200
    spread = smooth(point, 0.8)
    np.testing.assert_allclose(spread, spread[::-1, ::-1], atol=1e-4)
    np.testing.assert_allclose(spread.sum((0, 1)), 200, rtol=1e-3)


def test_textures_tell_direction_and_steepness_apart() -> None:
    def texture(image: np.ndarray) -> int:
        found = bins(image.astype(np.float32))
        assert found[..., :3].max() < COLOUR_BINS
        assert found[..., 3:].max() < TEXTURE_BINS
        return int(found[4, 4, 3])

    ramp = np.broadcast_to(np.arange(9)[:, None, None], (9, 9, 3))
    kinds = [0 * ramp, 5 * ramp, 5 * ramp[::-1], 5 * ramp.transpose(1, 0, 2), 28 * ramp]
    assert len({texture(image) for image in kinds}) == len(kinds)
