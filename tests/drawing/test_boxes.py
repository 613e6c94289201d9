"""Pictures with boxes are readable at any size, and a class keeps its colour."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.data.masks import encode_masks
from selfdet.drawing.boxes import colour, draw_boxes, grid

GROUND = (90, 110, 90)


def ground(width: int = 200, height: int = 150) -> Image.Image:
    return Image.new("RGB", (width, height), GROUND)


def count(picture: Image.Image, shade: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == np.array(shade)).all(-1).sum())


def test_classes_have_distinct_colours_that_do_not_depend_on_the_other_classes() -> None:
    shades = [colour(i) for i in range(80)]
    assert shades == [colour(i) for i in range(80)]
    assert len(set(shades)) == 80
    for one, other in itertools.combinations(shades[:12], 2):
        assert sum(abs(a - b) for a, b in zip(one, other)) > 90
    assert colour(-1) == colour(-7) not in shades


def test_the_box_is_drawn_where_it_is_and_the_picture_given_stays_as_it_was() -> None:
    picture = ground()
    drawn = draw_boxes(picture, [[20, 40, 120, 110]])
    assert count(picture, GROUND) == 200 * 150
    found = np.argwhere((np.asarray(drawn) == np.array(colour(0))).all(-1))
    assert found.min(0).tolist() == [40, 20]
    assert found.max(0).tolist() == [109, 119]
    assert drawn.getpixel((70, 75)) == GROUND  # the object itself stays visible


def test_tensors_arrays_and_lists_draw_the_same() -> None:
    picture = ground()
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    boxes, labels, scores = [[20.0, 40.0, 120.0, 110.0], [5.0, 60.0, 50.0, 90.0]], [1, 0], [0.5, 0.75]
    names = ["cat", "dog"]
    expected = draw_boxes(picture, boxes, labels, scores, names=names)
    as_arrays = draw_boxes(picture, np.array(boxes), np.array(labels), np.array(scores), names=names)
    as_tensors = draw_boxes(tensor, torch.tensor(boxes), torch.tensor(labels), torch.tensor(scores), names=names)
    assert expected.tobytes() == as_arrays.tobytes() == as_tensors.tobytes()


def test_ids_colour_the_boxes_whatever_their_class_and_background_is_grey() -> None:
    drawn = draw_boxes(ground(), [[20, 40, 80, 100], [100, 40, 180, 100]], labels=[0, 0], ids=[5, -1])
    assert count(drawn, colour(5)) > 100
    assert count(drawn, colour(-1)) > 100
    assert count(drawn, colour(0)) == 0


@pytest.mark.parametrize("size", [(24, 24), (64, 48), (160, 120), (640, 480), (3000, 2000), (2000, 40), (30, 900)])
def test_any_size_of_picture_gets_visible_boxes_of_fitting_width(size: tuple[int, int]) -> None:
    width, height = size
    box = [[width * 0.3, height * 0.3, width * 0.7, height * 0.7]]
    drawn = draw_boxes(ground(width, height), box, [2], [0.5], names=["a", "b", "a very long name " * 9])
    assert drawn.size == size
    assert count(drawn, colour(2)) >= 2 * (round(0.4 * width) + round(0.4 * height)) - 4


def test_tags_stay_within_the_picture_at_every_corner() -> None:
    """The tag's whole plate is inside: on a larger canvas nothing of it would have been cut off."""
    for box in ([0, 0, 30, 30], [170, 0, 200, 30], [0, 120, 30, 150], [170, 120, 200, 150]):
        plain = draw_boxes(ground(), [box])
        tagged = draw_boxes(ground(), [box], [0], [0.5], names=["elephant"])
        changed = np.argwhere((np.asarray(plain) != np.asarray(tagged)).any(-1))
        assert changed.max(0)[1] - changed.min(0)[1] > 60  # as wide as the words, not cut by the edge
        assert changed.max(0)[0] - changed.min(0)[0] >= 10


def test_tags_do_not_lie_on_each_other() -> None:
    boxes = [[40 + i, 40 + i, 120, 110] for i in range(30)]
    drawn = draw_boxes(
        ground(), boxes, list(range(30)), [i / 30 for i in range(30)], names=[f"c{i}" for i in range(30)]
    )
    plates = {i: count(drawn, colour(i)) for i in range(30)}
    assert plates[29] > 200  # the best scored tag is there, whole


