"""Atrous backbones keep a stride of 8 with the weights of the ordinary network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfdet.errors import UserError
from selfdet.models.atrous import build_atrous_backbone
from selfdet.models.backbones import Backbone, build_backbone


def last_map(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.no_grad():
        return list(backbone.eval()(images).values())[-1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm/resnet18"])
def test_every_fourth_cell_of_an_atrous_resnet_is_a_cell_of_the_ordinary_one(name: str) -> None:
    torch.manual_seed(0)
    atrous, plain = build_atrous_backbone(name), build_backbone(name)
    plain.net.load_state_dict(atrous.net.state_dict())
    images = torch.randn(1, 3, 96, 64)
    ours, theirs = last_map(atrous, images), last_map(plain, images)
    assert ours.shape[-2:] == (96 // 8, 64 // 8)
    torch.testing.assert_close(ours[..., ::4, ::4], theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


def test_strides_are_those_of_the_maps() -> None:
    backbone = build_atrous_backbone("mobilenetv2_050")
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert backbone.strides == [64 // features.shape[-1] for features in maps.values()] == [4, 8, 8, 8]


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_a_backbone_that_cannot_keep_the_stride_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"backbone {name} cannot keep a stride of 8"):
        build_atrous_backbone(name)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown backbone 'resnet1'"):
        build_atrous_backbone("resnet1")
