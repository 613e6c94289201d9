"""Images that show the same are found whatever was done to them, and others are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tests.data.odd_images import pattern

from selfdet.data import duplicates
from selfdet.data.duplicates import duplicate_groups, perceptual_hashes
from selfdet.data.inspection import Inspection, Look
from selfdet.data.synthetic import make_scenes


def look_at(folder: Path) -> list[Look]:
    return [Inspection(place, path).run() for place, path in enumerate(sorted(folder.iterdir()))]


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        lambda picture: picture.resize((96, 72)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
        lambda picture: picture.convert("L"),
    ],
)
def test_a_changed_copy_is_found(tmp_path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    pattern(1, 128, 96).save(tmp_path / "a.png")
    pattern(2, 128, 96).save(tmp_path / "b.png")
    change(pattern(1, 128, 96)).save(tmp_path / "c.jpg", quality=70)
    assert duplicate_groups(look_at(tmp_path)) == [[0, 2]]


def test_a_picture_that_exif_turns_upright_is_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pattern(1).save(tmp_path / "a.png")
    pattern(1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=exif)
    assert duplicate_groups(look_at(tmp_path)) == [[0, 1]]


def test_different_pictures_are_not_the_same(tmp_path: Path) -> None:
    make_scenes(tmp_path, count=12, size=64)
    pattern(1).save(tmp_path / "images" / "x.png")
    pattern(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "images" / "y.png")
    assert duplicate_groups(look_at(tmp_path / "images")) == []


def test_of_pictures_of_one_colour_only_equal_files_are_the_same(tmp_path: Path) -> None:
    for name, shade in (("a", 10), ("b", 11), ("c", 10)):
        Image.new("RGB", (40, 30), (shade, shade, shade)).save(tmp_path / f"{name}.png")
    assert duplicate_groups(look_at(tmp_path)) == [[0, 2]]


def test_the_search_finds_every_pair_that_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for place in range(100):  # up to 8 bits away from another
        codes[200 + place] = codes[place]
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            codes[200 + place] ^= np.uint64(1 << int(bit))
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    found = {tuple(sorted(map(int, pair))) for left, right in duplicates._near(codes) for pair in zip(left, right)}
    expected = {
        (i, j) for i in range(300) for j in range(i + 1, 300) if int(codes[i] ^ codes[j]).bit_count() <= duplicates.BITS
    }
    assert found == expected
    assert len(expected) > 40


def test_hashes_do_not_see_how_light_a_picture_is() -> None:
    small = np.asarray(pattern(3).convert("L").resize((32, 32)))[None]
    darker = (small * 0.5 + 20).astype(np.uint8)
    assert int(perceptual_hashes(small)[0] ^ perceptual_hashes(darker)[0]).bit_count() <= 2
