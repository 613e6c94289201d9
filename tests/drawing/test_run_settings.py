"""Settings are sorted by who chose them."""

from __future__ import annotations

from selfdet.drawing.run_settings import setting_rows, shown

USUAL = {"images": ..., "lr": None, "steps": None, "weight_decay": 1e-4, "seed": 0, "clip": 0.0, "jitter": (0.8, 1.0)}


def test_what_somebody_chose_comes_first_then_what_followed_from_the_data() -> None:
    config = {
        "verb": "pretrain",
        "seed": 0,
        "lr": 0.3,
        "clip": 5.0,
        "images": "photos",
        "steps": 7,
        "jitter": [0.8, 1.0],
        "images_hash": "abc",
    }
    found = setting_rows(config, USUAL, {"steps": "given", "lr": "0.3 × 256/256"})
    assert found.chosen == [
        ["clip", "5", "usually 0"],
        ["images", "photos", "given"],
        ["steps", 7, "given"],
        ["lr", "0.3", "0.3 × 256/256"],
    ]
    assert found.as_usual == [["seed", 0], ["jitter", "0.8, 1"]]
    assert found.facts == [["images_hash", "abc"]]


def test_settings_within_others_are_named_once() -> None:
    config = {"method_options": {"lr": 0.1, "seed": 3}, "seed": 3, "own": {"deep": 1}}
    found = setting_rows(config, USUAL, {})
    assert found.chosen == [["seed", 3, "usually 0"], ["lr", "0.1", ""]]
    assert found.facts == [["own.deep", 1]]


def test_long_lists_are_shortened() -> None:
    assert str(shown([f"class {number}" for number in range(1000)])).endswith("class 11 and 988 more")
    assert shown([]) == "–"
    assert shown(True) == "yes"
