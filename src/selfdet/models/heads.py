"""Heads on the last feature map: projections to embeddings, and the classes of its cells."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class GlobalHead(nn.Module):
    """One embedding an image: average pool → Linear → ReLU → Linear.

    Source: MoCo v2, arXiv 2003.04297.
    """

    def __init__(self, in_channels: int, hidden: int | None = None, out_channels: int = 128) -> None:
        super().__init__()
        hidden = hidden or in_channels
        self.first = nn.Linear(in_channels, hidden)
        self.last = nn.Linear(hidden, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) features to (B, out) embeddings, not normalised."""
        return self.last(functional.relu(self.first(features.mean((2, 3)))))


class DenseHead(nn.Module):
    """One embedding a cell: 1×1 convolution → ReLU → 1×1 convolution, on a map pooled to grid × grid if that is given.

    Source: DenseCL, arXiv 2011.09157, section 3.2.
    """

    def __init__(
        self, in_channels: int, hidden: int | None = None, out_channels: int = 128, grid: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden or in_channels
        self.grid = grid
        self.first = nn.Conv2d(in_channels, hidden, 1)
        self.last = nn.Conv2d(hidden, out_channels, 1)

    def pool(self, features: Tensor) -> Tensor:
        """Average-pool (B, C, H, W) features to the fixed grid; without one return them as they are."""
        return features if self.grid is None else functional.adaptive_avg_pool2d(features, self.grid)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) features to (B, out, S, S) embeddings, not normalised; S = grid, or H and W without one."""
        return self.last(functional.relu(self.first(self.pool(features))))


class FCNHead(nn.Sequential):
    """Scores of each cell: 3×3 convolutions with batch norm, a quarter as wide as the map, and a 1×1 classifier.

    With one convolution it is that of torchvision's FCN, name for name.
    Source: FCN, arXiv 1411.4038, in the form of DenseCL's benchmark: two convolutions, dropout 0.1.
    """

    def __init__(self, in_channels: int, num_classes: int, convs: int = 2, dropout: float = 0.1) -> None:
        hidden = max(1, in_channels // 4)
        layers: list[nn.Module] = []
        for number in range(convs):
            layers += [nn.Conv2d(in_channels if number == 0 else hidden, hidden, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(dropout), nn.Conv2d(hidden, num_classes, 1))
