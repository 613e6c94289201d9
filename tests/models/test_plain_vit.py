"""Plain vision transformers as backbones: any size, any patch, and a pyramid of their one map."""

import pytest
import timm
import torch
from torch.nn import functional

from selfdet.models.backbones import build_backbone
from selfdet.models.fpn import BackboneWithFPN
from selfdet.models.plain_vit import SimplePyramid, fitted_images, told_stride

PATCH14 = "eva02_tiny_patch14_224"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", PATCH14])
@torch.no_grad()
def test_images_of_any_size_have_a_map_of_one_cell_for_each_sixteen_pixels(name):
    backbone = build_backbone(name).eval()
    assert (backbone.strides, backbone.channels) == ([16], [192])
    for size in ((64, 96), (33, 70), (224, 224), (16, 1)):
        assert {level: tuple(each.shape) for level, each in backbone(torch.randn(1, 3, *size)).items()} == {
            "0": (1, 192, -(-size[0] // 16), -(-size[1] // 16))
        }


@torch.no_grad()
def test_the_map_is_that_of_timms_own_network_with_resampled_positions():
    backbone = build_backbone("vit_tiny_patch16_224").eval()
    plain = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80)).eval()
    state = backbone.net.state_dict()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], (3, 5))
    assert plain.load_state_dict(state, strict=False).unexpected_keys == []
    x = torch.randn(1, 3, 48, 80)
    expected = plain.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    torch.testing.assert_close(backbone(x)["0"], expected)


@torch.no_grad()
def test_a_patch_of_fourteen_pixels_sees_sixteen_of_the_image():
    backbone = build_backbone(PATCH14).eval()
    x = torch.randn(1, 3, 64, 96)
    smaller = functional.interpolate(x, (56, 84), mode="bilinear")
    expected = backbone.net.forward_intermediates(smaller, intermediates_only=True)[-1]
    torch.testing.assert_close(backbone(x)["0"], expected)


def test_strides_are_the_powers_of_two_nearest_to_the_patches():
    assert [told_stride(patch) for patch in (8, 14, 16, 32)] == [8, 16, 16, 32]


def test_images_are_filled_up_with_zeros_at_the_right_and_bottom():
    x = torch.randn(1, 3, 20, 32)
    fitted = fitted_images(x, 16)
    assert fitted.shape[-2:] == (32, 32)
    assert fitted[:, :, :20].equal(x)
    assert not fitted[:, :, 20:].any()
    assert fitted_images(fitted, 16) is fitted


@pytest.mark.parametrize(("stride", "halvings"), [(8, [1, 0, 0, 0]), (16, [2, 1, 0, 0]), (32, [3, 2, 1, 0])])
def test_a_pyramid_of_one_map_halves_the_channels_of_each_finer_one(stride, halvings):
    pyramid = SimplePyramid(64, stride, [4, 8, 16, 32])
    maps = pyramid({"0": torch.randn(2, 64, 128 // stride, 96 // stride)})
    assert pyramid.channels == [64 >> times for times in halvings]
    for level, (channels, wanted) in enumerate(zip(pyramid.channels, (4, 8, 16, 32))):
        assert maps[str(level)].shape == (2, channels, 128 // wanted, 96 // wanted)


def test_how_large_the_transformers_values_are_does_not_matter_to_the_pyramid():
    pyramid, last = SimplePyramid(32, 16, [8, 16, 32]), torch.randn(1, 32, 4, 4)
    one, other = pyramid({"0": last}), pyramid({"0": 1000 * last})
    for level in one:
        torch.testing.assert_close(one[level], other[level], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("extra", "strides"), [("p6p7", [8, 16, 32, 64, 128]), ("pool", [4, 8, 16, 32, 64])])
@torch.no_grad()
def test_a_feature_pyramid_stands_on_it_and_keeps_the_transformers_names(extra, strides):
    backbone = build_backbone("vit_tiny_patch16_224")
    pyramid = BackboneWithFPN(backbone, 32, extra=extra).eval()
    assert pyramid.strides == strides
    maps = pyramid(torch.randn(1, 3, 128, 256))
    assert [each.shape for each in maps.values()] == [(1, 32, 128 // stride, 256 // stride) for stride in strides]
    fresh = [name for name in pyramid.state_dict() if not name.startswith("body.")]
    assert {name.split(".")[0] for name in fresh} == {"simple", "fpn"}
    assert {name.removeprefix("body.") for name in pyramid.state_dict() if name not in fresh} == set(
        timm.create_model("vit_tiny_patch16_224").state_dict()
    ) - {"norm.weight", "norm.bias", "head.weight", "head.bias"}
