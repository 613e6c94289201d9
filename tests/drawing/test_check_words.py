"""A check speaks in sentences that follow from its counts."""

from __future__ import annotations

from typing import Any

from selfdet.drawing.check_words import advice, first, headline, level_words

COUNTS: dict[str, Any] = {
    "images": 100,
    "left_out": 0,
    "image_faults": {"cmyk": 0},
    "box_faults": {"degenerate": 0},
    "train_val_duplicates": 0,
    "labels_refused": None,
}
LABELLED: dict[str, Any] = {
    **COUNTS,
    "labelled_images": 90,
    "images_without_boxes": 0,
    "boxes": 1200,
    "crowds": 0,
    "classes": {"cat": 1000, "dog": 200},
    "unlabelled_images": 0,
}


def test_nothing_odd_is_said_to_be_so() -> None:
    assert headline(COUNTS) == "100 images; nothing is odd"
    assert list(advice(COUNTS)) == []
    assert headline(LABELLED) == "100 images; 1,200 boxes of 2 classes in 90 labelled images; nothing is odd"
    assert list(advice(LABELLED)) == ["boxes by class: cat 1,000, dog 200"]


def test_training_that_will_stop_is_foretold() -> None:
    assert list(advice({**COUNTS, "left_out": 5})) == ["5 images can't be trained on, 5.0% of all."]
    assert next(advice({**COUNTS, "left_out": 6})).endswith("More than 5 %, and training stops.")
    assert next(advice({**COUNTS, "images": 12, "left_out": 1})).endswith("of all.")


def test_classes_with_few_or_no_boxes_are_named() -> None:
    said = list(advice({**LABELLED, "classes": {"cat": 1000, "dog": 9, "emu": 0}}))
    assert said[0] == "boxes by class: cat 1,000, dog 9, emu 0"
    assert said[1].startswith("classes without a box: emu.")
    assert said[2].startswith("1 class has fewer than 10 boxes: dog.")


def test_boxes_too_small_for_the_detector_bring_advice() -> None:
    levels = [{"stride": 8, "boxes": 90}, {"stride": 16, "boxes": 10}, {"stride": 32, "boxes": 0}]
    found = {"detector": "fcos", "image_size": 320, "boxes": 100, "levels": levels, "under_finest_at_twice": 4}
    said = list(level_words({**found, "under_finest": 20}))
    assert said[0] == "boxes by level of fcos at --image-size 320: stride 8 90%, stride 16 10%, stride 32 0%"
    assert said[1] == "20.0% of the boxes are narrower or lower than a cell of the finest level, 8 px"
    assert "--image-size 640 would leave 4.0%, or an R-CNN" in said[2]
    assert said[3].startswith("  No box falls on the levels of stride 32:")
    assert len(list(level_words({**found, "under_finest": 5}))) == 3
    assert list(level_words({**found, "boxes": 0})) == []


def test_long_lists_are_cut() -> None:
    assert first(["a", "b", "c"]) == "a, b, c"
    assert first(["a", "b", "c", "d"]) == "a, b, c, …"
