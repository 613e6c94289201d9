"""One image file looked at: what is odd about it, what training makes of it, and how it looks."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from selfdet.data.images import (
    FORMATS,
    MAX_PIXELS,
    ORIENTATION_TAG,
    SIDEWAYS,
    UnreadableImage,
    as_rgb,
    orientation,
    read_bytes,
)

# What can be odd about an image, and what selfdet does with it.
IMAGE_FAULTS = {
    "missing": "named by labels or a list and not there: nothing trains until the file or the entry is mended",
    "empty": "no bytes: left out of training and counted; fetch the file again",
    "unreadable": "gives no pixels, or not of the size in its labels: left out of training and counted; mend or remove",
    "truncated": "begins well and ends early or damaged: left out of training and counted; fetch the file again",
    "huge": f"more than 64 megapixels or a side over 10,000 px: slow to read, and little is left of objects once "
    f"it is resized; over {MAX_PIXELS:,} pixels it is left out of training; cut it into tiles",
    "rotated": "turned or mirrored by its EXIF tag: it is turned upright, unless its labels have the size of the "
    "stored picture; other programs may not turn it",
    "sixteen_bit": "more than 8 bits a channel: of 16 bits the high byte is kept, so dark scientific images turn "
    "black; stretch them to 8 bits yourself",
    "cmyk": "inks in place of light: converted to RGB without the colour profile, so colours may shift",
    "palette": "colours from a table: converted to RGB, nothing is lost",
    "alpha": "transparent places: laid on black",
    "duplicate": "looks the same as one before it, or as one of the other split: remove it; an image in training and "
    "validation makes scores too good",
}
LARGE = 64_000_000  # pixels
LONG = 10_000  # pixels, of a side
SIDE = 32  # pixels, of the small grey picture that is left of an image
_ENDS_EARLY = ("truncated", "end of file", "unexpected end", "eof", "premature")


@dataclass(frozen=True)
class Look:
    """What was seen of an image.

    faults: fault → detail. usable: training can read it. width, height: upright, pixels; 0 where unknown.
    digest: of the file's bytes; small: (32, 32) uint8, grey, upright, of any shape of image; None without pixels.
    """

    image_id: int
    faults: dict[str, str] = field(default_factory=dict)
    usable: bool = False
    width: int = 0
    height: int = 0
    digest: bytes = b""
    small: np.ndarray | None = None


@dataclass(frozen=True)
class Inspection:
    """One image to look at; `size` is the (width, height) that its labels tell, if any."""

    image_id: int
    path: Path
    size: tuple[int, int] | None = None
    timeout: float = 0.0

    def run(self) -> Look:
        """Look at it; whatever is wrong with it is part of the answer."""
        try:
            content = read_bytes(self.path)
        except FileNotFoundError:
            return Look(self.image_id, {"missing": "no such file"})
        except UnreadableImage as error:
            return self.crashed(error.reason)
        except (OSError, MemoryError) as error:
            return self.crashed(getattr(error, "strerror", None) or type(error).__name__)
        if not content:
            return Look(self.image_id, {"empty": "0 bytes"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large or oddly written files, which is what we are here to say
            return self._look(content)

    def crashed(self, reason: str) -> Look:
        """The answer for a file that can't even be tried."""
        return Look(self.image_id, {"unreadable": reason})

    def _look(self, content: bytes) -> Look:
        faults: dict[str, str] = {}
        opened = False
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                opened = True
                faults = _header_faults(picture)
                turn = orientation(picture, self.size)
                size = picture.size[::-1] if turn in SIDEWAYS else picture.size
                if math.prod(size) > MAX_PIXELS:
                    return Look(self.image_id, faults, False, size[0], size[1])
                # JPEG is decoded at an eighth of its size: all of the file is read, and damage shows as it would.
                picture.draft(None, (8 * SIDE, 8 * SIDE))
                picture.load()
                small = _small(picture, turn)
        except Image.DecompressionBombError as error:
            return Look(self.image_id, {**faults, "huge": _one_line(str(error))})
        except Exception as error:  # PIL's decoders raise anything
            reason = _one_line(str(error)) or type(error).__name__
            early = opened and any(word in reason.lower() for word in _ENDS_EARLY)
            return Look(self.image_id, {**faults, "truncated" if early else "unreadable": reason})
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if self.size is not None and size != self.size:
            told = f"{size[0]}×{size[1]} pixels where its labels say {self.size[0]}×{self.size[1]}"
            return Look(self.image_id, {**faults, "unreadable": told}, False, size[0], size[1], digest, small)
        return Look(self.image_id, faults, True, size[0], size[1], digest, small)


def _header_faults(picture: Image.Image) -> dict[str, str]:
    """What is odd by the head of the file alone."""
    width, height = picture.size
    faults = {}
    if width * height > LARGE or max(width, height) > LONG:
        refused = ", too large to be read" if width * height > MAX_PIXELS else ""
        faults["huge"] = f"{width}×{height} pixels{refused}"
    if (told := orientation(picture, None)) != 1:
        faults["rotated"] = f"EXIF orientation {told}"
    if _is_deep(picture):
        faults["sixteen_bit"] = f"mode {picture.mode}"
    if picture.mode == "CMYK":
        faults["cmyk"] = "4 inks"
    if picture.mode in ("P", "PA"):
        faults["palette"] = "colours from a table"
    if picture.has_transparency_data:
        faults["alpha"] = f"mode {picture.mode}"
    return faults


def _is_deep(picture: Image.Image) -> bool:
    """Whether samples have more than 8 bits; PIL opens deep colour as if it were 8-bit, so the decoder is asked."""
    if picture.mode == "I" or picture.mode.startswith("I;"):
        return True
    for tile in getattr(picture, "tile", [])[:1]:
        for value in tile[3] if isinstance(tile[3], tuple) else (tile[3],):
            if isinstance(value, str) and ";16" in value:
                return True
            if picture.format == "PPM" and isinstance(value, int) and value > 255:
                return True
    return False


def _small(picture: Image.Image, turn: int) -> np.ndarray:
    small = as_rgb(picture).resize((SIDE, SIDE), Image.Resampling.BOX).convert("L")
    small.getexif()[ORIENTATION_TAG] = turn
    return np.asarray(ImageOps.exif_transpose(small))


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return "not an image that can be decoded" if "BytesIO" in words else words
