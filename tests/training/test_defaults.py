"""Defaults follow from the data's size and say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfdet.data.labels import ImageRecord
from selfdet.errors import UserError
from selfdet.training import defaults


def record(width: int, height: int) -> ImageRecord:
    return ImageRecord(1, Path("a.jpg"), width, height, np.zeros((0, 4)), np.zeros(0), [], [])


@pytest.mark.parametrize(
    ("images", "asked", "shares", "expected"),
    [
        (100, None, 1, (64, "default")),
        (100, 32, 1, (32, "given")),
        (20, None, 1, (20, "lowered from 64 for 20 images: a batch repeats none")),
        (21, 32, 4, (20, "lowered from 32 for 21 images: a batch repeats none")),
        (1, None, 1, (1, "lowered from 64 for 1 image: a batch repeats none")),
    ],
)
def test_a_batch_is_lowered_to_what_there_is_in_whole_shares(
    images: int, asked: int | None, shares: int, expected: tuple[int, str]
) -> None:
    assert defaults.batch_size(images, asked, 64, shares) == expected


def test_fewer_images_than_shares_are_refused() -> None:
    with pytest.raises(UserError, match="3 images can't be shared by 4"):
        defaults.batch_size(3, None, 64, shares=4)


@pytest.mark.parametrize(
    ("images", "length", "why"),
    [
        (20, 256, "20 images are few"),
        (256, 256, "views of the same image"),
        (2045, 1024, "2,045 images: a longer queue would hold views of the same image"),
        (118_287, 65_536, "118,287 images"),
        (1_281_167, 65_536, "as published"),
    ],
)
def test_a_queue_is_filled_by_the_images_once(images: int, length: int, why: str) -> None:
    chosen = defaults.queue_length(images)
    assert chosen.value == length
    assert why in chosen.reason


def test_the_learning_rate_grows_with_the_batch_and_spares_trained_weights() -> None:
    assert defaults.contrastive_lr(118_287, 256, pretrained=False).value == 0.3
    assert defaults.contrastive_lr(118_287, 64, pretrained=False).value == pytest.approx(0.075)
    assert defaults.contrastive_lr(118_287, 256, pretrained=True).value == 0.03
    assert defaults.contrastive_lr(1_281_167, 256, pretrained=False).value == 0.03
    assert defaults.detector_lr(8, "fcos").value == pytest.approx(0.005)
    assert defaults.detector_lr(8, "faster_rcnn").value == pytest.approx(0.01)


def test_steps_are_asked_for_as_steps_or_epochs() -> None:
    assert defaults.asked_steps(100, 8, None, None) is None
    assert defaults.asked_steps(100, 8, 3, None) == (36, "3 epochs of 12 steps")
    assert defaults.asked_steps(100, 8, 3, 50) == (50, "given")
    assert defaults.asked_steps(3, 8, 1, None) == (1, "1 epoch of 1 step")
    for epochs, steps, flag in ((0, None, "--epochs 0"), (None, -1, "--steps -1")):
        with pytest.raises(UserError, match=f"{flag} is not positive"):
            defaults.asked_steps(100, 8, epochs, steps)


def test_lengths_nobody_asked_for_are_the_published_ones_or_24_passes() -> None:
    assert defaults.contrastive_steps(118_287, 256).value == 800 * 462
    assert defaults.contrastive_steps(1_281_167, 256).value == 200 * 5004
    assert defaults.finetune_steps(10, 8).value == 400
    assert defaults.finetune_steps(1000, 8).value == 3000
    assert defaults.finetune_steps(118_287, 8).value == 12_000


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ([(640, 480)] * 3, 640),
        ([(333, 500), (500, 333)], 512),
        ([(4000, 3000)], 800),
        ([(64, 64)], 128),
        ([(0, 0)], 640),
    ],
)
def test_the_image_size_is_the_images_own_within_reason(sides: list[tuple[int, int]], size: int) -> None:
    assert defaults.detection_size([record(*side) for side in sides]).value == size


def test_a_default_is_printed_with_its_reason() -> None:
    assert defaults.Default(0.075, "0.3 × 64/256").line("learning rate") == "learning rate: 0.075 (0.3 × 64/256)"


def test_detr_is_trained_with_adamw_at_its_rate_and_warned_of() -> None:
    keys = ("fcos", "detr", "deformable_detr", "rtdetr")
    assert [defaults.detector_optimizer(key) for key in keys] == ["sgd", "adamw", "adamw", "adamw"]
    assert defaults.detector_lr(8, "detr") == defaults.detector_lr(8, "detr", "adamw")
    assert defaults.detector_lr(8, "detr").value == pytest.approx(5e-5)
    assert defaults.detector_lr(8, "detr", "sgd").value == pytest.approx(5e-3)
    assert defaults.slow_learner("fcos", 100, 400, 8) == defaults.slow_learner("detr", 118_287, 500_000, 16) == []
    assert (
        "from 3,200 views of 100 images expect far less of it than of fcos"
        in defaults.slow_learner("detr", 100, 400, 8)[0]
    )
