"""Class maps: a class number for every pixel, in a PNG with a palette or in greys; 255 is ignored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfdet.data.images import MAX_PIXELS, UnreadableImage
from selfdet.errors import UserError

IGNORED = 255
MOST = 255  # classes: numbers are bytes, of which one is taken
# PIL's modes of pictures whose pixels are numbers and no colours.
NUMBERED = ("P", "L", "1", "I", "I;16", "I;16B")


@dataclass
class MaskedImage:
    """An image and the class of each of its pixels.

    image: (3, H, W) uint8 RGB. classes: (H, W) uint8, 0…K−1, 255 where nothing is known or asked.
    """

    image: Tensor
    classes: Tensor
    path: str = ""
    image_id: int = -1

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[-2], self.image.shape[-1]


def read_class_map(path: Path, lookup: np.ndarray | None = None, known: int = MOST, hint: str = "") -> Tensor:
    """The numbers in a PNG, (H, W) uint8: those of its palette's entries, or of its greys.

    `lookup`: (256,) what each number stands for, −1 where it stands for nothing; without it numbers stand for
    themselves, below `known`, or 255.
    Raises: UnreadableImage; UserError for a picture of colours instead of numbers, and for an unknown number.
    """
    if not path.is_file():
        raise UnreadableImage(path, "no such file")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("PNG",)) as picture:
            warnings.simplefilter("ignore")
            if picture.width * picture.height > MAX_PIXELS:
                raise UnreadableImage(path, f"{picture.width}×{picture.height} pixels, which is too large")
            mode, numbers = picture.mode, np.array(picture)
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's decoders raise anything
        raise UnreadableImage(path, str(error) or type(error).__name__) from error
    if mode not in NUMBERED:
        raise UserError(
            f"mask {path} is a picture of colours ({mode}) without a palette, expected class numbers",
            "Save a PNG with a palette or in greys whose values are 0, 1, 2, … and 255 for ignored",
        )
    numbers = numbers.astype(np.int64)
    table = np.full(int(max(numbers.max(initial=0), IGNORED)) + 1, -1, np.int64)
    if lookup is None:
        table[:known] = np.arange(known)
        table[IGNORED] = IGNORED
    else:
        table[: len(lookup)] = lookup
    found = table[numbers]
    if (found < 0).any():
        unknown = int(numbers[found < 0].min())
        raise UserError(f"mask {path} has the unknown class number {unknown}", hint or f"Known are 0…{known - 1}, 255")
    return torch.from_numpy(found.astype(np.uint8))


def write_class_map(path: Path, classes: Tensor) -> None:
    """Write (H, W) uint8 class numbers as a PNG with Pascal VOC's palette, which any of its readers understands."""
    picture = Image.fromarray(classes.numpy(), mode="P")
    picture.putpalette([value for shade in voc_palette() for value in shade])
    picture.save(path)


def voc_palette() -> list[tuple[int, int, int]]:
    """Pascal VOC's 256 colours (RGB): the bits of a number, shared out over the channels, highest first."""
    palette = []
    for number in range(256):
        shade = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                shade[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        palette.append((shade[0], shade[1], shade[2]))
    return palette


def present(classes: Tensor) -> set[int]:
    """The classes that a map has pixels of, without the ignored."""
    return set(classes.unique().tolist()) - {IGNORED}


def paint_over(size: tuple[int, int], layers: Sequence[tuple[int, np.ndarray]]) -> Tensor:
    """A class map (H, W) of layers (class, (H, W) bool), each over those before it, on the class 0."""
    painted = np.zeros(size, np.uint8)
    for number, mask in layers:
        painted[mask] = number
    return torch.from_numpy(painted)
