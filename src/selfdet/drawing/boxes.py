"""Boxes and masks on pictures, and several pictures on one sheet."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfdet.data.masks import decode_mask
from selfdet.drawing.masks import paint_mask

if TYPE_CHECKING:
    from torch import Tensor

Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]

# Chosen by hand, strongly different in hue and lightness, the commonest confusions of colour-blind readers apart.
_FIRST: list[Colour] = [
    (255, 176, 0),  # amber
    (0, 158, 255),  # azure
    (236, 50, 90),  # crimson
    (0, 200, 120),  # green
    (180, 100, 255),  # violet
    (120, 235, 255),  # ice
    (255, 120, 200),  # pink
    (200, 240, 40),  # lime
    (200, 90, 20),  # rust
    (60, 80, 230),  # ultramarine
    (255, 225, 170),  # cream
    (0, 120, 90),  # pine
]
_GREY: Colour = (150, 150, 150)
_SHEET: Colour = (246, 246, 244)


def colour(index: int) -> Colour:
    """The colour of a class index or instance id (RGB, 0…255): the same in every picture; grey for negative ones."""
    if index < 0:
        return _GREY
    if index < len(_FIRST):
        return _FIRST[index]
    # The golden ratio spreads hues as evenly as possible however many there are; lightness tells neighbours apart.
    hue = (index * 0.61803398875) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, (0.45, 0.62, 0.76)[index % 3], (0.95, 0.7)[index // 3 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image | Tensor,
    boxes: Any,
    labels: Any = None,
    scores: Any = None,
    ids: Any = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    long_side: int | None = None,
    masks: Any = None,
) -> Image.Image:
    """A copy of the picture with boxes, and masks where they are known, drawn on it.

    `image`: PIL picture or (3, H, W) uint8 RGB tensor; `boxes`: (N, 4) xyxy in its pixels; `labels`: (N,) class
    indices; `scores`: (N,) 0…1; `ids`: (N,) instance ids; tensors, arrays or lists. `names`: the classes' names.
    `long_side`: scale picture and boxes to this long side in pixels first, so that the text on small pictures is sharp.
    `masks`: (N, H, W) bool, or N compressed RLE, of the picture as given; they are laid over it, translucent with an
    outline.

    A box and its mask have the colour of its id, else of its class (grey: none). A tag says name, #id and score; it
    stays within the picture, shortened if it must, and is left off where better scored tags leave no room. Boxes
    outside the picture or not finite are left off.
    Raises: ValueError when the lengths differ or the image is neither of the two kinds.
    """
    picture = _as_picture(image)
    rows = _numbers(boxes)
    columns = {"labels": labels, "scores": scores, "ids": ids}
    given = {name: _numbers(values) for name, values in columns.items() if values is not None}
    for name, values in {**given, **({} if masks is None else {"masks": masks})}.items():
        if len(values) != len(rows):
            raise ValueError(f"{len(rows)} boxes but {len(values)} {name}")
    if long_side is not None:
        scale = long_side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        factors = (size[0] / picture.width, size[1] / picture.height) * 2
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        rows = [[value * factor for value, factor in zip(row, factors)] for row in rows]

    draw = ImageDraw.Draw(picture)
    line = max(1 if max(picture.size) < 200 else 2, round(max(picture.size) / 230))
    font = _font(max(11, round(max(picture.size) / 36)))
    order = range(len(rows))
    if "scores" in given:  # best last, so that its lines lie on top
        order = sorted(order, key=lambda i: given["scores"][i])  # type: ignore[assignment]
    areas = {i: area for i in order if (area := _visible(rows[i], picture.size)) is not None}
    colours = given.get("ids") or given.get("labels") or [0] * len(rows)
    shades = {i: colour(int(colours[i])) for i in areas}
    if masks is not None:
        for i in areas:
            mask = decode_mask(masks[i]) if isinstance(masks[i], dict) else np.asarray(masks[i])
            paint_mask(picture, mask, shades[i], line)
        line = max(min(line, 2), line // 2)  # the mask's outline tells more
    tags: list[tuple[Area, Colour, str]] = []
    for i, area in areas.items():
        _outline(draw, area, shades[i], line)
        tags.append((area, shades[i], _words(i, given, names)))
    taken: list[Area] = []
    for area, shade, words in reversed(tags):
        _tag(draw, picture.size, area, shade, words, font, taken)
    return picture


def grid(
    images: Sequence[Image.Image | Tensor],
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    cell: int = 360,
) -> Image.Image:
    """A contact sheet: the pictures row by row, each scaled to fit `cell` × `cell` pixels, with its title above.

    `images`: PIL pictures or (3, H, W) uint8 RGB tensors; `columns`: None chooses a sheet about as wide as high;
    `titles`: one a picture ("" for none), shortened to the cell's width.
    Raises: ValueError without pictures, or with another number of titles than pictures.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(titles)} titles")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    font = _font(max(11, cell // 22))
    gap = max(4, cell // 36)
    pictures = [_fit(_as_picture(image), cell) for image in images]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    title_heights = [_line_height(font) + gap // 2 if titles and any(titles[i] for i in row) else 0 for row in rows]
    heights = [max(pictures[i].height for i in row) for row in rows]
    size = (columns * cell + (columns + 1) * gap, sum(heights) + sum(title_heights) + (len(rows) + 1) * gap)
    sheet = Image.new("RGB", size, _SHEET)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, title_height, height in zip(rows, title_heights, heights):
        for place, i in enumerate(row):
            left = gap + place * (cell + gap)
            if titles and titles[i]:
                draw.text((left, top), _shorten(titles[i], font, cell), fill=(30, 30, 30), font=font)
            sheet.paste(pictures[i], (left + (cell - pictures[i].width) // 2, top + title_height))
        top += title_height + height + gap
    return sheet


def _as_picture(image: Image.Image | Tensor) -> Image.Image:
    """A new RGB picture that may be drawn on."""
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(f"expected a picture or a (3, H, W) uint8 tensor, got {tuple(image.shape)} {image.dtype}")
    return Image.fromarray(image.detach().cpu().permute(1, 2, 0).contiguous().numpy())


def _numbers(values: Any) -> list[Any]:
    """A tensor, array or list as a list of Python numbers, or of rows of them."""
    return values.tolist() if hasattr(values, "tolist") else [_numbers(v) if _is_row(v) else v for v in values]


def _is_row(value: Any) -> bool:
    return hasattr(value, "__len__") or hasattr(value, "tolist")


def _visible(row: Sequence[float], size: tuple[int, int]) -> Area | None:
    """The box's pixels inside the picture (inclusive corners), or None."""
    if not all(map(math.isfinite, row)):
        return None
    left, top, right, bottom = (round(value) for value in row)
    right, bottom = right - 1, bottom - 1  # a box to x = 10 covers the pixels up to 9
    if right < left or bottom < top:
        right, bottom = max(left, right), max(top, bottom)
    if right < 0 or bottom < 0 or left >= size[0] or top >= size[1]:
        return None
    return max(left, 0), max(top, 0), min(right, size[0] - 1), min(bottom, size[1] - 1)


def _outline(draw: ImageDraw.ImageDraw, area: Area, shade: Colour, line: int) -> None:
    """A coloured frame along the box's inside with a thin dark edge, to be seen on any ground."""
    left, top, right, bottom = area
    line = max(1, min(line, (right - left) // 4, (bottom - top) // 4))
    edge = max(1, line // 3)
    draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=(0, 0, 0), width=edge)
    draw.rectangle(area, outline=shade, width=line)


def _words(i: int, given: Mapping[str, list[Any]], names: Sequence[str] | Mapping[int, str] | None) -> str:
    words = []
    if "labels" in given:
        label = int(given["labels"][i])
        known = names is not None and (label in names if isinstance(names, Mapping) else 0 <= label < len(names))
        words.append(" ".join(str(names[label]).split()) if names is not None and known else str(label))
    if "ids" in given and given["ids"][i] >= 0:
        words.append(f"#{int(given['ids'][i])}")
    if "scores" in given:
        words.append(f"{given['scores'][i]:.2f}")
    return " ".join(words)


def _tag(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    area: Area,
    shade: Colour,
    words: str,
    font: ImageFont.FreeTypeFont,
    taken: list[Area],
) -> None:
    """Write the words on a plate at the first free place: above the box, inside its top, below, inside its bottom."""
    pad = max(2, round(font.size / 6))
    words = _shorten(words, font, size[0] - 2 * pad)
    if not words:
        return
    width, height = math.ceil(font.getlength(words)) + 2 * pad, _line_height(font) + pad
    left = max(0, min(area[0], size[0] - width))
    for top in (area[1] - height, area[1], area[3] + 1, area[3] - height + 1):
        plate = (left, top, left + width - 1, top + height - 1)
        if top < 0 or plate[3] >= size[1] or any(_overlap(plate, other) for other in taken):
            continue
        taken.append(plate)
        draw.rectangle(plate, fill=shade)
        dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 125
        draw.text((left + pad, top + pad // 2), words, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
        return


def _overlap(one: Area, other: Area) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _shorten(words: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The words, cut with an ellipsis to fit `width` pixels; nothing where not even two letters fit."""
    if font.getlength(words) <= width:
        return words
    for length in range(len(words) - 1, 1, -1):
        shorter = words[:length].rstrip() + "…"
        if font.getlength(shorter) <= width:
            return shorter
    return ""


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and, unlike Pillow's own, has more letters than ASCII."""
    import matplotlib

    return ImageFont.truetype(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", size)
