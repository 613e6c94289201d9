"""The pyramid: torchvision's names and outputs, true strides, honest refusals."""

import inspect

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import backbone_utils
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone
from selfdet.models.fpn import BackboneWithFPN, ExactP6P7


@pytest.mark.parametrize("extra", ["p6p7", "pool"])
def test_weights_load_strictly_into_torchvisions_class_and_give_its_maps(extra):
    ours = BackboneWithFPN(build_backbone("resnet18"), 32, extra=extra).eval()
    layers = [2, 3, 4] if extra == "p6p7" else [1, 2, 3, 4]
    stock = backbone_utils.BackboneWithFPN(
        resnet18(),
        {f"layer{layer}": str(key) for key, layer in enumerate(layers)},
        [32 * 2**layer for layer in layers],
        32,
        LastLevelP6P7(32, 32) if extra == "p6p7" else LastLevelMaxPool(),
    ).eval()
    stock.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected, maps = stock(x), ours(x)
    assert list(maps) == list(expected)
    for name, features in maps.items():
        torch.testing.assert_close(features, expected[name])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_every_level_has_the_stated_stride_and_width(name):
    pyramid = BackboneWithFPN(build_backbone(name), 32).eval()
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, 128, 256))
    assert pyramid.strides == [8, 16, 32, 64, 128]
    for features, stride in zip(maps.values(), pyramid.strides):
        assert features.shape == (1, 32, 128 // stride, 256 // stride)


@pytest.mark.parametrize(("norm", "kind"), [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm)])
def test_a_norm_follows_every_pyramid_convolution(norm, kind):
    pyramid = BackboneWithFPN(build_backbone("resnet18"), 32, norm=norm)
    assert sum(isinstance(module, kind) for module in pyramid.fpn.modules()) == 6


def test_the_body_is_the_backbones_own_net():
    backbone = build_backbone("resnet18")
    assert BackboneWithFPN(backbone, 32).body is backbone.net


def test_a_backbone_whose_strides_do_not_double_is_refused():
    with pytest.raises(UserError, match=r"crossvit_9_240 has strides \[12, 17\]"):
        BackboneWithFPN(build_backbone("crossvit_9_240"), 32)


def test_an_unknown_norm_is_refused():
    with pytest.raises(UserError, match="'ln'"):
        BackboneWithFPN(build_backbone("resnet18"), 32, norm="ln")


def test_gradients_of_the_coarsest_levels_are_exact_in_bfloat16_when_their_maps_are_single_cells():
    levels = ExactP6P7(8, 8)
    map_ = torch.randn(2, 8, 1, 1)
    gradients = []
    for low in (True, False):
        levels.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            maps, names = levels([map_], [map_], ["0"])
        assert names == ["0", "p6", "p7"]
        torch.stack([level.sum() for level in maps[1:]]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in levels.parameters()])
    for low_precision, exact in zip(*gradients):
        torch.testing.assert_close(low_precision, exact)


def test_torchvisions_coarsest_levels_are_made_of_the_coarsest_map_and_named_last():
    """What `ExactP6P7` rests on."""
    theirs = LastLevelP6P7(8, 8)
    assert list(inspect.signature(theirs.forward).parameters) == ["p", "c", "names"]
    finer, coarsest, unused = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4), torch.full((1, 8, 4, 4), torch.nan)
    maps, names = theirs([finer, coarsest], [unused], ["0", "1"])
    assert names == ["0", "1", "p6", "p7"]
    assert [tuple(level.shape[-2:]) for level in maps] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert maps[3].isfinite().all()
