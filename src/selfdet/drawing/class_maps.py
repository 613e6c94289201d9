"""Class maps laid over their images, with the names of the classes that are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from selfdet.data.class_maps import IGNORED, present
from selfdet.drawing.boxes import colour

BACKGROUND = "background"  # a class of this name is what nobody asked for: it is left as it is
COVER = 0.5  # share of the colour: the image stays visible through it
PAPER, INK, UNKNOWN = (246, 246, 244), (30, 30, 30), (150, 150, 150)
ROW = 1.6  # height of a line of the legend, of the text's


def draw_classes(image: Tensor, classes: Tensor, names: Sequence[str], long_side: int | None = None) -> Image.Image:
    """The image with the class of each pixel in colour, and a legend below.

    `image`: (3, H, W) uint8 RGB; `classes`: (H, W) uint8, 0…K−1, 255 for ignored, which is grey; `names`: of the K
    classes, each with the same colour in every picture. `long_side`: px that the image is scaled to.
    """
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    shades = np.zeros((256, 3), np.float32)
    cover = np.zeros((256, 1), np.float32)
    for number, name in enumerate(names):
        shades[number] = colour(number)
        cover[number] = 0.0 if name == BACKGROUND else COVER
    shades[IGNORED], cover[IGNORED] = UNKNOWN, COVER
    numbers = classes.numpy()
    painted = pixels * (1 - cover[numbers]) + shades[numbers] * cover[numbers]
    picture = Image.fromarray(painted.round().astype(np.uint8))
    if long_side is not None:
        scale = long_side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    shown = [(names[number], colour(number)) for number in sorted(present(classes)) if names[number] != BACKGROUND]
    return _with_legend(picture, shown)


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """The picture above a swatch and a name for each entry, in as many lines as they need."""
    if not entries:
        return picture
    size = max(10, max(picture.size) // 36)
    font = ImageFont.load_default(size)
    line, gap = round(ROW * size), size // 2
    places: list[tuple[int, int]] = []
    x = y = gap
    for name, _ in entries:
        width = round(size + gap + font.getlength(name) + 2 * gap)
        if x > gap and x + width > picture.width:
            x, y = gap, y + line
        places.append((x, y))
        x += width
    sheet = Image.new("RGB", (picture.width, picture.height + y + line), PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for (name, shade), (left, top) in zip(entries, places):
        top += picture.height
        draw.rectangle((left, top, left + size, top + size), fill=shade)
        draw.text((left + size + gap, top + size / 2), name, fill=INK, font=font, anchor="lm")
    return sheet
