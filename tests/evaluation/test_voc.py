"""Pascal VOC's AP, against cases computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from selfdet.evaluation.voc import voc_scores

BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [60.0, 60.0, 20.0, 20.0]


def labels(*objects: tuple[int, list[float], int], classes: int = 1) -> dict[str, Any]:
    """(image, box, difficult) of class 1."""
    return {
        "images": [{"id": number} for number in (1, 2, 3)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)],
        "annotations": [
            {"id": place, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": difficult}
            for place, (image, box, difficult) in enumerate(objects)
        ],
    }


def result(image: int, box: list[float], score: float, kind: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": kind, "bbox": box, "score": score}


def both(coco: dict[str, Any], results: list[dict[str, Any]], **options: Any) -> tuple[float | None, float | None]:
    scores = voc_scores(coco, results, **options)
    return scores["AP07"], scores["AP10"]


def test_everything_found_is_one_and_nothing_found_is_nought() -> None:
    coco = labels((1, BOX, 0), (2, BOX, 0))
    assert both(coco, [result(1, BOX, 0.9), result(2, BOX, 0.8)]) == (1.0, 1.0)
    assert both(coco, []) == (0.0, 0.0)


def test_right_wrong_right_by_hand() -> None:
    # Two objects; after the three detections precision is 1, 1/2, 2/3 and recall 1/2, 1/2, 1.
    coco = labels((1, BOX, 0), (2, BOX, 0))
    results = [result(1, BOX, 0.9), result(1, FAR, 0.8), result(2, BOX, 0.7)]
    # 2007: recalls 0 … 0.5 have 1, recalls 0.6 … 1 have 2/3. From 2010 on: half of the recall has 1, half 2/3.
    assert both(coco, results) == (pytest.approx((6 + 5 * 2 / 3) / 11), pytest.approx(0.5 + 0.5 * 2 / 3))


def test_a_tenth_of_the_objects_reaches_a_recall_of_a_tenth() -> None:
    # One object of ten found: recalls 0 and 0.1 of the eleven; the area is a tenth.
    coco = labels((1, BOX, 0), *[(2, [0.0, 25.0 * place, 20.0, 20.0], 0) for place in range(9)])
    assert both(coco, [result(1, BOX, 0.9)]) == (pytest.approx(2 / 11), pytest.approx(0.1))


def test_finding_an_object_twice_is_wrong_once() -> None:
    coco = labels((1, BOX, 0), (2, BOX, 0))
    results = [result(1, BOX, 0.9), result(1, [11.0, 10.0, 20.0, 20.0], 0.8), result(2, BOX, 0.7)]
    assert both(coco, results) == (pytest.approx((6 + 5 * 2 / 3) / 11), pytest.approx(0.5 + 0.5 * 2 / 3))


def test_difficult_objects_are_neither_right_nor_wrong() -> None:
    coco = labels((1, BOX, 0), (1, FAR, 1))
    # Found or missed, once or twice.
    for results in ([], [result(1, FAR, 0.95)], [result(1, FAR, 0.95), result(1, FAR, 0.94)]):
        assert both(coco, [result(1, BOX, 0.9), *results]) == (1.0, 1.0)
    assert both(labels((1, FAR, 1)), [result(1, FAR, 0.9)]) == (None, None)


def test_half_an_overlap_is_enough_and_less_is_not() -> None:
    coco = labels((1, [0.0, 0.0, 20.0, 10.0], 0))
    assert both(coco, [result(1, [0.0, 0.0, 10.0, 10.0], 0.9)]) == (1.0, 1.0)
    assert both(coco, [result(1, [0.0, 0.0, 9.9, 10.0], 0.9)]) == (0.0, 0.0)
    assert both(coco, [result(1, [0.0, 0.0, 10.0, 10.0], 0.9)], iou=0.6) == (0.0, 0.0)


def test_classes_without_objects_do_not_count() -> None:
    coco = labels((1, BOX, 0), classes=2)
    scores = voc_scores(coco, [result(1, BOX, 0.9), result(1, BOX, 0.9, kind=2)])
    assert scores["AP10"] == 1.0
    assert scores["per_class"] == {"class 1": {"AP07": 1.0, "AP10": 1.0}, "class 2": {"AP07": None, "AP10": None}}


def test_only_the_asked_images_count() -> None:
    coco = labels((1, BOX, 0), (2, BOX, 0))
    assert both(coco, [result(1, BOX, 0.9), result(2, FAR, 0.95)], image_ids=[1]) == (1.0, 1.0)
