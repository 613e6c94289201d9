"""The box-domain contrastive loss: the places of an object against its places in the other view.

Legend: q query, k key, τ temperature; R and R' embeddings of the online and of the teacher's view, D their size; the
bank is the embeddings of both views as constants, out of which a query takes its negatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Queries × other embeddings whose logits live at one time: on a CPU 1 MiB of float32, elsewhere 64 MiB. Lower than
# `contrast`'s, because the keys that a tile meets are those of all its queries' ids.
CPU_TILE = (128, 2048)
DEVICE_TILE = (1024, 16384)
# A shorter embedding has no direction: it counts as zero and gets no gradient.
SHORTEST = 1e-12
FALLBACKS = ("query", "skip")

Span = tuple[int, int]


def instance_contrast(
    online: Tensor,
    teacher: Tensor,
    online_ids: Tensor,
    teacher_ids: Tensor,
    temperature: float = 0.5,
    fallback: str = "query",
    others: Tensor | None = None,
) -> Tensor:
    """The mean over ids of the mean over (query, key) pairs of -log( exp(q·k/τ) / (exp(q·k/τ) + Σ exp(q·k⁻/τ)) ).

    The queries of an id are the online embeddings that have it, its keys the teacher's; the negatives of its queries
    are all embeddings of both views with another id, background included, as constants. Every query meets every key.
    Where the teacher has not got the id, the online queries are its keys too, and get a gradient as such: all n² pairs
    of n queries, also each query with itself. (That pair's logit is 1/τ whatever the weights are; it adds no more
    than the query's distance from its negatives.) With R' = 0 that is every id.

    Args:
        online: (R, D), of any length (normalised in here); gets a gradient as query, and as key of a fallback.
        teacher: (R', D), of any length; gets a gradient as key if it asks for one.
        online_ids: (R,) int64; below 0 background, which is a negative of all and never a query or key.
        teacher_ids: (R',) int64, of the same objects.
        temperature: τ > 0.
        fallback: "query" as above; "skip" leaves ids that the teacher has not got out of the mean.
        others: (M, D), of any length, more negatives of all queries, as constants: the places of other processes.

    Returns:
        A scalar in float32 (float64 where an input is): 0 on the graph when no id has a query and a key. Memory is
        linear in R + R', however they spread over ids; backward can be run once (no second derivative).

    Raises: ValueError for another `fallback`.

    Source: Li et al., AlignDet, arXiv 2307.11077, eq. 3, with keys from the second view.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f'fallback is {fallback!r}; expected "query" or "skip"')
    with torch.autocast(online.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(online.dtype, teacher.dtype), torch.float32)
        z, k = _unit(online.to(dtype)), _unit(teacher.to(dtype))
        both, ids = torch.cat([z, k]), torch.cat([online_ids, teacher_ids])
        present = _count(online_ids, teacher_ids.sort().values) > 0
        asking = (online_ids >= 0) & present if fallback == "skip" else online_ids >= 0
        query_rows, query_ids = _ascending(online_ids, asking)
        key_rows, key_ids = _ascending(ids, torch.cat([asking & ~present, teacher_ids >= 0]))
        bank, bank_ids = both.detach(), ids
        if others is not None:
            bank = torch.cat([bank, _unit(others.detach().to(dtype))])
            bank_ids = torch.cat([ids, ids.new_full((len(others),), -1)])
        bank_ids, bank_rows = bank_ids.sort()
        return _GroupedInfoNCE.apply(
            z.index_select(0, query_rows),
            both.index_select(0, key_rows),
            bank.index_select(0, bank_rows),
            query_ids,
            key_ids,
            bank_ids,
            float(temperature),
            torch.is_grad_enabled() and both.requires_grad,
        )


def counted_ids(online_ids: Tensor, teacher_ids: Tensor, fallback: str = "query") -> int:
    """The number of ids that `instance_contrast` takes the mean over: (R,) int64 and (R',) int64 as there."""
    counted = online_ids[online_ids >= 0].unique()
    return len(counted) if fallback == "query" else int(torch.isin(counted, teacher_ids).sum())


class _GroupedInfoNCE(torch.autograd.Function):
    """Loss and gradients in one sweep over tiles: backward keeps a tensor of the queries' size and one of the keys'.

    Queries, keys and bank come in ascending order of their ids. With L the logarithm of a query's sum over negatives, a
    pair's loss is softplus(L - q·k/τ): one pass over the bank gives L for all keys of the query, a second one over the
    keys gives the pairs. Whatever shares an id with a tile of queries lies between two positions: only there ids are
    compared, and only there pairs are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        bank: Tensor,
        query_ids: Tensor,
        key_ids: Tensor,
        bank_ids: Tensor,
        temperature: float,
        with_gradient: bool,
    ) -> Tensor:
        loss = query.new_zeros(())
        query_gradient, key_gradient = (
            (torch.empty_like(query), torch.zeros_like(keys)) if with_gradient else (query, keys)
        )
        weight = _pair_weights(query_ids, key_ids, query.dtype)
        height, width = CPU_TILE if query.device.type == "cpu" else DEVICE_TILE
        spans = zip(_spans(query_ids, height, bank_ids), _spans(query_ids, height, key_ids))
        for start, (bank_span, key_span) in zip(range(0, len(query), height), spans):
            rows = slice(start, start + height)
            scaled, ids = query[rows] / temperature, query_ids[rows, None]
            log_total, centre = _negatives(scaled, ids, bank, bank_ids, bank_span, width, with_gradient)
            pulled, pull = torch.zeros_like(log_total), torch.zeros_like(scaled)
            for column in range(*key_span, width):
                columns = slice(column, min(column + width, key_span[1]))
                pairs = (ids == key_ids[columns]) * weight[rows]
                lead = (scaled @ keys[columns].T).sub_(log_total)
                loss -= (functional.logsigmoid(lead) * pairs).sum()
                if with_gradient:
                    share = torch.sigmoid(lead.neg_()).mul_(pairs)
                    pulled += share.sum(1, keepdim=True)
                    pull.addmm_(share, keys[columns])
                    key_gradient[columns].addmm_(share.T, scaled, alpha=-1)
            if with_gradient:
                query_gradient[rows] = (pulled * centre).sub_(pull).div_(temperature)
        if with_gradient:
            ctx.save_for_backward(query_gradient, key_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = (saved * gradient if needed else None for saved, needed in zip(ctx.saved_tensors, ctx.needs_input_grad))
        return *found, None, None, None, None, None, None


def _negatives(
    scaled: Tensor, ids: Tensor, bank: Tensor, bank_ids: Tensor, span: Span, width: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """For queries (n, D) over τ with `ids` (n, 1): log of the sum of exp(logit) over the bank's entries of other ids,
    (n, 1), -inf without any; and those entries' mean weighted with exp(logit), (n, D).
    """
    # A finite first maximum: with -inf a tile without negatives would give inf - inf.
    maximum = scaled.new_full((len(scaled), 1), torch.finfo(scaled.dtype).min)
    total, weighted = torch.zeros_like(maximum), torch.zeros_like(scaled)
    for column in range(0, len(bank), width):
        tile = bank[column : column + width]
        logits = scaled @ tile.T
        first, last = max(span[0] - column, 0), min(span[1] - column, len(tile))
        if first < last:
            own = ids == bank_ids[column + first : column + last]
            logits[:, first:last].masked_fill_(own, -math.inf)
        new_maximum = torch.maximum(maximum, logits.amax(1, keepdim=True))
        logits.sub_(new_maximum).exp_()
        decay = (maximum - new_maximum).exp_()
        total.mul_(decay).add_(logits.sum(1, keepdim=True))
        if with_gradient:
            weighted.mul_(decay).addmm_(logits, tile)
        maximum = new_maximum
    return total.log() + maximum, weighted.div_(total.clamp(min=torch.finfo(scaled.dtype).tiny))


def _unit(embeddings: Tensor) -> Tensor:
    """Embeddings (R, D) at length 1."""
    length = embeddings.norm(dim=1, keepdim=True)
    return embeddings * torch.where(length > SHORTEST, length.clamp(min=SHORTEST).reciprocal(), 0)


def _ascending(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that `keep` (R,) bool marks, in ascending order of their ids, and those ids."""
    rows = keep.nonzero()[:, 0]
    ordered, order = ids[rows].sort(stable=True)
    return rows[order], ordered


def _count(ids: Tensor, ascending: Tensor) -> Tensor:
    """How often each of `ids` (R,) occurs in `ascending` (N,): (R,) int64."""
    return torch.searchsorted(ascending, ids, right=True) - torch.searchsorted(ascending, ids)


def _pair_weights(query_ids: Tensor, key_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What each pair of a query counts in the mean over pairs, then ids: (Q, 1)."""
    _, place, queries = torch.unique_consecutive(query_ids, return_inverse=True, return_counts=True)
    pairs = queries[place] * _count(query_ids, key_ids)
    return (pairs * len(queries)).to(dtype).reciprocal()[:, None]


def _spans(query_ids: Tensor, height: int, ascending: Tensor) -> list[Span]:
    """For each tile of queries, where in `ascending` the ids from its first to its last lie."""
    first = query_ids[::height].contiguous()
    # A short last tile has no row at `height - 1`; a full one would be there twice.
    last = torch.cat([query_ids[height - 1 :: height], query_ids[-1:]])[: len(first)]
    start, stop = torch.searchsorted(ascending, first), torch.searchsorted(ascending, last, right=True)
    return list(zip(start.tolist(), stop.tolist()))
