"""The pixels of objects on pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

_COVER = 105  # of 255: the object stays visible through its colour


def paint_mask(picture: Image.Image, mask: np.ndarray, shade: tuple[int, int, int], line: int) -> None:
    """Lay a translucent `shade` (RGB) with an opaque outline over the picture, which is changed.

    `mask`: (H, W) bool, stretched to the picture's size; `line`: width in px of the outline, which runs inside.
    """
    if not mask.any():
        return
    if mask.shape != (picture.height, picture.width):
        stretched = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
        mask = np.asarray(stretched) > 127
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):  # too thin for the smaller picture
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = np.pad(mask[top:bottom, left:right], 1)
    core = inside.copy()
    for _ in range(line):
        core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    cover = np.where(core, _COVER, inside * 255)[1:-1, 1:-1].astype(np.uint8)
    picture.paste(shade, (int(left), int(top), int(right), int(bottom)), Image.fromarray(cover))
