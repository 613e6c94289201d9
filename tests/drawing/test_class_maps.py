"""Class maps are drawn over their images: background as it is, the ignored grey, names below."""

from __future__ import annotations

import torch

from selfdet.drawing.boxes import colour
from selfdet.drawing.class_maps import draw_classes

NAMES = ["background", "sky", "hill"]


def test_classes_tint_their_pixels_and_the_background_stays() -> None:
    image = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    classes = torch.zeros(40, 60, dtype=torch.uint8)
    classes[:20, :30], classes[20:, 30:] = 1, 255
    picture = draw_classes(image, classes, NAMES)
    assert picture.size[0] == 60
    assert picture.size[1] > 40
    assert picture.getpixel((50, 5)) == (200, 200, 200)
    assert picture.getpixel((5, 5)) == tuple(round((200 + shade) / 2) for shade in colour(1))
    assert picture.getpixel((50, 35)) == (175, 175, 175)


def test_without_a_class_there_is_no_legend_and_small_images_are_enlarged() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    classes = torch.zeros(20, 30, dtype=torch.uint8)
    assert draw_classes(image, classes, NAMES, long_side=60).size == (60, 40)
    assert draw_classes(image, torch.full((20, 30), 255, dtype=torch.uint8), NAMES).size == (30, 20)


def test_many_names_take_several_lines() -> None:
    names = [f"a class with a long name {number}" for number in range(9)]
    classes = torch.arange(9, dtype=torch.uint8).repeat_interleave(10)[None].repeat(200, 1)
    image = torch.zeros(3, 200, 90, dtype=torch.uint8)
    one = draw_classes(image, torch.zeros_like(classes), names)
    assert draw_classes(image, classes, names).size[1] > one.size[1] + 5 * (one.size[1] - 200) / 2
