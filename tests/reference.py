"""Slow, obvious loop versions of every loss: what the fast ones are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over queries of -log( exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·k⁻/τ)) ), one pair at a time."""
    total = query.sum() * 0
    for q, k in zip(query, positive):
        logits = [q @ k / temperature] + [q @ n / temperature for n in negatives]
        # Dividing both sides by the largest term changes nothing but keeps exp in range.
        largest = max(float(logit.detach()) for logit in logits)
        shares = [torch.exp(logit - largest) for logit in logits]
        total = total - torch.log(shares[0] / sum(shares))
    return total / max(1, len(query))


def match_dense(query_features: Tensor, key_features: Tensor) -> Tensor:
    """For each query cell, the first key cell of the highest cosine similarity, one pair of cells at a time."""
    matches = []
    for query, key in zip(query_features.flatten(2), key_features.flatten(2)):
        row = []
        for q in query.T.double():
            best, best_similarity = -1, -math.inf
            for index, k in enumerate(key.T.double()):
                similarity = float(q @ k / (q.norm() * k.norm()))
                if similarity > best_similarity:
                    best, best_similarity = index, similarity
            row.append(best)
        matches.append(row)
    return torch.tensor(matches)


def dense_info_nce(
    query_grid: Tensor, key_grid: Tensor, match: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Mean over images and cells of InfoNCE between a query cell and its matched key cell."""
    losses = []
    for query, key, row in zip(query_grid.flatten(2), key_grid.flatten(2), match):
        for cell, matched in enumerate(row):
            losses.append(info_nce(query[:, cell][None], key[:, int(matched)][None], negatives, temperature))
    return torch.stack(losses).mean()
