"""Slow, obvious loop versions of losses and scores: what the fast ones are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


Box = Sequence[float]


def miss_rate(objects: Sequence[tuple[int, Box, bool]], found: Sequence[tuple[int, Box, float]], images: int) -> float:
    """MR⁻² of `found` (image, box, score) against `objects` (image, box, ignored), boxes x, y, width, height.

    For each of nine false-positive rates, with the longest list of best detections that stays below it, everything
    matched anew.
    """

    def shared(one: Box, two: Box) -> float:
        wide = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
        high = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
        return max(0.0, wide) * max(0.0, high)

    def overlap(one: Box, two: Box) -> float:
        return shared(one, two) / (one[2] * one[3] + two[2] * two[3] - shared(one, two))

    def counted(detections: Sequence[tuple[int, Box, float]]) -> tuple[int, int]:
        taken: set[int] = set()
        wrong = 0
        for image, box, _ in detections:
            free = [
                (overlap(box, other), -place)
                for place, (own, other, ignored) in enumerate(objects)
                if own == image and not ignored and place not in taken
            ]
            best, place = max(free, default=(0.0, 0))
            inside = any(
                shared(box, other) / (box[2] * box[3]) >= 0.5
                for own, other, ignored in objects
                if own == image and ignored
            )
            if best >= 0.5:
                taken.add(-place)
            elif not inside:
                wrong += 1
        return len(taken), wrong

    total = sum(not ignored for _, _, ignored in objects)
    ranked = sorted(found, key=lambda each: -each[2])
    counts = [counted(ranked[:length]) for length in range(len(ranked) + 1)]
    logarithms = []
    for step in range(9):
        allowed = 10 ** (-2 + step / 4)
        right = [hits for hits, wrong in counts if wrong / images <= allowed * (1 + 1e-9)][-1]
        logarithms.append(math.log(max(1e-10, 1 - right / total)))
    return math.exp(sum(logarithms) / 9)


def confusion_loop(
    truths: Sequence[Sequence[Sequence[int]]], founds: Sequence[Sequence[Sequence[int]]], classes: int
) -> tuple[list[list[int]], list[float | None], float]:
    """The confusion matrix (true, found), IoU of each class and share of right pixels, pixel by pixel; 255 is ignored.

    The IoU of a class without a true pixel is None.
    """
    counts = [[0] * classes for _ in range(classes)]
    for truth, found in zip(truths, founds):
        for row, line in enumerate(truth):
            for column, true in enumerate(line):
                if true != 255:
                    counts[true][found[row][column]] += 1
    overlaps: list[float | None] = []
    right = labelled = 0
    for own in range(classes):
        true = sum(counts[own])
        found_as = sum(counts[other][own] for other in range(classes))
        overlaps.append(counts[own][own] / (true + found_as - counts[own][own]) if true else None)
        right += counts[own][own]
        labelled += true
    return counts, overlaps, right / labelled


def mutual_nearest(similarity: Sequence[Sequence[float]]) -> set[tuple[int, int]]:
    """Pairs (query, key) each of which is the other's most similar, the first of equals."""
    found = set()
    for query, row in enumerate(similarity):
        key = max(range(len(row)), key=lambda k: (row[k], -k))
        column = [other[key] for other in similarity]
        if max(range(len(column)), key=lambda q: (column[q], -q)) == query:
            found.add((query, key))
    return found