def test_boxes_outside_or_not_finite_are_left_off_and_reversed_or_empty_ones_do_no_harm() -> None:
    nan = float("nan")
    odd = [[-50, -50, -10, -10], [300, 10, 400, 50], [nan, 0, 10, 10]]
    assert draw_boxes(ground(), odd, [0, 0, 0]).tobytes() == ground().tobytes()
    draw_boxes(ground(), [[50, 50, 50, 50], [80, 80, 20, 20], [-10, -10, 500, 500]], [0, 1, 2])
    assert draw_boxes(ground(), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)).tobytes() == ground().tobytes()


def test_masks_are_laid_over_their_objects_in_the_colour_of_the_box() -> None:
    mask = np.zeros((2, 150, 200), bool)
    mask[0, 50:100, 30:110] = mask[1, 10:30, 150:190] = True
    boxes, labels = [[30, 50, 110, 100], [150, 10, 190, 30]], [3, 1]
    for masks in (mask, torch.from_numpy(mask), encode_masks(mask)):
        drawn = draw_boxes(ground(), boxes, labels, masks=masks)
        assert count(ground(), GROUND) == 200 * 150
        for (x, y), label in (((70, 75), 3), ((170, 20), 1)):
            inside = np.array(drawn.getpixel((x, y)), int)
            towards, far = np.array(colour(label)) - GROUND, inside - GROUND
            np.testing.assert_allclose(far / towards, 0.41, atol=0.03)
        assert drawn.getpixel((140, 75)) == GROUND
    with pytest.raises(ValueError, match="2 boxes but 1 masks"):
        draw_boxes(ground(), boxes, labels, masks=mask[:1])


def test_masks_follow_an_enlarged_picture_and_better_ones_lie_on_top() -> None:
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 12:36, 16:48] = masks[1, 12:36, 32:60] = True
    boxes = [[16, 12, 48, 36], [32, 12, 60, 36]]
    drawn = draw_boxes(ground(64, 48), boxes, [0, 1], [0.9, 0.4], long_side=640, masks=masks)
    assert drawn.size == (640, 480)
    only = draw_boxes(ground(64, 48), boxes[:1], [0], [0.9], long_side=640, masks=masks[:1])
    assert drawn.getpixel((240, 240)) == only.getpixel((240, 240)) != GROUND
    amber = np.array(drawn.getpixel((400, 240)), int)  # both: the better one's colour last
    assert np.abs(amber - colour(0)).sum() < np.abs(amber - colour(1)).sum()


def test_small_pictures_can_be_enlarged_with_their_boxes() -> None:
    drawn = draw_boxes(ground(64, 48), [[16, 12, 48, 36]], long_side=640)
    assert drawn.size == (640, 480)
    found = np.argwhere((np.asarray(drawn) == np.array(colour(0))).all(-1))
    assert found.min(0).tolist() == [120, 160]
    assert found.max(0).tolist() == [359, 479]


def test_names_may_be_missing_too_few_or_of_other_alphabets() -> None:
    for names in (None, [], ["одно"], {7: "łódź\n<script>"}):
        draw_boxes(ground(), [[10, 50, 100, 100]], [7], names=names)


def test_lengths_and_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 boxes but 2 labels"):
        draw_boxes(ground(), [[0, 0, 1, 1]], [0, 1])
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes(torch.zeros(3, 8, 8), [[0, 0, 1, 1]])


def test_grey_and_palette_pictures_are_drawn_in_colour() -> None:
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert count(draw_boxes(Image.new(mode, (100, 80)), [[10, 10, 90, 70]]), colour(0)) > 100


def test_a_contact_sheet_holds_every_picture_whole() -> None:
    shades = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    shapes = [(100, 50), (50, 100), (100, 100), (400, 200), (8, 8)]
    sheet = grid([Image.new("RGB", shape, shade) for shape, shade in zip(shapes, shades)], 2, cell=100)
    areas = [count(sheet, shade) for shade in shades]
    assert areas == [100 * 50, 50 * 100, 100 * 100, 100 * 50, 100 * 100]


def test_titles_stay_in_their_column() -> None:
    pictures = [Image.new("RGB", (100, 100), (255, 0, 0))] * 4
    short = grid(pictures, 2, ["a", "", "", ""], cell=100)
    long = grid(pictures, 2, ["a title far longer than its picture is wide", "", "", ""], cell=100)
    assert short.size == long.size
    right_half = (slice(None), slice(short.width // 2, None))
    assert (np.asarray(short)[right_half] == np.asarray(long)[right_half]).all()


def test_a_contact_sheet_of_nothing_or_with_missing_titles_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        grid([])
    with pytest.raises(ValueError, match="1 pictures but 2 titles"):
        grid([ground()], titles=["a", "b"])
