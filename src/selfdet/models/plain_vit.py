"""Plain vision transformers, which keep one stride throughout: as a backbone of one map, and a pyramid made of it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional


class SimplePyramid(nn.Module):
    """Maps of several strides made of one: transposed convolutions make finer ones, pooling coarser ones.

    `channels` and `stride` are those of the map, `strides` (powers of two) those that are made, finest first; each step
    to a finer map halves the channels, and `channels` of the module are what comes of it. The map is normalised first,
    cell by cell, as the transformer's own last norm would: what a block leaves is of any size.

    Source: Li et al. 2022, Exploring Plain Vision Transformer Backbones for Object Detection, arXiv 2203.16527; the
    convolutions that make all levels equally wide are the pyramid's behind it.
    """

    def __init__(self, channels: int, stride: int, strides: Sequence[int]) -> None:
        super().__init__()
        steps = [round(math.log2(stride / wanted)) for wanted in strides]
        self.channels = [channels >> max(0, step) for step in steps]
        self.norm = LayerNorm2d(channels)
        self.levels = nn.ModuleList(_level(channels, step) for step in steps)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps "0", "1", … (B, C, H/stride, W/stride), finest first, of the last of `maps`."""
        last = self.norm(list(maps.values())[-1])
        return OrderedDict((str(number), level(last)) for number, level in enumerate(self.levels))


def _level(channels: int, step: int) -> nn.Module:
    """What makes a map `step` times finer by two of one, or coarser."""
    if step <= 0:
        return nn.MaxPool2d(2**-step) if step else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(step):
        layers += [LayerNorm2d(channels), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    return nn.Sequential(*layers)


def told_stride(patch: int) -> int:
    """The stride that a transformer with patches of so many pixels is used with: the nearest power of two."""
    return int(2 ** round(math.log2(patch)))


def fitted_images(x: Tensor, patch: int) -> Tensor:
    """Images (B, 3, H, W) so that each patch spans `told_stride(patch)` px of what was given: zeros at the right and
    bottom fill the last patch up, and the images are reduced or enlarged where a patch is no power of two."""
    stride = told_stride(patch)
    height, width = x.shape[-2:]
    rows, columns = -(-height // stride), -(-width // stride)
    if (rows * stride, columns * stride) != (height, width):
        x = functional.pad(x, (0, columns * stride - width, 0, rows * stride - height))
    return x if patch == stride else functional.interpolate(x, (rows * patch, columns * patch), mode="bilinear")
