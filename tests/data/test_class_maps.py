"""Class maps are read as the numbers they hold, and pictures that hold none are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.data.class_maps import present, read_class_map, voc_palette, write_class_map
from selfdet.data.images import UnreadableImage
from selfdet.errors import UserError

NUMBERS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def test_a_written_map_is_read_back_with_vocs_colours(tmp_path: Path) -> None:
    write_class_map(tmp_path / "a.png", torch.from_numpy(NUMBERS))
    assert torch.equal(read_class_map(tmp_path / "a.png", known=3), torch.from_numpy(NUMBERS))
    assert present(torch.from_numpy(NUMBERS)) == {0, 1, 2}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    assert [voc_palette()[number] for number in (0, 15, 255)] == [(0, 0, 0), (192, 128, 128), (224, 224, 192)]


@pytest.mark.parametrize("mode", ["P", "L", "I;16"])
def test_numbers_are_read_from_palettes_and_from_greys_of_any_depth(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(NUMBERS.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        picture.putpalette([0, 0, 0] * 256)
    picture.save(tmp_path / "a.png")
    assert torch.equal(read_class_map(tmp_path / "a.png", known=3), torch.from_numpy(NUMBERS))


def test_a_picture_of_colours_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colours.png")
    with pytest.raises(UserError, match=r"colours\.png is a picture of colours \(RGB\) without a palette"):
        read_class_map(tmp_path / "colours.png")


def test_an_unknown_number_is_named_with_its_file(tmp_path: Path) -> None:
    Image.fromarray(NUMBERS).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has the unknown class number 2"):
        read_class_map(tmp_path / "a.png", known=2)
    lookup = np.full(256, -1)
    lookup[[0, 2, 255]] = [1, 0, 255]
    with pytest.raises(UserError, match="unknown class number 1"):
        read_class_map(tmp_path / "a.png", lookup)


def test_a_damaged_or_absent_mask_is_an_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    for name in ("a.png", "b.png"):
        with pytest.raises(UnreadableImage):
            read_class_map(tmp_path / name)
