"""Image files with every fault that a check reports, and sound ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pattern(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """A picture unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def deep_png(file: Path, seed: int) -> None:
    """16-bit grey."""
    grey = np.asarray(pattern(seed).convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(file)


def write_odd(folder: Path) -> dict[str, str]:
    """One image of each fault but `missing`; returns fault → file name. `sound.jpg` has none."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern(0).save(folder / "sound.jpg", quality=95)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "unreadable.jpg").write_bytes(b"this is no image")
    whole = io.BytesIO()
    pattern(1, 640, 480).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    pattern(2).convert("CMYK").save(folder / "cmyk.jpg")
    deep_png(folder / "sixteen_bit.png", 3)
    pattern(4).quantize(16).save(folder / "palette.png")
    clear = pattern(5).convert("RGBA")
    clear.putalpha(128)
    clear.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    pattern(6).save(folder / "rotated.jpg", exif=exif)
    pattern(7, 20_000, 20).save(folder / "huge.png")
    pattern(0, 128, 96).save(folder / "zz_duplicate.jpg", quality=60)
    Image.new("RGB", (1, 1)).save(folder / "one_pixel.png")
    faults = ("empty", "unreadable", "truncated", "cmyk", "rotated")
    names = {fault: f"{fault}.jpg" for fault in faults}
    names |= {fault: f"{fault}.png" for fault in ("sixteen_bit", "palette", "alpha", "huge")}
    return {**names, "duplicate": "zz_duplicate.jpg"}
