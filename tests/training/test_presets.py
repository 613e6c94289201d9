"""Presets: under what is asked for, over what follows from the data, and never against the data."""

from __future__ import annotations

import pytest

from selfdet.training import defaults
from selfdet.training.defaults import Default
from selfdet.training.presets import LEAST, PRESETS, Preset

NAMES = tuple(PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_why_and_is_one_that_a_part_reads(name: str) -> None:
    read = {"run": {"backbone", "devices"}, "backbone": {"batch_size", "image_size", "epochs"}}
    read |= {part: {"batch_size", "at_most", "epochs"} for part in ("detector", "finetune")}
    for part, settings in PRESETS[name].items():  # type: ignore[index]
        assert settings.keys() <= read[part]
        assert all(setting.why for setting in settings.values())


def test_a_number_of_the_preset_replaces_a_usual_one_and_says_so() -> None:
    usual = Default(256, "default")
    assert Preset("laptop", "backbone").number("batch_size", usual).value == 64
    assert Preset("laptop", "backbone").number("batch_size", usual).reason.startswith("preset laptop: ")
    assert Preset(None, "backbone").number("batch_size", usual) == usual
    assert Preset("eight-gpu", "backbone").number("image_size", usual) == usual


def test_what_is_asked_for_stands_over_the_preset() -> None:
    said: list[str] = []
    assert Preset("laptop", "run").word("backbone", "resnet101", "resnet50", said) == "resnet101"
    assert said == []
    assert Preset("laptop", "run").word("backbone", None, "resnet50", said) == "resnet18"
    assert said == ["backbone: resnet18 (preset laptop: less than half the computation of resnet50)"]
    assert Preset("one-gpu", "run").word("backbone", None, "resnet50", said) == "resnet50"


def test_images_are_made_smaller_and_never_larger() -> None:
    preset = Preset("laptop", "finetune")
    assert preset.size(Default(800, "")).value == 400
    assert preset.size(Default(256, "theirs")) == Default(256, "theirs")
    assert Preset("one-gpu", "finetune").size(Default(800, "theirs")) == Default(800, "theirs")


@pytest.mark.parametrize(
    ("images", "steps"),
    [
        (100, 800),  # 800 epochs of one step: fewer than the least anyway
        (1_000, LEAST),
        (10_000, 100 * 156),
        (100_000, 100 * 1562),
    ],
)
def test_a_length_is_made_shorter_but_not_too_short(images: int, steps: int) -> None:
    chosen = Preset("laptop", "backbone").steps(defaults.contrastive_steps)(images, 64)
    assert chosen.value == steps
    assert chosen.reason.startswith("preset laptop: ") == (steps != 800)


def test_a_batch_of_the_preset_is_lowered_like_any_other() -> None:
    usual = Preset("one-gpu", "backbone").number("batch_size", Default(64, "default"))
    asked = {"batch": None, "epochs": None, "steps": None}
    many = defaults.length(1_000, usual_batch=usual, shares=1, usual_steps=defaults.contrastive_steps, **asked)
    few = defaults.length(100, usual_batch=usual, shares=1, usual_steps=defaults.contrastive_steps, **asked)
    assert many.batch == Default(256, "preset one-gpu: as published")
    assert few.batch.value == 100
