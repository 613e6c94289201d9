"""Which names are those of images."""

from __future__ import annotations

import os

IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)
MAX_BYTES = 2**31  # of a file; no image that is read has more


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def suffixes() -> str:
    """The endings, for a message."""
    return " ".join(sorted(IMAGE_SUFFIXES))
