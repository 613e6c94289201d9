"""The log-average miss rate, against cases computed by hand and a loop over every number of detections."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

import reference
from selfdet.evaluation.missrate import log_average, miss_rate_lines, miss_rates, visible_share

Box = list[float]
PERSON: Box = [10.0, 10.0, 40.0, 100.0]
OTHER: Box = [200.0, 10.0, 40.0, 100.0]
FAR: Box = [400.0, 300.0, 40.0, 100.0]


def labels(*objects: dict[str, Any], images: int = 10, classes: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)],
        "annotations": [{"id": place, "category_id": 1, "iscrowd": 0, **each} for place, each in enumerate(objects)],
    }


def person(image: int = 1, box: Box = PERSON, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "bbox": box, **more}


def found(image: int = 1, box: Box = PERSON, score: float = 0.9, kind: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": kind, "bbox": box, "score": score}


def test_all_found_is_none_missed_and_nothing_found_is_all_missed() -> None:
    coco = labels(person(1), person(2))
    assert miss_rates(coco, [found(1), found(2)])["all"] == pytest.approx(1e-10)
    assert miss_rates(coco, [])["all"] == pytest.approx(1.0)


def test_a_false_alarm_counts_from_the_rate_that_allows_it() -> None:
    # Ten images. One of two persons found first: half missed from the start. A false alarm (0.1 an image), then the
    # other person: below 0.1, at 0.01, 0.018, 0.032, 0.056, half is missed, at the other five references nothing.
    coco = labels(person(1), person(2))
    results = [found(1, score=0.9), found(3, FAR, 0.8), found(2, score=0.7)]
    expected = math.exp((4 * math.log(0.5) + 5 * math.log(1e-10)) / 9)
    assert miss_rates(coco, results)["all"] == pytest.approx(expected)


def test_a_false_alarm_above_everything_leaves_all_missed_where_none_is_allowed() -> None:
    # At 0.1 false alarms an image, the first detection alone, nothing can be found at the four lower references.
    coco = labels(person(1), person(2))
    results = [found(3, FAR, 0.9), found(1, score=0.8)]
    assert miss_rates(coco, results)["all"] == pytest.approx(math.exp(5 * math.log(0.5) / 9))


def test_a_person_found_twice_is_a_false_alarm() -> None:
    coco = labels(person(1), images=1)
    assert miss_rates(coco, [found(score=0.9), found(score=0.8)])["all"] == pytest.approx(1e-10)
    # The better scored of the two is the one that hits, so a false alarm comes first only where it is another box.
    assert miss_rates(coco, [found(1, FAR, 0.9), found(score=0.8)])["all"] == pytest.approx(
        math.exp(math.log(1e-10) / 9)
    )


@pytest.mark.parametrize("mark", ["iscrowd", "ignore"])
def test_detections_inside_an_ignored_region_count_neither_way(mark: str) -> None:
    region = person(1, [300.0, 200.0, 200.0, 200.0], **{mark: 1})
    many = [found(1, [310.0 + 10 * place, 210.0, 40.0, 100.0], 0.95) for place in range(5)]
    assert miss_rates(labels(person(1), region), [*many, found(score=0.5)])["all"] == pytest.approx(1e-10)
    # Half of its own area is needed, of the region it may be any share.
    outside = found(1, [281.0 - 40, 210.0, 100.0, 100.0], 0.95)
    alarm = miss_rates(labels(person(1), region), [outside, found(score=0.5)])["all"]
    assert alarm == pytest.approx(math.exp(5 * math.log(1e-10) / 9))


def test_an_object_is_preferred_to_an_ignored_region() -> None:
    coco = labels(person(1, [0.0, 0.0, 300.0, 300.0], iscrowd=1), person(1))
    assert miss_rates(coco, [found()])["all"] == pytest.approx(1e-10)


def test_each_detection_takes_the_free_object_that_it_overlaps_most() -> None:
    near = [PERSON[0] + 8, *PERSON[1:]]
    coco = labels(person(1, near), person(1), images=1)
    results = [found(score=0.9), found(score=0.8)]
    assert miss_rates(coco, results)["all"] == pytest.approx(1e-10)  # the second takes its neighbour


def test_the_subsets_are_told_by_height_and_by_what_is_visible() -> None:
    low = [10.0, 10.0, 30.0, 60.0]
    coco = labels(
        person(1, vis_ratio=1.0),  # reasonable
        person(2, low, vis_bbox=[10.0, 10.0, 30.0, 45.0]),  # 75 % visible, 60 px: reasonable and small
        person(3, vbox=[10.0, 10.0, 40.0, 40.0]),  # 40 % visible
        person(4, [10.0, 10.0, 10.0, 30.0], vis_ratio=1.0),  # too low for any but "all"
        person(5, vis_ratio=0.1),  # too little of it
    )
    # Found: the first and the third; whatever is ignored in a subset costs nothing there.
    rates = miss_rates(coco, [found(1), found(3)])
    assert rates["all"] == pytest.approx(3 / 5)
    assert rates["reasonable"] == pytest.approx(1 / 2)
    assert rates["small"] == pytest.approx(1.0)
    assert rates["heavy_occlusion"] == pytest.approx(1e-10)
    assert rates["not_measured"] == {}


def test_detections_far_too_low_for_a_subset_are_not_held_against_it() -> None:
    coco = labels(person(1, vis_ratio=1.0), images=1)
    low, lower = [400.0, 10.0, 20.0, 41.0], [400.0, 10.0, 20.0, 39.0]  # 50 px / 1.25 = 40 px
    assert miss_rates(coco, [found(1, lower, 0.95), found(score=0.5)])["reasonable"] == pytest.approx(1e-10)
    assert miss_rates(coco, [found(1, low, 0.95), found(score=0.5)])["reasonable"] > 1e-5


def test_a_subset_that_cannot_be_measured_is_none_and_says_why() -> None:
    rates = miss_rates(labels(person(1)), [found()])
    assert [rates[name] for name in ("reasonable", "small", "heavy_occlusion")] == [None] * 3
    assert rates["not_measured"]["small"] == "1 object without vis_ratio (0…1), vis_bbox or vbox"
    seen = miss_rates(labels(person(1, vis_ratio=1.0)), [found()])
    assert seen["reasonable"] == pytest.approx(1e-10)
    assert seen["not_measured"] == {"small": "no such object", "heavy_occlusion": "no such object"}
    nothing = miss_rates(labels(), [])
    assert nothing["all"] is None
    assert "nothing to measure" in miss_rate_lines(nothing)[0]


def test_classes_are_measured_each_for_itself_and_the_mean_is_over_those_with_objects() -> None:
    coco = labels(person(1), person(2, category_id=2), classes=3)
    rates = miss_rates(coco, [found(1), found(2, kind=1)])
    assert {name: figures["all"] for name, figures in rates["per_class"].items()} == {
        "class 1": pytest.approx(1e-10),
        "class 2": pytest.approx(1.0),
        "class 3": None,
    }
    assert rates["all"] == pytest.approx((1 + 1e-10) / 2)
    assert list(miss_rates(coco, [], classes=["class 2"])["per_class"]) == ["class 2"]
    assert "class 2" in "\n".join(miss_rate_lines(rates))


def test_other_images_boxes_without_area_and_scores_that_are_not_finite_are_left_out() -> None:
    coco = labels(person(1), person(2), person(1, [0.0, 0.0, 0.0, 50.0]))
    results = [found(1), found(3, FAR, math.nan), found(1, [5.0, 5.0, 0.0, 9.0], 0.99)]
    assert miss_rates(coco, results, image_ids=[1])["all"] == pytest.approx(1e-10)


def test_what_is_visible_is_a_share_or_a_box() -> None:
    assert visible_share({"bbox": PERSON, "vis_ratio": 0.3, "vis_bbox": PERSON}) == 0.3
    assert visible_share({"bbox": PERSON, "vis_bbox": [10.0, 10.0, 40.0, 25.0]}) == 0.25
    assert visible_share({"bbox": PERSON, "vbox": [0.0, 0.0, 400.0, 250.0]}) == 1.0
    assert visible_share({"bbox": PERSON}) is None


def test_what_is_no_share_and_no_box_does_not_say_what_is_visible() -> None:
    for share in (math.nan, math.inf, -0.5, 65, "0.5", None, True):
        assert visible_share({"bbox": PERSON, "vis_ratio": share}) is None
        assert visible_share({"bbox": PERSON, "vis_ratio": share, "vbox": [10.0, 10.0, 40.0, 50.0]}) == 0.5
    for box in ([0, 0, -40, -100], [0, 0, math.inf, 1], [0, 0, math.nan, 1], [40, 100], "box"):
        assert visible_share({"bbox": PERSON, "vis_bbox": box}) is None
    assert visible_share({"bbox": PERSON, "vis_ratio": 1.02}) == 1.0
    percent = miss_rates(labels(person(1, vis_ratio=65)), [found()])
    assert percent["reasonable"] is None
    assert "0…1" in percent["not_measured"]["reasonable"]


@pytest.mark.parametrize("seed", range(4))
def test_any_detections_have_the_rate_of_the_loop_version(seed: int) -> None:
    chance = random.Random(seed)

    def box() -> Box:
        return [chance.uniform(0, 60), chance.uniform(0, 60), chance.uniform(10, 50), chance.uniform(10, 50)]

    images = 30
    objects = [(chance.randint(1, images), box(), chance.random() < 0.2) for _ in range(60)]
    near = [(image, [value + chance.uniform(-4, 4) for value in own]) for image, own, _ in objects]
    boxes = [*near, *near[:10], *((chance.randint(1, images), box()) for _ in range(40))]
    results = [(image, own, chance.random()) for image, own in boxes]
    coco = labels(*(person(image, own, ignore=int(ignored)) for image, own, ignored in objects), images=images)
    rate = miss_rates(coco, [found(*each) for each in results])["all"]
    assert 0.05 < rate < 0.99
    assert rate == pytest.approx(reference.miss_rate(objects, results, images))


def test_a_curve_that_ends_early_keeps_its_last_rate() -> None:
    assert log_average(np.array([True, False, True, True]), 4, 100) == pytest.approx(0.25)
    assert log_average(np.zeros(0, bool), 4, 100) == 1.0
