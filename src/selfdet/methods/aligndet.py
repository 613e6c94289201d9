"""AlignDet: pre-train everything of a detector but its backbone by contrasting the places of objects in two views.

Legend: online trains, the teacher averages; τ temperature, m momentum, t step of T.
Source: Li et al., AlignDet, arXiv 2307.11077.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selfdet.detectors.base import Batch, Detector, Regions
from selfdet.detectors.optim import freeze
from selfdet.methods.base import Method
from selfdet.methods.contrast import instance_contrast
from selfdet.methods.instance_contrast import counted_ids
from selfdet.methods.moco import check
from selfdet.methods.momentum import Draws, gather, update_average, world_size
from selfdet.methods.region_statistics import region_figures
from selfdet.models.folding import Folding

if TYPE_CHECKING:
    from selfdet.data.box_views import BoxViewBatch
    from selfdet.data.sample import Sample

FALLBACKS = ("query", "skip")
NEGATIVES = ("local", "gathered")


class AlignDet(Method):
    """AlignDet over a detector.

    Args:
        detector: becomes `.detector` and is trained in place; its backbone is frozen, batch norm included, and what
            only labels can train (a branch for masks).
        temperature: τ.
        embedding_dim: size of the embeddings.
        momentum_start: m after the first step; it rises to 1 along half a cosine (`cosine_momentum`).
        train_backbone: train the backbone too; the teacher then has an averaged one of its own.
        samples: places taken of a view (see the detector's `regions`); as many as the paper took if None.
        fallback: what an id without a place in the teacher's view is compared with, see `instance_contrast`.
        negatives: the places that a query is told from: those of its own process, "local" (the method), or those of
            all processes, "gathered", which contrasts as one process does on the batch of all.
        seed: of the projection heads and of the drawing of places.

    The online detector sees one view, the teacher the other, without gradient; the places of each view get their ids
    from the detector's own assigner on that view. A frozen backbone is one object and runs both views in one pass; of a
    composite one the two copies are frozen and common, and its connections train, with an average for the teacher. The
    teacher is averaged after each optimiser step: its parameters, not the statistics of batch norm. The projection
    heads (`.projector`, `.teacher_projector`) are no part of the detectors.

    Raises:
        UserError: an argument out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        temperature: float = 0.5,
        embedding_dim: int = 256,
        momentum_start: float = 0.996,
        train_backbone: bool = False,
        samples: int | None = None,
        fallback: str = "query",
        negatives: str = "local",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check(temperature > 0, f"temperature is {temperature}, expected a number above 0", "0.5 is usual")
        check(embedding_dim >= 1, f"embedding size is {embedding_dim}, expected 1 or more", "256 is usual")
        check(0 <= momentum_start <= 1, f"momentum is {momentum_start}, expected 0 to 1", "0.996 is usual")
        check(samples is None or samples >= 1, f"samples is {samples}, expected 1 or more", "2048 is usual")
        check(fallback in FALLBACKS, f"fallback is {fallback!r}, expected {' or '.join(FALLBACKS)}", "query is usual")
        check(negatives in NEGATIVES, f"negatives are {negatives!r}, expected local or gathered", "local is usual")
        self.temperature, self.momentum_start, self.train_backbone = temperature, momentum_start, train_backbone
        self.samples, self.fallback, self.negatives = samples, fallback, negatives
        self.detector = detector
        if not train_backbone:
            freeze(detector, ["backbone"])
        for name, parameter in detector.net.named_parameters():
            if detector.labels_only.holds(name):
                parameter.requires_grad_(False)
        # The projector follows from the seed alone, and building it leaves the caller's random state as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector = detector.projector(embedding_dim).to(next(detector.parameters()))
        self._frozen = [] if train_backbone else _untrained(detector.backbone.net)
        common = [*detector.shared(), *self._frozen]
        self.teacher = copy.deepcopy(detector, {id(module): module for module in common}).requires_grad_(False)
        for module in detector.shared():
            module.requires_grad_(True)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.draws = Draws(seed)
        self._momentum = momentum_start
        self._last: tuple[list[Regions], list[Regions], Batch] | None = None
        self._folding = Folding()
        self.train()

    def forward(self, batch: BoxViewBatch) -> dict[str, Tensor]:
        """Return the losses of a batch of view pairs: "contrast", the detector's own of the online view, and their sum
        under "loss"."""
        count = len(batch.online)
        views = self.detector.prepare(numbered(batch.online, batch.teacher))
        online_view, teacher_view = views.split(count)
        # Channels last: on a CPU the whole step takes three quarters of the time.
        images = views.tensor.contiguous(memory_format=torch.channels_last)
        online_maps, teacher_maps = self._backbone_maps(images, count)
        # Two numbers a batch, whatever is drawn with them: the draws stay in step in all processes.
        seeds = self.draws.integers(2**62, (2,)).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        online = self.detector.regions(
            self.detector.neck(online_maps),
            online_view,
            self.projector,
            generators[0],
            losses=True,
            samples=self.samples,
        )
        with torch.no_grad():
            teacher = self.teacher.regions(
                self.teacher.neck(teacher_maps),
                teacher_view,
                self.teacher_projector,
                generators[1],
                losses=False,
                samples=self.samples,
            )
        losses = self._losses(online, teacher)
        last = [replace(stage, embeddings=stage.embeddings.detach(), losses={}) for stage in online]
        self._last = last, teacher, online_view
        return {**losses, "loss": torch.stack(list(losses.values())).sum()}

    def _backbone_maps(self, images: Tensor, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The backbone's maps of the first `count` of (B, 3, H, W) images, for the online neck, and of the others."""
        if self.detector.backbone.net not in self._frozen:
            maps = self.detector.body(images[:count])
            with torch.no_grad():
                return maps, self.teacher.body(images[count:])
        # Not inference mode: the neck's backward needs what it has seen.
        with torch.no_grad():
            backbone = self.detector.backbone
            maps = self.detector.body(images, self._folding.of(backbone.maps, backbone.net, images[:1]))
        return (
            {name: level[:count] for name, level in maps.items()},
            {name: level[count:] for name, level in maps.items()},
        )

    def _losses(self, online: Sequence[Regions], teacher: Sequence[Regions]) -> dict[str, Tensor]:
        """The contrast of each stage of the detector and its own losses, weighted and summed over the stages."""
        losses: dict[str, Tensor] = {}
        for q, k in zip(online, teacher):
            contrast = self._contrast(q, k)
            for name, loss in {"contrast": contrast, **q.losses}.items():
                losses[name] = losses.get(name, 0.0) + q.weight * loss
        return losses

    def _contrast(self, q: Regions, k: Regions) -> Tensor:
        """The contrast of the places of both views, with negatives from the places of other processes if asked."""
        local = (q.embeddings, k.embeddings, q.ids, k.ids, self.temperature, self.fallback)
        if self.negatives == "local" or world_size() == 1:
            return instance_contrast(*local)
        own = torch.cat([q.embeddings.detach(), k.embeddings])
        everyone, start = gather(own)
        others = torch.cat([everyone[:start], everyone[start + len(own) :]])
        count = torch.tensor([float(counted_ids(q.ids, k.ids, self.fallback))], device=own.device)
        # Each process has the mean over its own ids: weighted, their mean over processes is that over all ids.
        share = count / gather(count)[0].mean().clamp(min=1 / world_size())
        return instance_contrast(*local, others) * share.squeeze()

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Average the teacher: `step` of `total_steps` is done, counted from 0."""
        self._momentum = cosine_momentum(self.momentum_start, step, total_steps)
        update_average(self.detector, self.teacher, self._momentum)
        update_average(self.projector, self.teacher_projector, self._momentum)

    def health(self) -> dict[str, float]:
        """Figures of the last batch, see `region_figures`, and `momentum`, the teacher's m: of a detector's last stage,
        but for what is held against the contrast, which is a sum over the stages by their weights too."""
        if self._last is None:
            return {}
        online, teacher, view = self._last
        stages = [region_figures(q, k, view.targets, self.temperature) for q, k in zip(online, teacher)]
        figures = stages[-1]
        for name in ("contrast_chance", "contrast_floor"):
            if all(name in stage for stage in stages):
                figures[name] = sum(q.weight * stage[name] for q, stage in zip(online, stages))
        return {**figures, "momentum": self._momentum}

    def train(self, mode: bool = True) -> AlignDet:
        """Training or evaluation mode of everything but a frozen backbone, which stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _untrained(net: nn.Module) -> list[nn.Module]:
    """What of a backbone is frozen as a whole: itself, or of a composite one both copies."""
    return [module for module in (net, *net.children()) if not any(p.requires_grad for p in module.parameters())]


def cosine_momentum(start: float, step: int, total_steps: int | None) -> float:
    """m = 1 - (1 - start) · (cos(π t/T) + 1) / 2; `start` where the number of steps is not known."""
    return 1 - (1 - start) * (math.cos(math.pi * step / total_steps) + 1) / 2 if total_steps else start


def numbered(online: Sequence[Sample], teacher: Sequence[Sample]) -> list[Sample]:
    """The samples of both views, online first, with ids 0 … n-1 that tell all objects of the batch apart.

    Row i of both shows one image, within which equal ids are one object, as before.
    """
    start = 0
    first: list[Sample] = []
    second: list[Sample] = []
    for q, k in zip(online, teacher, strict=True):
        found, ids = torch.cat([q.ids, k.ids]).unique(return_inverse=True)
        own, others = (ids + start).split([len(q.ids), len(k.ids)])
        first.append(replace(q, ids=own))
        second.append(replace(k, ids=others))
        start += len(found)
    return first + second
