"""Images are segmented as a whole or through windows; one window is the whole, and a batch changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from selfdet.data.class_maps import MaskedImage
from selfdet.data.images import Quarantine
from selfdet.data.mask_labels import load_mask_labels
from selfdet.detectors.segmenter import Segmenter, enlarge, fcn
from selfdet.errors import UserError
from selfdet.evaluation.segmenting import (
    Sight,
    best_classes,
    score_segmentation,
    segment,
    sliding_scores,
    whole_scores,
    window_starts,
)
from selfdet.models.atrous import build_atrous_backbone


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return fcn(5, build_atrous_backbone("test_resnet")).eval()


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)


def test_windows_cover_everything_and_the_last_ends_with_the_image() -> None:
    for extent, side in ((100, 40), (64, 64), (65, 64), (30, 64), (41, 40)):
        starts = window_starts(extent, side)
        seen = {pixel for start in starts for pixel in range(start, min(extent, start + side))}
        assert seen == set(range(extent))
        assert starts[-1] == max(0, extent - side)
        assert len(set(starts)) == len(starts)


@torch.no_grad()
def test_one_window_is_the_whole_image(segmenter: Segmenter) -> None:
    for side in (64, 100):
        given = image(50, 64)
        torch.testing.assert_close(sliding_scores(segmenter, given, side), whole_scores(segmenter, [given])[0])


@torch.no_grad()
def test_sliding_is_the_mean_of_the_windows_that_see_a_pixel(segmenter: Segmenter) -> None:
    given = image(32, 70)
    windows = {left: whole_scores(segmenter, [given[..., left : left + 32]])[0] for left in window_starts(70, 32)}
    assert list(windows) == [0, 21, 38]
    scores = sliding_scores(segmenter, given, 32, batch_size=2)
    torch.testing.assert_close(scores[..., :21], windows[0][..., :21])
    torch.testing.assert_close(scores[..., 25], (windows[0][..., 25] + windows[21][..., 4]) / 2)
    torch.testing.assert_close(scores[..., 60], windows[38][..., 22])


def test_classes_have_the_size_of_the_image_and_do_not_depend_on_the_batch(
    segmenter: Segmenter, fabric: Fabric
) -> None:
    items = [MaskedImage(image(*size), torch.zeros(size, dtype=torch.uint8)) for size in ((40, 90), (80, 40), (41, 90))]
    for sliding in (False, True):
        found = [
            [classes for _, classes in segment(segmenter, items, Sight(64, 32, sliding, batch_size), fabric)]
            for batch_size in (1, 3)
        ]
        for one, other, item in zip(*found, items):
            assert one.shape == item.size
            assert one.dtype == torch.uint8
            assert (one == other).float().mean() > 0.999


def test_the_best_class_is_that_of_all_scores_however_many(segmenter: Segmenter) -> None:
    scores = torch.randn(19, 6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best_classes(scores, (40, 61)), enlarge(scores[None], (40, 61))[0].argmax(0).to(torch.uint8))


def test_scores_are_of_all_readable_images(segmenter: Segmenter, fabric: Fabric, scenes: Path, tmp_path: Path) -> None:
    labels = load_mask_labels(scenes / "val.json")
    quarantine = Quarantine(len(labels))
    scores = score_segmentation(segmenter, labels, Sight(96, 96), fabric, quarantine=quarantine)
    assert set(scores) == {"mIoU", "pixel_accuracy", "per_class", "images"}
    assert scores["images"] == 5
    assert list(scores["per_class"]) == labels.classes
    with pytest.raises(UserError, match="none of the 0 images"):
        score_segmentation(segmenter, labels.subset([]), Sight(96, 96), fabric)
