"""Backbones: true channels and strides, and weights under the library's own names."""

import copy

import pytest
import timm
import torch
import torchvision

from selfdet.errors import UserError
from selfdet.models import backbones
from selfdet.models.backbones import build_backbone

SMALL = ["resnet18", "resnext50_32x4d", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"]
SMALL += ["timm/resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", SMALL)
def test_maps_have_the_stated_channels_and_strides(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert list(maps) == [str(level) for level in range(len(backbone.strides))]
    assert len(backbone.channels) == len(backbone.strides) <= 4
    for features, channels, stride in zip(maps.values(), backbone.channels, backbone.strides):
        assert features.shape == (1, channels, 64 // stride, 96 // stride)


def test_a_vision_transformer_states_its_single_stride():
    assert set(build_backbone("vit_tiny_patch16_224").strides) == {16}


def test_a_resnet_is_torchvisions_own_without_its_classifier():
    torch.manual_seed(0)
    backbone = build_backbone("resnet18").eval()
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().eval()
    state = backbone.net.state_dict()
    assert set(whole.state_dict()) - set(state) == {"fc.weight", "fc.bias"}
    assert not set(state) - set(whole.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last = list(backbone(x).values())[-1]
        expected = whole.fc(last.mean((2, 3)))
        torch.testing.assert_close(whole(x), expected)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_weights_load_into_the_plain_timm_model(name):
    backbone = build_backbone(name).eval()
    plain = timm.create_model(name).eval()
    result = plain.load_state_dict(backbone.net.state_dict(), strict=False)
    assert not result.unexpected_keys
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain.forward_intermediates(x, indices=1, intermediates_only=True)[0]
        torch.testing.assert_close(list(backbone(x).values())[-1], expected)


def test_the_library_is_chosen_by_name_and_can_be_forced():
    ours, forced = build_backbone("resnet18"), build_backbone("timm/resnet18")
    assert (ours.library, forced.library) == ("torchvision", "timm")
    assert (ours.library_name, forced.library_name) == ("resnet18", "resnet18")
    assert build_backbone(forced.name).library == "timm"


def test_input_statistics_are_the_librarys():
    assert build_backbone("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    assert build_backbone("resnet18").std == (0.229, 0.224, 0.225)


def test_one_seed_gives_one_random_backbone():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_backbone("mobilenetv3_small_050", "random").net.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_copy_has_weights_of_its_own():
    backbone = build_backbone("mobilenetv3_small_050").eval()
    twin = copy.deepcopy(backbone)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = list(backbone(x).values())[-1]
        for parameter in twin.parameters():
            parameter.zero_()
        torch.testing.assert_close(list(backbone(x).values())[-1], before)
        assert not list(twin(x).values())[-1].any()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="resnet5O") as refused:
        build_backbone("resnet5O")
    assert refused.value.hint.count("resnet50,") == 1


def test_a_network_without_maps_is_refused(monkeypatch):
    def without(*args, **options):
        raise AttributeError("no forward_intermediates")

    monkeypatch.setattr(timm, "create_model", without)
    with pytest.raises(UserError, match=r"convnext_atto.*feature maps.*no forward_intermediates"):
        build_backbone("convnext_atto")


def test_weights_that_cannot_be_fetched_are_a_user_error(monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(UserError, match=r"resnet18.*no route to host"):
        build_backbone("resnet18", "library")


def test_library_weights_are_asked_for_only_on_request(monkeypatch):
    asked = []
    real = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: (asked.append(weights), real(name))[1])
    for weights in (None, "random", "library"):
        build_backbone("resnet18", weights)
    assert asked == [None, None, "DEFAULT"]


def test_a_file_name_is_no_kind_of_weights():
    with pytest.raises(UserError, match=r"w\.pth"):
        build_backbone("resnet18", "w.pth")


def test_images_below_the_coarsest_stride_are_refused():
    backbone = build_backbone("resnet18")
    backbone.check_image_size(32)
    with pytest.raises(UserError, match="--image-size 31"):
        backbone.check_image_size(31)


def test_only_resnets_come_from_torchvision():
    names = backbones.torchvision_resnets()
    assert {"resnet50", "resnext50_32x4d", "wide_resnet50_2"} <= set(names)
    assert all(hasattr(torchvision.models, name) and "resn" in name for name in names)


def test_a_network_tied_to_its_size_is_refused_at_another():
    backbone = build_backbone("hiera_tiny_224")
    backbone.check_image_size(224)
    with pytest.raises(UserError, match="hiera_tiny_224 cannot take 256 × 256 px"):
        backbone.check_image_size(256)
    with pytest.raises(UserError, match="cannot take 224 × 256 px"):
        backbone.check_image_size(224, any_shape=True)
    assert backbone.training


def test_a_network_of_whole_patches_is_refused_images_that_are_not_filled_up():
    backbone = build_backbone("swin_tiny_patch4_window7_224")
    backbone.check_image_size(96)
    backbone.check_image_size(98, any_shape=True)
    with pytest.raises(UserError, match=r"--image-size 98: .* cannot take 98 × 98 px .* a multiple of 32"):
        backbone.check_image_size(98)
