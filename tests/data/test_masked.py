"""Images and their class maps are scaled, cropped and mirrored together, the same way in every process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfdet.data.class_maps import MaskedImage
from selfdet.data.mask_labels import load_mask_labels
from selfdet.data.masked import MaskedDataset, collate_masked, crop_masked, flip_masked, resize_masked
from selfdet.errors import UserError


def halves(height: int = 20, width: int = 32) -> MaskedImage:
    """Black with class 0 at the left, white with class 1 at the right."""
    classes = torch.zeros(height, width, dtype=torch.uint8)
    classes[:, width // 2 :] = 1
    return MaskedImage((classes * 255)[None].repeat(3, 1, 1), classes)


@pytest.mark.parametrize("long_side", [16, 32, 64])
def test_classes_follow_the_pixels_of_a_resized_image(long_side: int) -> None:
    item = resize_masked(halves(), long_side)
    assert max(item.size) == long_side
    assert item.classes.shape == item.image.shape[-2:]
    assert ((item.image[0] > 127) == (item.classes == 1)).float().mean() > 0.95


def test_a_crop_is_a_piece_of_both_and_mirroring_mirrors_both() -> None:
    item = crop_masked(halves(), 16, (0.5, 0.99))
    assert item.size == (16, 16)
    assert item.classes.all()
    assert (item.image == 255).all()
    assert torch.equal(flip_masked(halves()).classes, 1 - halves().classes)
    assert torch.equal(flip_masked(halves()).image, 255 - halves().image)


def test_what_lies_outside_of_a_small_image_is_ignored() -> None:
    item = crop_masked(halves(), 40, (0.0, 0.5))
    assert item.size == (40, 40)
    known = item.classes != 255
    assert int(known.sum()) == 20 * 32
    assert known[:20, 4:36].all()
    assert item.image[:, 30, 0].tolist() == [124, 116, 104]


def test_every_choice_depends_on_seed_epoch_and_index_alone(scenes: Path) -> None:
    labels = load_mask_labels(scenes / "train.json")
    options = {"image_size": 96, "crop_size": 64, "scale_jitter": (0.5, 2.0)}
    one, other = (MaskedDataset(labels, seed=1, **options) for _ in range(2))  # type: ignore[arg-type]
    other.load(3, 0)
    assert torch.equal(one.load(5, 2).image, other.load(5, 2).image)
    assert torch.equal(one.load(5, 2).classes, other.load(5, 2).classes)
    assert not torch.equal(one.load(5, 2).image, one.load(5, 3).image)
    batch = collate_masked([one.load(index, 0) for index in range(4)])
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.classes.shape == (4, 64, 64)


def test_a_jitter_that_is_none_is_refused(scenes: Path) -> None:
    with pytest.raises(UserError, match="scale jitter"):
        MaskedDataset(
            load_mask_labels(scenes / "train.json"), image_size=96, crop_size=64, seed=0, scale_jitter=(2.0, 0.5)
        )
