"""Backbones whose last maps keep a stride of 8: what was strided is dilated instead, and no weight changes its name."""

from __future__ import annotations

import torch
from torch import nn

from selfdet.errors import UserError
from selfdet.models.backbones import Backbone, build_backbone, evaluating, timm_backbone, torchvision_resnets

STRIDE = 8
DILATED = {"layer3": 2, "layer4": 4}  # stages of a ResNet, and how far apart the taps of their convolutions get
PROBE = 64  # side, pixels, of the image that shows how large the maps are


def build_atrous_backbone(name: str, weights: str | None = None) -> Backbone:
    """A backbone as `build_backbone` gives it, with the last two stages dilated so that no map has a stride above 8.

    Its weights are those of the ordinary network; of a ResNet every fourth cell of the last map is the ordinary one's.
    `weights`: None or "random", or "library".

    Raises: UserError for a network that can't keep the stride, and as `build_backbone`.
    Source: DeepLab, arXiv 1606.00915, section 3.1; stride 8 by the last two stages as in DenseCL's benchmark.
    """
    if name in torchvision_resnets():
        backbone = build_backbone(name, weights)
        for stage, dilation in DILATED.items():
            dilate(backbone.net.get_submodule(stage), dilation)
    else:
        try:
            backbone = timm_backbone(name, weights == "library", STRIDE)
        except UserError:
            build_backbone(name, weights)  # what is wrong with the network itself is said first
            raise _refusal(name) from None
    backbone.strides = _strides(backbone)
    if backbone.strides[-1] != STRIDE:
        raise _refusal(name)
    return backbone


def dilate(stage: nn.Module, dilation: int) -> None:
    """Take the stride of 2 out of a stage: its convolutions get a `dilation`, the one that was strided half of it."""
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            reach = dilation // 2 if conv.stride != (1, 1) else dilation
            conv.stride = (1, 1)
            if conv.kernel_size != (1, 1):
                conv.dilation = conv.padding = (reach, reach)


@torch.no_grad()
def _strides(backbone: Backbone) -> list[int]:
    with evaluating(backbone):
        maps = backbone(torch.zeros(1, 3, PROBE, PROBE))
    return [PROBE // features.shape[-1] for features in maps.values()]


def _refusal(name: str) -> UserError:
    return UserError(
        f"backbone {name} cannot keep a stride of {STRIDE}, which segmentation needs",
        "Use a ResNet, or a timm network with output_stride, such as ConvNeXt, EfficientNet or MobileNet v2",
    )
