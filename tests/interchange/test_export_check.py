"""The comparison that an export has to pass."""

import pytest
import torch

from selfdet.errors import UserError
from selfdet.interchange.export_backbone import write_backbone
from selfdet.interchange.export_check import (
    ExportMismatchError,
    check_backbone,
    check_finite,
    check_images,
    compare_detections,
)
from selfdet.models.backbones import build_backbone


def found(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = 200 * torch.rand(count, 2, generator=generator)
    return {
        "boxes": torch.cat([corners, corners + 10 + 90 * torch.rand(count, 2, generator=generator)], 1),
        "scores": torch.rand(count, generator=generator).sort(descending=True).values,
        "labels": torch.randint(0, 3, (count,), generator=generator),
    }


def changed(detections, **values):
    return {**{key: value.clone() for key, value in detections.items()}, **values}


def test_equal_detections_agree_exactly():
    assert compare_detections([found(), found(seed=1)], [found(), found(seed=1)]) == {
        "detections": 120,
        "box_difference": 0.0,
        "score_difference": 0.0,
    }


def with_masks(detections, seed=0):
    masks = torch.rand(len(detections["scores"]), 40, 50, generator=torch.Generator().manual_seed(seed)) > 0.5
    return {**detections, "masks": masks}


def test_masks_are_compared_pixel_by_pixel_whatever_their_axes():
    one = with_masks(found())
    other = changed(one, masks=one["masks"][:, None].clone())
    assert compare_detections([one], [other])["mask_difference"] == 0
    other["masks"][0, 0, 0, 0] ^= True
    assert 0 < compare_detections([one], [other])["mask_difference"] < 0.002


@pytest.mark.parametrize("change", [lambda m: ~m, lambda m: m.mT, lambda m: m.roll(1, 2), lambda m: m[:, 1:]])
def test_other_masks_are_a_mismatch(change):
    one = with_masks(found())
    with pytest.raises(ExportMismatchError, match=r"mask of at least 0\.95 IoU"):
        compare_detections([one], [changed(one, masks=change(one["masks"]))])


def test_two_empty_masks_are_the_same():
    one = with_masks(found())
    one["masks"][:] = False
    assert compare_detections([one], [one])["mask_difference"] == 0


def test_the_largest_differences_are_told():
    one = found()
    other = changed(one, boxes=one["boxes"] + 0.005, scores=one["scores"] + 5e-5)
    figures = compare_detections([one], [other])
    assert figures["box_difference"] == pytest.approx(0.005, abs=1e-4)
    assert figures["score_difference"] == pytest.approx(5e-5, abs=1e-6)


def test_the_order_of_near_ties_does_not_matter():
    one = found()
    one["scores"][1] = one["scores"][0] - 1e-7
    swapped = [1, 0, *range(2, 60)]
    assert compare_detections([one], [{key: value[swapped] for key, value in one.items()}])["detections"] == 60


def test_one_box_in_sixty_that_a_tie_suppressed_is_borne_and_three_are_not():
    one = found()
    compare_detections([one], [{key: value[1:] for key, value in one.items()}])
    with pytest.raises(ExportMismatchError):
        compare_detections([one], [{key: value[3:] for key, value in one.items()}])


@pytest.mark.parametrize("key", ["boxes", "scores", "labels"])
def test_a_difference_in_any_field_is_a_mismatch(key):
    one = found()
    by = {"boxes": 0.02, "scores": 2e-4, "labels": 1}[key]
    with pytest.raises(ExportMismatchError):
        compare_detections([one], [changed(one, **{key: one[key] + by})])


def test_finding_nothing_proves_nothing():
    with pytest.raises(ExportMismatchError, match="0 of 0"):
        compare_detections([found(0)], [found(0)])
    with pytest.raises(ExportMismatchError):
        compare_detections([found(5)], [found(0)])


def test_weights_that_are_not_finite_are_refused_by_name():
    with pytest.raises(UserError, match=r"run/detector\.safetensors: conv\.weight"):
        check_finite(
            {"n": torch.tensor(3), "conv.weight": torch.tensor([1.0, float("nan")])}, "run/detector.safetensors"
        )


@pytest.mark.parametrize("image_size", [64, 320, 801])
def test_one_image_is_reduced_and_one_enlarged_and_their_sides_are_odd(image_size):
    large, small = check_images(image_size)
    assert max(large.shape) > image_size > max(small.shape)
    assert large.shape[2] > large.shape[1]
    assert small.shape[1] > small.shape[2]
    assert all(side % 2 for image in (large, small) for side in image.shape[1:])
    assert large.dtype == torch.uint8
    assert large.float().std() > 10


@pytest.mark.slow
def test_a_transformer_with_patches_of_fourteen_pixels_is_compared_on_images_that_it_takes(tmp_path):
    backbone = build_backbone("eva02_tiny_patch14_224")
    write_backbone(tmp_path, backbone, {})
    figures = check_backbone(tmp_path / "load.py", tmp_path / "backbone.safetensors", backbone)
    assert figures["maps"] == 1
    assert figures["largest_difference"] < 1e-4
