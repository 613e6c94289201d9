"""Slow, obvious loop versions of every loss: what the fast ones are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


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


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean over all 2B views of -log( exp(z·z⁺/τ) / Σ over the other views exp(z·z'/τ) ), one view at a time."""
    views = [*zip(first, second), *zip(second, first)]
    everyone = [z for z, _ in views]
    losses = []
    for place, (z, partner) in enumerate(views):
        others = [other for number, other in enumerate(everyone) if number != place]
        losses.append(
            torch.log(sum(torch.exp(z @ other / temperature) for other in others)) - z @ partner / temperature
        )
    return torch.stack(losses).mean()


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


def instance_contrast(
    online: Tensor,
    teacher: Tensor,
    online_ids: Tensor,
    teacher_ids: Tensor,
    temperature: float = 0.5,
    fallback: str = "query",
) -> Tensor:
    """Mean over ids of the mean over their pairs of InfoNCE, one id at a time, with every pair's logits written out."""
    z, k = functional.normalize(online, dim=1), functional.normalize(teacher, dim=1)
    everything, ids = torch.cat([z, k]).detach(), torch.cat([online_ids, teacher_ids])
    losses = []
    for i in sorted(set(online_ids.tolist())):
        queries, keys = z[online_ids == i], k[teacher_ids == i]
        if i < 0 or (len(keys) == 0 and fallback == "skip"):
            continue
        if len(keys) == 0:
            keys = queries
        negatives = everything[ids != i]
        # Every key gets a table of its own: itself first, then all negatives again. The authors' program does so too.
        tables = torch.cat([keys[:, None], negatives.expand(len(keys), -1, -1)], 1)
        # (keys, queries, 1 + negatives)
        logits = queries @ tables.transpose(1, 2) / temperature
        losses.append(-logits.log_softmax(2)[:, :, 0].mean())
    return torch.stack(losses).mean() if losses else online.sum() * 0
