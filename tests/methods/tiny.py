"""A backbone and view batches small enough for a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfdet.data.views import ViewBatch
from selfdet.methods.base import Method
from selfdet.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone


class TinyNet(nn.Module):
    """Two strided convolutions with batch norm: maps of stride 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        return {"0": first, "1": self.second(first)}


def tiny_backbone(seed: int = 0) -> Backbone:
    """A `Backbone` of two maps, (B, 8, H/4, W/4) and (B, 16, H/8, W/8)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(
            "tiny", "torchvision", TinyNet(), lambda net, x: net(x), [8, 16], [4, 8], IMAGENET_MEAN, IMAGENET_STD
        )


def view_batch(count: int, size: int = 32, seed: int = 0) -> ViewBatch:
    """Pairs of unrelated random views whose affines say that both show the whole source image."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    affine = torch.eye(2, 3).repeat(count, 1, 1)
    return ViewBatch(query, key, affine, affine.clone(), [f"{index}.jpg" for index in range(count)])


def train(method: Method, sizes: list[int], first_step: int = 0) -> list[Tensor]:
    """Train one step per batch size with a fresh optimiser without memory; returns the losses."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    losses = []
    for step, size in enumerate(sizes, first_step):
        loss = method(view_batch(size, seed=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step)
        losses.append(loss.detach())
    return losses
