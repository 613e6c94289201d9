"""What is said about a box-domain run: each fault is named, and a healthy run is not scolded."""

from __future__ import annotations

import pytest

from selfdet.training.box_health import box_words

HEALTHY = {
    "step": 100,
    "contrast": 6.9,
    "proposals_per_image": 20.0,
    "ids_per_image": 16.0,
    "positives_per_image": 120.0,
    "positives_per_id": 7.5,
    "ids_in_both": 0.95,
    "contrast_chance": 8.3,
    "contrast_floor": 6.3,
    "box_iou": 0.55,
    "feature_std": 0.8,
    "zero_distances": 0.02,
}
FIRST = {**HEALTHY, "step": 10, "contrast": 8.2, "box_iou": 0.2}


def said(**changes) -> str:
    return " ".join(box_words([FIRST, {**HEALTHY, **changes}]))


def test_a_healthy_run_is_told_without_advice() -> None:
    text = said()
    assert "Of 20.0 proposals an image 16.0 got places, 120.0 places an image and 7.5 a proposal." in text
    assert "95% of those" in text
    assert "6.90, between 8.30 of pure chance and a floor near 6.30: 70% of the way" in text
    assert "mean IoU of 0.55, 0.20 at the first look." in text
    for advice in ("Take", "take", "train for longer", "ower the", "look at"):
        assert advice not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids_per_image": 5.0}, "Most got none"),
        ({"ids_in_both": 0.4}, "differ less in size"),
        ({"contrast": 8.29}, "That is chance"),
        ({"feature_std": 0.03}, "all places look alike"),
        ({"box_iou": 0.21}, "have not become better"),
        ({"zero_distances": 0.6}, "60% of the distances"),
        ({"ids_per_image": 0.0, "positives_per_image": 0.0}, "none got a place"),
    ],
)
def test_each_fault_is_named(changes: dict[str, float], expected: str) -> None:
    assert expected in said(**changes)


def test_what_was_not_measured_is_not_spoken_of() -> None:
    assert box_words([]) == []
    assert box_words([{"step": 1, "loss": 2.0}]) == []
    counts = {"proposals_per_image": 3.0, "ids_per_image": 0.0, "positives_per_image": 0.0}
    assert len(box_words([counts])) == 1


def test_a_contrast_beyond_its_floor_is_all_of_the_way() -> None:
    assert "100% of the way" in said(contrast=6.0)


def test_a_classifier_that_ran_away_on_the_way_is_named() -> None:
    losses = (1.1, 3.5, 0.6)
    text = " ".join(box_words([{**HEALTHY, "objectness": loss} for loss in losses]))
    assert "The objectness loss began at 1.10 and rose to 3.50: the learning rate is too high" in text
    assert "objectness" not in " ".join(box_words([{**HEALTHY, "objectness": loss} for loss in (1.1, 0.7)]))
