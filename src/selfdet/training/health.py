"""Is anything being learned? Dense matches against the true geometry, and the figures of a run in words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdet.data.geometry import grid_centres, true_matches
from selfdet.data.images import UnreadableImage
from selfdet.data.pixels import normalise
from selfdet.data.views import TwoViews, ViewBatch, ViewDataset, ViewPair, collate_views
from selfdet.methods.contrast import match_dense
from selfdet.methods.momentum import BATCH_NORMS
from selfdet.models.backbones import Backbone

PROBE_PAIRS = 32
# Below these a representation counts as collapsed: an even spread has a standard deviation of 1 and a share of 1.
COLLAPSED_STD = 0.1
DRIFT = 0.05  # of similarity, between positives and queue
COLLAPSED_RANK_SHARE = 0.1
# A loss within this share of its chance value has told keys and queue apart in name only.
AT_CHANCE = 0.97
# Matches have changed when the difference is more than so many of its standard errors.
NOISES = 2.0


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Run `module` in eval mode, but let batch norm use the statistics of the batch and leave its own untouched.

    The running statistics of an untrained network are not statistics of anything (mean 0, variance 1), so only the
    batch's own make an untrained and a trained network comparable. Modes are put back at the end.
    """
    modes = {part: part.training for part in module.modules()}
    norms = [part for part in modes if isinstance(part, BATCH_NORMS)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    module.eval()
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept):
            norm.running_mean, norm.running_var = mean, variance
        for part, mode in modes.items():
            part.training = mode


@dataclass(frozen=True)
class Matches:
    """The dense matches of view pairs, as far as the query cells have a true partner.

    `hits`, `cells` (B,) int64: right ones and all of a pair. `errors` (Σ cells,): px of the view from the true point to
    the centre of the matched cell. `chance`: the share that blind guessing hits.
    """

    hits: Tensor
    cells: Tensor
    errors: Tensor
    chance: float

    def figures(self) -> dict[str, float]:
        """`match_accuracy`, `match_error_px` (the median) and `match_chance`; empty when no pair overlaps."""
        if not self.errors.numel():
            return {}
        return {
            "match_accuracy": float(self.hits.sum().double() / self.cells.sum()),
            "match_error_px": float(self.errors.median()),
            "match_chance": self.chance,
        }

    def noise_since(self, before: Matches) -> float:
        """The standard error of the change of the accuracy since `before`, on the same pairs.

        Cells of a pair are right or wrong together, so it is the pairs that count; 1 where a single one tells nothing.
        """
        pairs = int((self.cells > 0).sum())
        if pairs < 2:
            return 1.0
        gained, cells = (self.hits - before.hits).double(), self.cells.double()
        excess = gained - gained.sum() / cells.sum() * cells
        return float((excess.square().sum() * pairs / (pairs - 1)).sqrt() / cells.sum())


@torch.no_grad()
def matches(backbone: Backbone, batch: ViewBatch) -> Matches:
    """Match the cells of two views' last maps by their similarity and compare with the truth.

    `backbone` runs in float32 with the batch's own batch-norm statistics (see `batch_statistics`) and is left as it
    was; `batch` holds view pairs (B, 3, S, S) with their affines.
    """
    device = next(backbone.parameters()).device
    size = batch.query.shape[-1]
    with batch_statistics(backbone), torch.autocast(device.type, enabled=False):
        query, key = (
            list(backbone(normalise(view.to(device), backbone.mean, backbone.std)).values())[-1]
            for view in (batch.query, batch.key)
        )
    grid = key.shape[-1]
    found = match_dense(query, key).cpu()
    true, valid, point = true_matches(batch.query_affine.cpu(), batch.key_affine.cpu(), size, grid)
    distance = (grid_centres(size, grid).float()[found] - point).norm(dim=2)
    return Matches(((found == true) & valid).sum(1), valid.sum(1), distance[valid], 1.0 / (grid * grid))


def match_accuracy(backbone: Backbone, batch: ViewBatch) -> dict[str, float]:
    """How often the most similar cells of two views' last maps show the same point of the source image.

    Args:
        backbone: left as it was.
        batch: view pairs (B, 3, S, S) with their affines.

    Returns:
        `match_accuracy`: share of the query cells with a true partner whose match is exactly the key cell that
        contains it. `match_error_px`: median distance in view pixels from the true point to the centre of the matched
        cell; cells are a stride wide, so a perfect matcher has about 0.4 strides. `match_chance`: the share of blind
        guessing, one over the number of cells. Empty when no pair overlaps.
    """
    return matches(backbone, batch).figures()


