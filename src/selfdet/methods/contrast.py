"""Contrastive losses as pure functions.

Legend: q query, k key, N queries, K negatives, D embedding size, τ temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from selfdet.methods.instance_contrast import instance_contrast

__all__ = ["dense_info_nce", "info_nce", "instance_contrast", "match_dense", "nt_xent"]

# Queries × negatives whose logits live at one time. On a CPU 2 MiB of float32, which stays in the cache of a core;
# elsewhere 64 MiB, so that launching kernels does not take longer than running them.
CPU_TILE = (512, 1024)
DEVICE_TILE = (1024, 16384)
# Similarities of this many elements at most are held by `match_dense` (16 MiB in float32).
MATCH_ELEMENTS = 1 << 22


def _working_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one sweep over tiles, so that backward keeps (N, D) tensors only.

    The softmax over the negatives is accumulated with a running maximum: for each query the maximum m, the sum of
    exp(l - m) and the sum of exp(l - m) · negative, which is all the gradient needs.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, with_gradient: bool
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            dtype = _working_dtype(query, positive, negatives)
            q, p, n = query.to(dtype), positive.to(dtype), negatives.to(dtype)
            count = max(1, len(q))
            loss = q.new_zeros(())
            query_gradient, positive_gradient = (torch.empty_like(q), torch.empty_like(p)) if with_gradient else (q, p)
            height, width = CPU_TILE if q.device.type == "cpu" else DEVICE_TILE
            for start in range(0, len(q), height):
                rows = slice(start, start + height)
                scaled = q[rows] / temperature
                # The positive opens the sum: its logit is the first maximum, its share of the sum exp(0) = 1.
                positive_logit = (scaled * p[rows]).sum(1, keepdim=True)
                maximum, total = positive_logit.clone(), torch.ones_like(positive_logit)
                weighted = p[rows].clone() if with_gradient else None
                for column in range(0, len(n), width):
                    tile = n[column : column + width]
                    logits = scaled @ tile.T
                    new_maximum = torch.maximum(maximum, logits.amax(1, keepdim=True))
                    logits.sub_(new_maximum).exp_()
                    decay = (maximum - new_maximum).exp_()
                    total = total.mul_(decay).add_(logits.sum(1, keepdim=True))
                    if weighted is not None:
                        weighted = weighted.mul_(decay).addmm_(logits, tile)
                    maximum = new_maximum
                log_total = total.log() + maximum
                loss += (log_total - positive_logit).sum()
                if weighted is not None:
                    scale = 1.0 / (temperature * count)
                    query_gradient[rows] = (weighted / total - p[rows]).mul_(scale)
                    share = (positive_logit - log_total).expm1_()
                    positive_gradient[rows] = share.mul(scale) * q[rows]
        if with_gradient:
            ctx.save_for_backward(query_gradient.to(query.dtype), positive_gradient.to(positive.dtype))
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        query_gradient, positive_gradient = ctx.saved_tensors
        return (
            (query_gradient * gradient).to(query_gradient.dtype) if ctx.needs_input_grad[0] else None,
            (positive_gradient * gradient).to(positive_gradient.dtype) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The mean over queries of -log( exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·k⁻/τ)) ).

    Args:
        query: (N, D), L2-normalised; gets a gradient.
        positive: (N, D), L2-normalised, the key of each query; gets a gradient if it asks for one.
        negatives: (K, D), L2-normalised, shared by all queries; constants.
        temperature: τ > 0.

    Returns:
        A scalar in float32 (float64 where an input is): 0 on the graph when N is 0. Backward keeps no (N, K) tensor;
        it can be run once (no second derivative).

    Source: van den Oord et al., arXiv 1807.03748, eq. 4, with one positive as in MoCo, arXiv 1911.05722, eq. 1.
    """
    with_gradient = torch.is_grad_enabled() and (query.requires_grad or positive.requires_grad)
    return _InfoNCE.apply(query, positive, negatives.detach(), float(temperature), with_gradient)


@torch.no_grad()
def match_dense(query_features: Tensor, key_features: Tensor) -> Tensor:
    """For each query cell the index of the most similar key cell of the same image (cosine; the first of ties).

    Args:
        query_features: (B, C, H, W) map, not normalised.
        key_features: (B, C, H', W') map, not normalised.

    Returns:
        (B, H·W) int64, row-major indices into the H'·W' key cells; no gradient.

    Source: Wang et al., DenseCL, arXiv 2011.09157, section 3.3.
    """
    with torch.autocast(query_features.device.type, enabled=False):
        dtype = _working_dtype(query_features, key_features)
        cells = query_features[0, 0].numel() if len(query_features) else 1
        key_cells = key_features[0, 0].numel() if len(key_features) else 1
        images = max(1, MATCH_ELEMENTS // (cells * key_cells))
        matches = []
        for query, key in zip(query_features.split(images), key_features.split(images)):
            q = functional.normalize(query.flatten(2).to(dtype), dim=1)
            k = functional.normalize(key.flatten(2).to(dtype), dim=1)
            similarity = torch.bmm(q.transpose(1, 2), k)
            # A matrix product may round equal cells differently by their position: what rounding can explain is a tie.
            enough = similarity.amax(2, keepdim=True) - 8 * torch.finfo(dtype).eps
            matches.append((similarity >= enough).view(torch.uint8).argmax(2))
        return torch.cat(matches)


def dense_info_nce(
    query_grid: Tensor,
    key_grid: Tensor,
    match: Tensor,
    negatives: Tensor,
    temperature: float,
    valid: Tensor | None = None,
) -> Tensor:
    """InfoNCE of every query cell against its matched key cell, mean over all cells of the batch.

    Args:
        query_grid: (B, D, H, W), L2-normalised over D.
        key_grid: (B, D, H', W'), L2-normalised over D.
        match: (B, H·W) int64, row-major key cell of each query cell.
        negatives: (K, D), L2-normalised, shared by all cells; constants.
        temperature: τ > 0.
        valid: (B, H·W) bool; only these cells enter the mean. None: all cells.

    Returns:
        A scalar as of `info_nce`; 0 on the graph when no cell is valid.

    Source: Wang et al., DenseCL, arXiv 2011.09157, eq. 2.
    """
    width = query_grid.shape[1]
    query = query_grid.flatten(2).transpose(1, 2)
    index = match if valid is None else match.clamp(min=0)
    key = key_grid.flatten(2).gather(2, index[:, None].expand(-1, width, -1)).transpose(1, 2)
    if valid is None:
        return info_nce(query.reshape(-1, width), key.reshape(-1, width), negatives, temperature)
    return info_nce(query[valid], key[valid], negatives, temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss: each of 2B embeddings against the other view of its image, among all others of the batch.

    The mean over both views of -log( exp(z·z⁺/τ) / Σ exp(z·z'/τ) ), z' any embedding but z itself.

    Args:
        first: (B, D), L2-normalised; gets a gradient, also as positive and negative of others.
        second: (B, D), L2-normalised, the other view of each image; likewise.
        temperature: τ > 0.

    Returns:
        A scalar in float32 (float64 where an input is): 0 on the graph when B is 0. The 2B × 2B similarities are held.

    Source: Chen et al., SimCLR, arXiv 2002.05709, eq. 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        z = torch.cat([first, second]).to(_working_dtype(first, second))
        count = len(first)
        if not count:
            return z.sum()
        itself = torch.eye(2 * count, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
        partner = torch.arange(2 * count, device=z.device).roll(count)
        return functional.cross_entropy(logits, partner)
