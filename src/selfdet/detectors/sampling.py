"""Which places take part where there are more than there is room for: those with an object first."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(objects: Tensor, background: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Positions of at most `most` places, (R,) int64: those of `objects` (N,) bool first, then of `background` (N,).

    Where a kind has more than there is room for, `generator` (on the CPU) draws them without replacement.
    """
    chosen = []
    for kind in (objects, background):
        places = kind.nonzero().squeeze(1)
        if len(places) > most:
            drawn = torch.randperm(len(places), generator=generator)[:most]
            places = places[drawn.to(places.device)]
        most -= len(places)
        chosen.append(places)
    return torch.cat(chosen)


class ObjectsFirst:
    """A sampler for the library's RPN and RoI heads that draws with a generator of ours (on the CPU).

    Of each image at most `objects` anchors or RoIs with an object, and `background` without one; if None as many as
    there is room for in `together` of both kinds, which are as many as `objects` if None.
    """

    def __init__(
        self, generator: torch.Generator, objects: int, background: int | None = None, together: int | None = None
    ) -> None:
        self.generator, self.objects, self.background = generator, objects, background
        self.together = objects if together is None else together

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (N,) bool of the objects and of the background, of each image's labels (N,): above 0, 0."""
        pairs = [self._draw(each) for each in labels]
        return [objects for objects, _ in pairs], [background for _, background in pairs]

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.zeros(2, len(labels), dtype=torch.bool, device=labels.device)
        found, nothing = masks[0].clone(), masks[0].clone()
        objects = choose(labels > 0, nothing, self.objects, self.generator)
        room = self.together - len(objects) if self.background is None else self.background
        masks[0, objects] = True
        masks[1, choose(found, labels == 0, room, self.generator)] = True
        return masks[0], masks[1]
