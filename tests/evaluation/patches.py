"""A network whose features are the pixels themselves, and images in which no two cells are alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfdet.models.backbones import Backbone

STRIDE = 16


class Pixels(nn.Module):
    """Each cell's feature is the cell itself; the parameter only says on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"0": functional.pixel_unshuffle(x, STRIDE)}


def pixels() -> Backbone:
    """A backbone that sees what is there: equal cells are equal, others are not."""
    call: Callable[[nn.Module, Tensor], dict[str, Tensor]] = lambda net, x: net(x)  # noqa: E731
    return Backbone("pixels", "torchvision", Pixels(), call, [3 * STRIDE * STRIDE], [STRIDE])


def noise(height: int, width: int) -> Tensor:
    """An image (3, H, W) uint8."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
