"""Networks that were trained on other pixels than their library makes: what differs goes into the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfdet.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from selfdet.errors import UserError
from selfdet.interchange.architectures import State
from selfdet.interchange.detectron2_names import check_deviation
from selfdet.interchange.formats import tensors_in
from selfdet.models.backbones import Backbone

# What the first convolution expects: red, green, blue with ImageNet's mean and deviation, the same with blue first, or
# blue first in 0…255 with only the mean taken off, as Caffe's networks do.
Pixels = Literal["rgb", "bgr", "caffe"]
ANY_PIXELS = ("detectron2",)  # formats whose files are of networks for pixels of each kind


def check_pixels(path: Path, key: str, pixels: Pixels | None, content: Mapping[str, Any]) -> None:
    """Raises: UserError where a format's files don't say which pixels their networks take, and nobody else does, or
    where an old file says that they are others."""
    if key not in ANY_PIXELS:
        return
    if pixels is None:
        raise UserError(
            f"{path}: files of detectron2 don't say which pixels their networks take",
            "Add --pixels rgb (torchvision's, MoCo's converter's), bgr (ResNeXts) or caffe (detectron2's own, MSRA's)",
        )
    check_deviation(path, tensors_in(content, key)[0], pixels)


def with_own_pixels(backbone: Backbone, state: State, pixels: Pixels | None) -> tuple[State, str]:
    """The tensors with a first convolution that takes the library's pixels instead of `pixels`, and a line about it.

    Caffe's 255 x − 255 mean is 255 std times (x − mean) / std: a factor for each channel, exact at the borders too.
    Raises: UserError where that makes another network.
    """
    own = backbone.net.state_dict()
    first = next(name for name, value in own.items() if value.dim() == 4)
    if own[first].shape[1] != 3:
        raise UserError(f"--pixels {pixels}: {first} of {backbone.name} takes no colours", "Leave it out")
    weight = state[first].float().flip(1)
    if pixels == "bgr":
        return {**state, first: weight}, f"{first} takes red, green, blue now; the file's took blue first"
    if any(name.endswith("conv3.weight") for name in own):
        raise UserError(
            f"--pixels caffe: such a {backbone.name} has its strides in the 1×1 convolutions, torchvision's in the "
            "3×3: the same weights are another network",
            "Use weights that were trained with strides in the 3×3 convolutions, such as torchvision's or MoCo's",
        )
    if tuple(backbone.mean) != tuple(IMAGENET_MEAN):
        raise UserError(
            f"--pixels caffe: {backbone.name} takes off the mean {tuple(backbone.mean)}, Caffe's networks ImageNet's",
            "Use a network with ImageNet's mean",
        )
    factors = 255 * torch.tensor(backbone.std).view(1, 3, 1, 1)
    line = f"{first} takes red, green, blue in deviations now; the file's took blue first, in 0…255"
    return {**state, first: weight * factors}, line


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
