"""Projection heads that are evaluated at chosen places only; the others cost nothing.

Legend: B images, C channels, D embedding size, A anchors a cell, R places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class CellHead(nn.Module):
    """One embedding a cell: 3×3 convolution (as wide as the map) → ReLU → 1×1 convolution.

    Source: AlignDet, arXiv 2307.11077, for FCOS.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(9 * channels, channels)  # inputs: the nine cells row by row, each with all channels
        self.last = nn.Linear(channels, dim)
        _initialise(self.first, self.last)

    def forward(self, maps: Sequence[Tensor], places: Tensor) -> Tensor:
        """Map (B, C, H, W) maps of all levels to the (R, D) embeddings, not normalised, of the chosen cells.

        `places`: (R,) int64, image by image, level by level, row by row. What lies outside a map counts as zeros.
        """
        table, near, cells, rows = self._neighbours(maps)
        image, cell = places // cells, places % cells
        found = table.index_select(0, (image[:, None] * rows + near[cell]).flatten())
        return self.last(functional.relu(self.first(found.view(len(places), 9 * table.shape[1]))))

    @staticmethod
    def _neighbours(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, int, int]:
        """All cells of all levels with a border of zeros as rows (B · rows, C); the rows of each cell's neighbours in
        its image, (cells, 9); and the numbers of cells and rows an image."""
        tables, near, rows = [], [], 0
        steps = torch.arange(3, device=maps[0].device)
        for level in maps:
            height, width = level.shape[-2] + 2, level.shape[-1] + 2
            tables.append(functional.pad(level, (1, 1, 1, 1)).flatten(2).transpose(1, 2))
            corners = torch.arange(height * width, device=level.device).view(height, width)[:-2, :-2] + rows
            around = (steps[:, None] * width + steps).flatten()
            near.append(corners.flatten()[:, None] + around)
            rows += height * width
        table, index = torch.cat(tables, 1), torch.cat(near)
        return table.flatten(0, 1), index, len(index), rows


class AnchorHead(nn.Module):
    """One embedding an anchor: 1×1 convolution (as wide as the map) → ReLU → 1×1 convolution to A · D channels.

    Source: AlignDet, arXiv 2307.11077, for RetinaNet.
    """

    def __init__(self, channels: int, anchors: int, dim: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.first = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, anchors * dim)  # outputs: anchor by anchor
        _initialise(self.first, self.last)

    def forward(self, maps: Sequence[Tensor], places: Tensor) -> Tensor:
        """Map (B, C, H, W) maps of all levels to the (R, D) embeddings, not normalised, of the chosen anchors.

        `places`: (R,) int64, image by image, level by level, row by row, a cell's anchors one after the other.
        """
        table = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1).flatten(0, 1)
        # By anchor, because each has its own part of the last layer.
        order = (places % self.anchors).argsort(stable=True)
        ordered = places[order]
        hidden = functional.relu(self.first(table.index_select(0, ordered // self.anchors)))
        counts = (ordered % self.anchors).bincount(minlength=self.anchors).tolist()
        layers = zip(hidden.split(counts), self.last.weight.chunk(self.anchors), self.last.bias.chunk(self.anchors))
        return torch.cat([functional.linear(part, weight, bias) for part, weight, bias in layers])[order.argsort()]


class RegionHead(nn.Module):
    """One embedding a region of interest: linear layer (as wide as the region's features) → ReLU → linear layer.

    Source: AlignDet, arXiv 2307.11077, for Faster and Mask R-CNN.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, dim)
        _initialise(self.first, self.last)

    def forward(self, features: Tensor) -> Tensor:
        """Map the (R, C) features of regions to their (R, D) embeddings, not normalised."""
        return self.last(functional.relu(self.first(features)))


def _initialise(first: nn.Linear, last: nn.Linear) -> None:
    """Without offsets at the start: towers give small values, in which offsets would drown all differences."""
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.bias)
