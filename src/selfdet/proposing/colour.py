"""Pixels for the search: smoothed, in a colour space, and as histogram bins of colour and texture."""

from __future__ import annotations

import math

import numpy as np

from selfdet.proposing.compiling import kernel

COLOUR_BINS = 25
# A pixel's texture is the octant of its gradient's direction and how steep it is.
DIRECTIONS = 8
STEEPNESSES = 4
TEXTURE_BINS = DIRECTIONS * STEEPNESSES
LAB, HSV = 0, 1
SPACES = {"lab": LAB, "hsv": HSV}


@kernel
def smooth(pixels, sigma):  # type: ignore[no-untyped-def]
    """Gaussian smoothing: (H, W, 3) uint8 → (H, W, 3) float32, 0…255; edge pixels are repeated outwards."""
    height, width, channels = pixels.shape
    radius = math.ceil(3 * sigma)
    taps = np.empty(2 * radius + 1, np.float32)
    for i in range(2 * radius + 1):
        taps[i] = math.exp(-0.5 * (i - radius) ** 2 / max(sigma, 1e-3) ** 2)
    taps /= taps.sum()
    half = np.zeros((height, width, channels), np.float32)
    out = np.zeros((height, width, channels), np.float32)
    for y in range(height):
        for i in range(2 * radius + 1):
            row = min(max(y + i - radius, 0), height - 1)
            for x in range(width):
                for c in range(channels):
                    half[y, x, c] += taps[i] * pixels[row, x, c]
    for y in range(height):
        for x in range(width):
            for i in range(2 * radius + 1):
                column = min(max(x + i - radius, 0), width - 1)
                for c in range(channels):
                    out[y, x, c] += taps[i] * half[y, column, c]
    return out


@kernel
def convert(rgb, space):  # type: ignore[no-untyped-def]
    """Colours in another space: (H, W, 3) float32 RGB 0…255 → (H, W, 3) float32, 0…255.

    LAB: CIE L*a*b* of sRGB under D65, L stretched, a and b shifted by 128. HSV: saturation as a point of the disc
    of hues (two coordinates) and value, so that neither red nor grey is a seam.
    """
    height, width, _ = rgb.shape
    out = np.empty((height, width, 3), np.float32)
    linear = np.empty(3, np.float32)
    for y in range(height):
        for x in range(width):
            if space == LAB:
                for c in range(3):
                    value = rgb[y, x, c] / np.float32(255)
                    if value > 0.04045:
                        linear[c] = ((value + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
                    else:
                        linear[c] = value / np.float32(12.92)
                red, green, blue = linear
                one = _cube_root((0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.950456)
                two = _cube_root(0.212671 * red + 0.715160 * green + 0.072169 * blue)
                three = _cube_root((0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.088754)
                out[y, x, 0] = (116 * two - 16) * 2.55
                out[y, x, 1] = 500 * (one - two) + 128
                out[y, x, 2] = 200 * (two - three) + 128
            else:
                red, green, blue = rgb[y, x]
                high, low = max(red, green, blue), min(red, green, blue)
                # The hexagon of hues in the plane: its corners are red, yellow, green, cyan, blue and magenta.
                across = np.float32(0.8660254) * (green - blue)
                along = red - np.float32(0.5) * (green + blue)
                length = math.sqrt(across * across + along * along)
                share = (high - low) / max(high, np.float32(1)) / max(length, np.float32(1e-6)) * np.float32(127.5)
                out[y, x, 0] = along * share + 127.5
                out[y, x, 1] = across * share + 127.5
                out[y, x, 2] = high
    return out


@kernel
def _cube_root(value):  # type: ignore[no-untyped-def]
    return value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116


@kernel
def bins(image):  # type: ignore[no-untyped-def]
    """Each pixel's place in the histograms: (H, W, 3) float32 0…255 → (H, W, 6) uint8, 3 of colour, 3 of texture."""
    height, width, _ = image.shape
    out = np.empty((height, width, 6), np.uint8)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            before, after = max(x - 1, 0), min(x + 1, width - 1)
            for c in range(3):
                out[y, x, c] = min(max(int(image[y, x, c] * (COLOUR_BINS / 256)), 0), COLOUR_BINS - 1)
                across = image[y, after, c] - image[y, before, c]
                down = image[below, x, c] - image[above, x, c]
                direction = (across > 0) + 2 * (down > 0) + 4 * (abs(across) > abs(down))
                square = across * across + down * down
                steepness = (square >= 4**2) + (square >= 12**2) + (square >= 36**2)
                out[y, x, 3 + c] = direction * STEEPNESSES + steepness
    return out
