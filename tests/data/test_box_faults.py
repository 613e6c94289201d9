"""Every fault of a labelled box is reported, with the annotation and what is wrong with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from selfdet.data.box_faults import BOX_FAULTS, box_faults

PATHS = [Path("a.jpg"), Path("b.jpg")]


def faults(*annotations: dict[str, Any], sizes: dict[int, tuple[int, int]] | None = None) -> list[tuple[str, int, str]]:
    coco = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]}
    given = [{"id": place, "image_id": 1, "category_id": 3, **entry} for place, entry in enumerate(annotations)]
    found = box_faults({**coco, "annotations": given}, PATHS, {1: (40, 30)} if sizes is None else sizes)
    assert all(each.fault in BOX_FAULTS for each in found)
    return [(each.fault, each.annotation, each.detail) for each in found]


def test_each_fault_has_its_words() -> None:
    assert faults({"bbox": [0, 0, math.nan, 5]}, {"bbox": [1, 2]}, {}) == [
        ("not_finite", 0, "bbox is [0, 0, nan, 5]"),
        ("not_finite", 1, "bbox is [1, 2]"),
        ("not_finite", 2, "bbox is None"),
    ]
    assert faults({"bbox": [1, 1, 0, 5]}, {"bbox": [1, 1, 5, -2.5]}) == [
        ("degenerate", 0, "0×5 px"),
        ("degenerate", 1, "5×-2.5 px"),
    ]
    assert faults({"bbox": [50, 1, 5, 5]}, {"bbox": [-3, 20, 45, 12.5]}) == [
        ("out_of_image", 0, "wholly outside of 40×30 px"),
        ("out_of_image", 1, "3 px beyond the left, 2 px beyond the right, 2.5 px beyond the bottom of 40×30 px"),
    ]
    assert faults({"bbox": [1, 1, 5, 5], "category_id": 9}) == [("unknown_class", 0, "class 9 of 2")]
    assert faults({"bbox": [1, 1, 5, 5]}, {"bbox": [1.3, 1, 5, 5]}) == [("duplicate_box", 1, "as annotation 0")]


def test_what_rounding_explains_is_no_fault() -> None:
    assert faults({"bbox": [-1, -0.5, 41.5, 31]}, {"bbox": [0, 0, 41, 31]}) == []


def test_boxes_of_other_classes_images_and_crowds_are_no_duplicates() -> None:
    box = {"bbox": [1, 1, 5, 5]}
    assert faults(box, {**box, "category_id": 4}, {**box, "image_id": 2}, {**box, "iscrowd": 1}) == []


def test_without_a_size_nothing_is_outside() -> None:
    assert faults({"bbox": [500, 1, 5, 5]}, sizes={}) == []


def test_an_annotation_may_have_two_faults_and_any_image() -> None:
    found = faults({"bbox": [1, 1, 0, 5], "category_id": None}, {"bbox": [1, 1, 0, 5], "image_id": 77})
    assert [fault for fault, _, _ in found] == ["unknown_class", "degenerate", "degenerate"]


def test_faults_say_in_which_line_they_are() -> None:
    (found,) = faults({"bbox": [1, 1, 0, 5], "where": "labels/a.txt, line 3"})
    assert found[2] == "0×5 px (labels/a.txt, line 3)"
