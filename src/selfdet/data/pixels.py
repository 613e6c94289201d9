"""What the views do to pixels: resize, colour jitter, greyscale, blur; and normalisation on the device.

The colour operations follow torchvision's definitions but keep fractions of grey levels between one operation and the
next, so a chain is rounded once. They work in place on float32 arrays (3, H, W) in 0…255, in NumPy: one thread, and the
same bits however many threads the process uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Turn `images` (…, 3, H, W) uint8 into float32: `mean` removed, divided by `std` (both of values in 0…1)."""
    shape = (3, 1, 1)
    shift = torch.tensor(mean, device=images.device).mul(255).reshape(shape)
    factor = torch.tensor(std, device=images.device).mul(255).reciprocal().reshape(shape)
    return images.float().sub(shift).mul_(factor)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize `image` (3, H, W) uint8 bilinearly, antialiased, half-pixel centres; returns (3, height, width) uint8."""
    resized: Tensor = torch.nn.functional.interpolate(
        image.unsqueeze(0), (height, width), mode="bilinear", antialias=True, align_corners=False
    ).squeeze(0)
    return resized


def luminance(image: Floats) -> Floats:
    """Return the grey value (H, W) of `image` (3, H, W): 0.2989 R + 0.587 G + 0.114 B."""
    grey = image[0] * np.float32(0.2989)
    grey += image[1] * np.float32(0.587)
    grey += image[2] * np.float32(0.114)
    return grey


def brighten(image: Floats, factor: float) -> None:
    """Scale `image` (3, H, W) in place by `factor`."""
    image *= np.float32(factor)
    np.clip(image, 0, 255, out=image)


def contrast(image: Floats, factor: float) -> None:
    """Scale the distance of `image` (3, H, W) from its mean grey value in place by `factor`."""
    mean = luminance(image).mean(dtype=np.float64)
    image *= np.float32(factor)
    image += np.float32((1 - factor) * mean)
    np.clip(image, 0, 255, out=image)


def saturate(image: Floats, factor: float) -> None:
    """Scale the distance of each pixel of `image` (3, H, W) from its own grey value in place by `factor`."""
    grey = luminance(image)
    grey *= np.float32(1 - factor)
    image *= np.float32(factor)
    image += grey
    np.clip(image, 0, 255, out=image)


def rotate_hue(image: Floats, turn: float) -> None:
    """Rotate the HSV hue of `image` (3, H, W) in place by `turn` (share of the circle); value and saturation stay.

    With r, g, b scaled to 0…1 between a pixel's least and greatest channel, its hue in sextants (red 0, green 2,
    blue 4) is ±(1 + g + b - r), positive where g ≥ b: selecting by the greatest channel would cost more than the rest.
    """
    red, green, blue = image
    least = np.minimum(np.minimum(red, green), blue)
    chroma = np.maximum(np.maximum(red, green), blue)
    chroma -= least
    side = green - blue
    hue = green + blue
    hue -= red
    hue -= least
    # A grey pixel has no hue; any will do, as it is multiplied by a chroma of 0.
    hue /= np.maximum(chroma, np.float32(1e-3))
    hue += np.float32(1)
    np.copysign(hue, side, out=hue)
    hue += np.float32(6 * turn)
    turns = np.floor(hue * np.float32(1 / 6))
    turns *= np.float32(6)
    hue -= turns
    for channel, opposite in zip(image, (3, 5, 1)):
        # Full within one sextant of the channel's own hue, nothing within one of the opposite hue, linear between.
        away = np.abs(hue - np.float32(opposite), out=channel)
        np.minimum(away, 6 - away, out=away)
        away -= np.float32(1)
        np.clip(away, 0, 1, out=away)
        away *= chroma
        away += least


def greyscale(image: Floats) -> None:
    """Replace the channels of `image` (3, H, W) in place by its grey value."""
    image[:] = luminance(image)


def gaussian_blur(image: Floats, sigma: float) -> Floats:
    """Blur `image` (3, H, W) with a Gaussian of `sigma` pixels, mirrored at the border; returns a new array.

    The kernel is cut at four sigma, where what is left out is less than a hundredth of a grey level.
    """
    radius = math.ceil(4 * sigma)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    for axis in (1, 2):
        image = _convolve(image, taps.astype(np.float32), axis)
    return image


def _convolve(image: Floats, taps: Floats, axis: int) -> Floats:
    """Convolve `image` along `axis` with the symmetric kernel whose centre and one side are `taps`."""
    radius, (_, height, width) = len(taps) - 1, image.shape
    # Reflection repeats when the kernel is longer than the image, which np.pad handles and slicing would not.
    margins = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
    padded = np.pad(image, margins, mode="reflect" if image.shape[axis] > 1 else "edge")
    result = np.empty_like(image)
    # A channel at a time stays in the cache, and as one row of numbers a shift along either axis is one long loop.
    step = width if axis == 1 else 1
    length = padded[0].size - 2 * radius * step
    total, pair = np.empty(padded[0].size, np.float32), np.empty(length, np.float32)
    for channel, out in zip(padded.reshape(3, -1), result):
        np.multiply(channel[radius * step :][:length], taps[0], out=total[:length])
        for distance in range(1, radius + 1):
            before, after = (radius - distance) * step, (radius + distance) * step
            np.add(channel[before:][:length], channel[after:][:length], out=pair)
            np.multiply(pair, taps[distance], out=pair)
            total[:length] += pair
        # Where a shift along rows ran over the end of one, it filled the columns that are left out here.
        out[:] = total.reshape(padded.shape[1:])[:height, :width]
    return result


def to_uint8(image: Floats) -> Tensor:
    """Round `image` (3, H, W) in 0…255 to a uint8 tensor."""
    return torch.from_numpy((image + np.float32(0.5)).astype(np.uint8))
