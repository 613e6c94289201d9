"""Part of rebuild.py: backbones, and the pyramids that stand on them."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

NORMS: dict[str | None, Callable[[int], nn.Module] | None] = {
    None: None,
    "bn": nn.BatchNorm2d,
    "gn": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
}


class Pyramid(nn.Module):
    """A body with a feature pyramid over its last maps, and the coarser levels that `extra` adds."""

    def __init__(
        self,
        body: nn.Module,
        maps: Callable[[Tensor], list[Tensor]],
        extra: ExtraFPNBlock,
        channels: list[int],
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.body = body
        self.maps = maps
        self.out_channels = config["fpn_channels"]
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra, NORMS[config["neck_norm"]])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(self.maps(x))))


class C4(nn.Module):
    """A ResNet up to its fourth stage."""

    def __init__(self, resnet: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.body(x)


class Res5(nn.Module):
    """A ResNet's fifth stage over regions, then their mean."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer4(regions).mean((2, 3))


class Composite(nn.Module):
    """Two copies of a network; the later stages of the assistant go into the earlier ones of the lead.

    `connections.S.I` leads from the assistant's stage S + I into the lead's stage S.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.swin = not hasattr(torchvision.models.resnet, name)
        self.lead = timm_features(name).model if self.swin else torchvision.models.get_model(name, weights=None)
        if not self.swin:
            del self.lead.avgpool, self.lead.fc
        self.assistant = copy.deepcopy(self.lead)
        with torch.no_grad():
            given = [each.shape[1] for each in self.run(self.lead.eval(), torch.zeros(1, 3, 224, 224), [])]
        taken = [self.lead.embed_dim if self.swin else self.lead.conv1.out_channels, *given[:-1]]
        self.connections: Any = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) for a in given[stage:])
            for stage, b in enumerate(taken)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.run(self.lead, x, self.run(self.assistant, x, []))

    def run(self, net: Any, x: Tensor, higher: list[Tensor]) -> list[Tensor]:
        """The maps of one copy, finest first; what enters its stages gets `higher`, the maps of the other."""
        if self.swin:
            x, stages = net.patch_embed(x).permute(0, 3, 1, 2), list(net.layers)
        else:
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        maps = []
        for number, stage in enumerate(stages):
            for connect, features in zip(self.connections[number], higher[number:]) if higher else ():
                x = x + functional.interpolate(connect(features), x.shape[2:])
            x = stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous() if self.swin else stage(x)
            maps.append(x)
        return maps


class Simple(nn.Module):
    """Maps of the strides `wanted`, made of a plain transformer's one: transposed convolutions and pooling."""

    def __init__(self, channels: int, stride: int, wanted: list[int]) -> None:
        super().__init__()
        from timm.layers import LayerNorm2d

        self.channels, levels = [], []
        for other in wanted:
            width, layers = channels, list[nn.Module]()
            if other > stride:
                layers.append(nn.MaxPool2d(other // stride))
            while other < stride:
                layers += [LayerNorm2d(width), nn.GELU()] if layers else []
                layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
                width, other = width // 2, 2 * other
            levels.append(nn.Sequential(*layers))
            self.channels.append(width)
        self.norm, self.levels = LayerNorm2d(channels), nn.ModuleList(levels)

    def forward(self, last: Tensor) -> list[Tensor]:
        last = self.norm(last)
        return [level(last) for level in self.levels]


def pyramid(config: dict[str, Any], extra: ExtraFPNBlock) -> Pyramid:
    """The backbone named in `config`, at random, with its pyramid."""
    name, channels = config["backbone"]["name"], config["backbone"]["channels"]
    levels = len(channels)
    if name.startswith("cb-"):
        pair = Composite(name.removeprefix("cb-"))
        return Pyramid(pair, lambda x: pair(x)[-levels:], extra, channels, config)
    if config["backbone"]["library"] == "torchvision":
        layers = {f"layer{5 - levels + level}": str(level) for level in range(levels)}
        body = IntermediateLayerGetter(torchvision.models.get_model(name, weights=None), layers)
        return Pyramid(body, lambda x: list(body(x).values()), extra, channels, config)
    getter = timm_features(name)
    net, indices = getter.model, list(getter.out_indices)[-levels:]

    def maps(x: Tensor) -> list[Tensor]:
        return net.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)

    if levels > 1:
        return Pyramid(net, maps, extra, channels, config)
    patch = getter.feature_info.reduction()[-1]
    stride = 2 ** round(math.log2(patch))  # each patch spans so many pixels of the image as given
    made = config["strides"][: -2 if isinstance(extra, LastLevelP6P7) else -1]
    simple = Simple(channels[0], stride, made)

    def one_map(x: Tensor) -> list[Tensor]:
        rows, columns = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        x = functional.pad(x, (0, columns * stride - x.shape[3], 0, rows * stride - x.shape[2]))
        if patch != stride:
            x = functional.interpolate(x, (rows * patch, columns * patch), mode="bilinear")
        return simple(maps(x)[0])

    whole = Pyramid(net, one_map, extra, simple.channels, config)
    whole.simple = simple
    return whole


def timm_features(name: str) -> Any:
    """timm's network by name, cut behind its last map, in the form that takes images of any size."""
    import timm

    options: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for option in options:
        try:
            return timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", **option)
        except TypeError:  # an option that this network doesn't know
            if not option:
                raise