class MatchProbe:
    """`match_accuracy` on a fixed set of view pairs, drawn once from the training images.

    Args:
        paths: images; a seeded choice of at most `pairs` of them is read. Unreadable ones are passed over.
        size: side of a view, pixels.
        seed: of the choice and of the views, so that runs with one seed are measured on the same pairs.
        device: where the views are kept.
        untrained: a backbone to compare with, measured at once.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        size: int,
        seed: int,
        device: torch.device | str,
        pairs: int = PROBE_PAIRS,
        untrained: Backbone | None = None,
    ) -> None:
        dataset = ViewDataset(paths, TwoViews(size, seed))
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
        chosen: list[ViewPair] = []
        for index in order:
            if len(chosen) == pairs:
                break
            with contextlib.suppress(UnreadableImage):
                chosen.append(dataset.load(index, 0))
        self.batch = collate_views(chosen).to(device) if chosen else None
        self.before = matches(untrained, self.batch) if untrained is not None and self.batch is not None else None

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """The figures of `match_accuracy`; empty when there is nothing to measure on.

        With an untrained backbone also `match_noise`: the standard error of the difference between the two.
        """
        if self.batch is None:
            return {}
        found = matches(backbone, self.batch)
        figures = found.figures()
        if figures and self.before is not None:
            figures["match_noise"] = found.noise_since(self.before)
        return figures


def words(rows: Sequence[Mapping[str, Any]], queue_length: int | None) -> list[str]:
    """Say in plain sentences what the rows of a pre-training run's metrics show, with advice where something is wrong.

    Args:
        rows: of metrics.jsonl, in order; each holds some of the figures of a method's `health` and of `match_accuracy`.
        queue_length: K, for the loss of pure chance log(K + 1); None where negatives are the batch's other images.
    """
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    first = next((row for row in rows if "match_accuracy" in row), {})
    return [*_loss_words(last, queue_length), *_spread_words(last), *_match_words(last, first)]


def _loss_words(last: Mapping[str, Any], queue_length: int | None) -> Iterator[str]:
    chance = last.get("loss_chance", math.inf) if queue_length is None else math.log(queue_length + 1)
    counted = "" if queue_length is None else f"log({queue_length} + 1) = "
    others = "other images" if queue_length is None else "the queue"
    filled = last.get("queue_filled", 1.0)
    for name in ("global", "dense"):
        if name not in last:
            continue
        loss = last[name]
        sentence = f"The {name} loss is {loss:.2f}; pure chance is {counted}{chance:.2f}."
        if filled < 1:
            yield (
                f"{sentence} Only {filled:.0%} of the queue holds keys, the rest is still random and too easy: "
                "train for longer or take a shorter queue."
            )
        elif loss >= AT_CHANCE * chance:
            yield (
                f"{sentence} That is chance, nothing has been learned: train for longer, "
                "or lower the learning rate if it never fell."
            )
        else:
            yield sentence
    for prefix, what in (("", "An image"), ("dense_", "A cell")):
        if f"{prefix}pos_similarity" in last:
            positive, negative = last[f"{prefix}pos_similarity"], last[f"{prefix}neg_similarity"]
            yield f"{what}'s similarity to its positive is {positive:.2f}, to {others} {negative:.2f} on average."


def _spread_words(last: Mapping[str, Any]) -> Iterator[str]:
    if "feature_std" not in last:
        return
    std, rank, limit = last["feature_std"], last["effective_rank"], last["rank_limit"]
    if limit < 2:
        yield "The spread of the embeddings cannot be told from batches of one image."
        return
    sentence = (
        f"The embeddings' spread is {std:.2f} (1 = even, 0 = none), their effective rank {rank:.1f} of {limit:.0f}."
    )
    collapsed = std < COLLAPSED_STD or rank < COLLAPSED_RANK_SHARE * limit
    if collapsed and last.get("pos_similarity", 0.0) - last.get("neg_similarity", 0.0) > DRIFT:
        # All images look alike and yet the positive stands out: what tells it from the queue can only be its age.
        yield (
            f"{sentence} They have collapsed, all images look alike; the loss fell because the keys drift and new ones "
            "differ from old ones. Lower the learning rate or take a momentum nearer to 1."
        )
    elif collapsed:
        yield (
            f"{sentence} They have collapsed, all images look alike: lower the learning rate, train for longer, "
            "and keep the key batch norm split."
        )
    else:
        yield sentence


def _match_words(last: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[str]:
    if "match_accuracy" not in last:
        return
    now, before = last["match_accuracy"], first["match_accuracy"]
    sentence = (
        f"Dense matches hit the true cell exactly in {now:.1%} (median error {last['match_error_px']:.0f} px), "
        f"before training in {before:.1%} ({first['match_error_px']:.0f} px); guessing in {last['match_chance']:.1%}."
    )
    margin = NOISES * last.get("match_noise", 0.0)
    if first.get("step") == last.get("step"):
        yield sentence
    elif now - before > margin:
        yield f"{sentence} Matches have become better."
    else:
        noise = f" beyond the noise of ±{margin:.1%}" if abs(now - before) <= margin else ""
        yield (
            f"{sentence} Training has not improved the matches{noise}: train for longer or with more images, "
            "and look at the other figures."
        )
