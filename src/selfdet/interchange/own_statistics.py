"""Networks that were trained on pixels normalised by ImageNet's mean and deviation, for a library that normalises by
others: what differs goes into the first layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selfdet.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from selfdet.interchange.architectures import State
from selfdet.models.backbones import Backbone


def has_imagenets(backbone: Backbone) -> bool:
    """Whether the library normalises this network's pixels by ImageNet's mean and deviation."""
    return tuple(backbone.mean) == IMAGENET_MEAN and tuple(backbone.std) == IMAGENET_STD


def with_own_statistics(backbone: Backbone, state: Mapping[str, Tensor]) -> tuple[State, str]:
    """The tensors with a first layer that takes pixels as the library normalises them, and a line about it.

    Of x normalised by the library, x · std / std' + (mean − mean') / std' is what the network was trained on: a factor
    for each channel, and a bias. That is exact where the layer pads nothing, as a ViT's; where it pads, or has no
    bias, the tensors are given back as they are, and the line says so.
    """
    name, first = next((n, m) for n, m in backbone.net.named_modules() if isinstance(m, nn.Conv2d))
    if f"{name}.bias" not in state or first.padding not in (0, (0, 0)) or first.groups != 1:
        named = f"the mean {tuple(backbone.mean)}"
        return {**state}, f"taken as it is: {backbone.name} gets pixels normalised by {named}, not by ImageNet's"
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(each).view(shape) for each in (backbone.mean, backbone.std))
    true_mean, true_std = (torch.tensor(each).view(shape) for each in (IMAGENET_MEAN, IMAGENET_STD))
    weight = state[f"{name}.weight"].double()
    shift = (weight * (mean - true_mean) / true_std).sum((1, 2, 3))
    folded = {f"{name}.weight": weight * std / true_std, f"{name}.bias": state[f"{name}.bias"].double() + shift}
    line = f"{name} takes pixels as {backbone.library} normalises them now; the file's took them by ImageNet's mean"
    return {**state, **{each: value.float() for each, value in folded.items()}}, line
