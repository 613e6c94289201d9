"""Figures of embeddings that show whether a contrastive method is learning or collapsing."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_std(embeddings: Tensor) -> float:
    """The standard deviation of (N, D) unit vectors over N, mean over D, times √D: 1 = spread evenly, 0 = collapsed."""
    return float(embeddings.float().std(0, unbiased=False).mean() * embeddings.shape[1] ** 0.5)


def effective_rank(embeddings: Tensor) -> float:
    """The exponential of the entropy of the normalised singular values of (N, D) vectors: 1 … min(N, D).

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007; of embeddings: Garrido et al., arXiv 2210.02885.
    """
    values = torch.linalg.svdvals(embeddings.float())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())
