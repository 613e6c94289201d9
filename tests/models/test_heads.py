"""Claims about the projection heads: their shapes, and what they pool."""

from __future__ import annotations

import torch
from torch.nn import functional

from selfdet.models.heads import DenseHead, GlobalHead


def test_the_global_head_gives_one_embedding_an_image_from_the_mean_of_its_cells() -> None:
    head = GlobalHead(6, out_channels=4)
    features = torch.randn(3, 6, 5, 2)
    assert head(features).shape == (3, 4)
    torch.testing.assert_close(head(features), head(features.mean((2, 3), keepdim=True)))


def test_hidden_layers_are_as_wide_as_the_features_unless_said_otherwise() -> None:
    assert GlobalHead(6).first.out_features == 6
    assert DenseHead(6).first.out_channels == 6
    assert GlobalHead(6, hidden=9).last.in_features == 9
    assert DenseHead(6, hidden=9).last.in_channels == 9


def test_the_dense_head_treats_every_cell_alone() -> None:
    head = DenseHead(6, out_channels=4)
    features = torch.randn(2, 6, 3, 5)
    cells = head(features)
    assert cells.shape == (2, 4, 3, 5)
    torch.testing.assert_close(head(features[:, :, 1:2, 3:4]), cells[:, :, 1:2, 3:4])


def test_a_fixed_grid_pools_the_features_first() -> None:
    head = DenseHead(6, out_channels=4, grid=2)
    features = torch.randn(2, 6, 4, 4)
    assert head(features).shape == (2, 4, 2, 2)
    torch.testing.assert_close(head(features), head(functional.avg_pool2d(features, 2)))
