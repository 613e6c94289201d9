"""Each pixel operation agrees with torchvision's on the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from selfdet.data import pixels


def picture(height: int = 60, width: int = 80, seed: int = 0) -> Tensor:
    """Smooth colours with noise, plus flat patches of pure, grey, black and white pixels where hue is delicate."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 127 * np.sin(x / (5 + 3 * c) + y / (11 - 2 * c) + c) for c in range(3)]
    image = np.clip(np.stack(waves) + rng.normal(0, 20, (3, height, width)), 0, 255).astype(np.uint8)
    corners = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255), (90, 90, 90)]
    for column, colour in enumerate(corners):
        image[:, :4, 4 * column : 4 * column + 4] = np.array(colour, dtype=np.uint8)[:, None, None]
    return torch.from_numpy(image)


def floats(image: Tensor) -> np.ndarray:
    return image.numpy().astype(np.float32)


def largest_gap(ours: np.ndarray, theirs: Tensor) -> int:
    return int((pixels.to_uint8(ours).int() - theirs.int()).abs().max())


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pixels.brighten, tv.adjust_brightness),
        (pixels.contrast, tv.adjust_contrast),
        (pixels.saturate, tv.adjust_saturation),
    ],
)
def test_brightness_contrast_and_saturation_are_torchvisions(ours, theirs, factor) -> None:
    image = picture()
    values = floats(image)
    ours(values, factor)
    assert largest_gap(values, theirs(image, factor)) <= 1


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.013, 0.0, 0.04, 0.1, 0.37])
def test_hue_is_torchvisions_rotation(turn: float) -> None:
    image = picture()
    values = floats(image)
    pixels.rotate_hue(values, turn)
    assert largest_gap(values, tv.adjust_hue(image, turn)) <= 1


def test_greyscale_is_torchvisions() -> None:
    image = picture()
    values = floats(image)
    pixels.greyscale(values)
    assert largest_gap(values, tv.rgb_to_grayscale(image, num_output_channels=3)) <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.35, 0.9, 1.5, 2.0])
def test_blur_is_torchvisions(sigma: float) -> None:
    image = picture()
    ours = pixels.gaussian_blur(floats(image), sigma)
    assert largest_gap(ours, tv.gaussian_blur(image, [23, 23], [sigma, sigma])) <= 1


def test_a_chain_of_operations_is_torchvisions_without_its_rounding_in_between() -> None:
    image = picture(seed=3)
    values = floats(image)
    pixels.rotate_hue(values, 0.07)
    pixels.brighten(values, 1.2)
    pixels.saturate(values, 0.7)
    pixels.contrast(values, 0.8)
    theirs = tv.adjust_saturation(tv.adjust_brightness(tv.adjust_hue(image / 255, 0.07), 1.2), 0.7)
    exact = tv.adjust_contrast(theirs, 0.8) * 255
    np.testing.assert_allclose(values, exact.numpy(), atol=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 1), (3, 4)])
def test_blur_keeps_flat_images_flat_however_small(shape: tuple[int, int]) -> None:
    flat = np.full((3, *shape), 77, dtype=np.float32)
    np.testing.assert_allclose(pixels.gaussian_blur(flat, 2.0), 77, atol=1e-3)


@pytest.mark.parametrize("size", [(24, 24), (60, 80), (150, 130)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_resize_is_torchvisions(size: tuple[int, int], interleaved: bool) -> None:
    image = picture()
    laid_out = image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if interleaved else image
    theirs = tv.resize(image, list(size), antialias=True)
    assert (pixels.resize(laid_out, *size).int() - theirs.int()).abs().max() <= 1


def test_rounding_to_bytes_goes_to_the_nearest_level() -> None:
    values = np.array([0, 0.4, 0.6, 254.6, 255], dtype=np.float32).reshape(1, 1, 5)
    assert pixels.to_uint8(values).flatten().tolist() == [0, 0, 1, 255, 255]


def test_normalising_inverts_to_the_same_bytes() -> None:
    batch = torch.stack([picture(seed=1), picture(seed=2)])
    values = pixels.normalise(batch)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (pixels.IMAGENET_MEAN, pixels.IMAGENET_STD))
    assert values.dtype == torch.float32
    assert torch.equal(((values * std + mean) * 255).round().to(torch.uint8), batch)
