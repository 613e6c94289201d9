"""The feature pyramid over a backbone, laid out as torchvision's detectors expect it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from selfdet.errors import UserError
from selfdet.models.backbones import Backbone
from selfdet.models.plain_vit import SimplePyramid

COARSEST = 32  # stride, px, of the last map that a pyramid stands on
NORMS: dict[str | None, Callable[[int], nn.Module] | None] = {
    None: None,
    "bn": nn.BatchNorm2d,
    "gn": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
}


@dataclass(frozen=True)
class Coarse:
    """How the two coarsest of five levels are made: of the `source`, the pyramid's coarsest map ("p5") or the
    backbone's ("c5"), with a `relu` before the last, and, in a pyramid with norms, with these or without (`normed`)."""

    source: str = "p5"
    relu: bool = True
    normed: bool = False


class ExactP6P7(LastLevelP6P7):
    """torchvision's two coarsest levels, in float32 under any autocast.

    On CPUs a strided bfloat16 convolution of a 1 × 1 map leaves the gradient of the weights it does not use
    uninitialised (seen with torch 2.14); images of 64 px and less end in such maps. The levels are small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        coarse: Coarse | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels)
        self.coarse = coarse or Coarse()
        if self.coarse.normed and norm is not None:
            for name in ("p6", "p7"):
                plain = getattr(self, name)
                plain.bias = None
                setattr(self, name, nn.Sequential(plain, norm(out_channels)))

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append the levels "p6" and "p7" to the pyramid's maps `p`; `c` are the backbone's."""
        last = (p if self.coarse.source == "p5" else c)[-1]
        exact = last if last.dtype == torch.float64 else last.float()
        with torch.autocast(exact.device.type, enabled=False):
            p6 = self.p6(exact)
            p7 = self.p7(functional.relu(p6) if self.coarse.relu else p6)
        return [*p, p6, p7], [*names, "p6", "p7"]


class BackboneWithFPN(nn.Module):
    """A backbone's `net` as `body` and a pyramid `fpn` over its last maps: `body.…`, `fpn.inner_blocks.…`.

    With `extra="p6p7"` (FCOS, RetinaNet) the pyramid stands on the last three maps and two strided convolutions add
    two coarser ones, as `coarse` says; with `extra="pool"` (R-CNN) on the last four and subsampling adds one. Of the
    one map of a plain transformer a `SimplePyramid`, `simple`, makes those first. `out_channels` is the width of every
    level and `strides` the pixels a cell of each level spans, finest first.
    Raises: UserError when the backbone has too few maps or their strides do not double.
    Source: Lin et al. 2017, Feature Pyramid Networks; keys as torchvision's class of this name.
    """

    def __init__(
        self,
        backbone: Backbone,
        out_channels: int = 256,
        norm: str | None = None,
        extra: str = "p6p7",
        coarse: Coarse | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError(f"pyramid norm {norm!r}", "expected bn, gn or none")
        levels = {"p6p7": 3, "pool": 4}[extra]
        strides, channels = backbone.strides[-levels:], backbone.channels[-levels:]
        self.simple: SimplePyramid | None = None
        if len(strides) == 1:
            strides = [COARSEST >> step for step in reversed(range(levels))]
            self.simple = SimplePyramid(channels[0], backbone.strides[0], strides)
            channels = self.simple.channels
        if len(strides) < levels or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise UserError(
                f"backbone {backbone.name} has strides {backbone.strides}; a pyramid needs {levels} that double",
                "choose a backbone with stages, such as resnet50, convnext_tiny or swin_tiny_patch4_window7_224",
            )
        self.maps = partial(_last_maps, backbone.maps, levels)
        self.body = backbone.net
        coarse = coarse or Coarse()
        of = out_channels if coarse.source == "p5" else channels[-1]
        added_levels = ExactP6P7(of, out_channels, coarse, NORMS[norm]) if extra == "p6p7" else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, added_levels, NORMS[norm])
        self.out_channels = out_channels
        added = 2 if extra == "p6p7" else 1
        self.strides = strides + [strides[-1] * 2**step for step in range(1, added + 1)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pyramid maps (B, out_channels, H/stride, W/stride), finest first, of normalised images x (B, 3, H, W)."""
        return self.neck(self.maps(self.body, x))

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pyramid maps (B, out_channels, H/stride, W/stride), finest first, of the backbone's."""
        return self.fpn(dict(maps) if self.simple is None else self.simple(maps))


def _last_maps(
    maps: Callable[[nn.Module, Tensor], dict[str, Tensor]], levels: int, net: nn.Module, x: Tensor
) -> dict[str, Tensor]:
    features = list(maps(net, x).values())[-levels:]
    return OrderedDict((str(level), feature) for level, feature in enumerate(features))
