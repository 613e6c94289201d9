"""SimCLR: contrast an image's two views with all other views of the batch, through one encoder and without a queue.

Legend: z embedding, B images, τ temperature.
Source: Chen et al., arXiv 2002.05709.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfdet.data.pixels import normalise
from selfdet.methods.base import Method
from selfdet.methods.contrast import nt_xent
from selfdet.methods.moco import Encoder, check
from selfdet.methods.momentum import gather, world_size
from selfdet.methods.statistics import effective_rank, feature_std

if TYPE_CHECKING:
    from selfdet.data.views import ViewBatch
    from selfdet.models.backbones import Backbone


class SimCLR(Method):
    """SimCLR over a backbone, with the views, the head and the optimiser of `MoCo`: only the objective differs.

    Args:
        backbone: becomes `.encoder.backbone` and is trained in place.
        dim: size of the embeddings.
        temperature: τ.
        seed: of the head.

    Both views go through the encoder in one pass, so batch norm sees them together. With several processes the other
    views are those of all of them; a micro-batch of an accumulated step has its own only, as fewer negatives.

    Raises:
        UserError: an argument out of range, or a batch of one image, which has nothing to be told from.
    """

    def __init__(self, backbone: Backbone, *, dim: int = 128, temperature: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        check(temperature > 0, f"temperature is {temperature}, expected a number above 0", "0.1 is usual")
        self.temperature = temperature
        # The head follows from the seed alone, and building it leaves the caller's random state as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(backbone, dim)
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the NT-Xent loss of a batch of view pairs under "loss" and "global"."""
        backbone, count = self.encoder.backbone, len(batch.query)
        check(
            count * world_size() > 1,
            "SimCLR tells an image from the others of its batch, and this batch has 1 image",
            "take a batch size of 2 or more per micro-batch, better hundreds",
        )
        images = torch.cat([normalise(view, backbone.mean, backbone.std) for view in (batch.query, batch.key)])
        (z,) = self.encoder(images)
        first, second = of_all(z[:count]), of_all(z[count:])
        self._last = first.detach(), second.detach()
        loss = nt_xent(first, second, self.temperature)
        return {"loss": loss, "global": loss}

    def health(self) -> dict[str, float]:
        """Figures of the last batch, of all processes, named as those of `MoCo`.

        `pos_similarity`, `neg_similarity`: mean cosine of a view with the other one of its image and with those of
        other images. `feature_std`: 1 = spread evenly, 0 = collapsed. `effective_rank` of at most `rank_limit`.
        `loss_chance` = log(2B − 1).
        """
        if self._last is None:
            return {}
        first, second = self._last
        count = len(first)
        positive = (first * second).sum(1).mean()
        between = first @ second.T
        others = (between.sum() - between.diagonal().sum()) / max(1, count * (count - 1))
        return {
            "loss_chance": math.log(2 * count - 1),
            "pos_similarity": float(positive),
            "neg_similarity": float(others),
            "feature_std": feature_std(first),
            "effective_rank": effective_rank(first),
            "rank_limit": float(min(first.shape)),
        }


def of_all(embeddings: Tensor) -> Tensor:
    """The (n, D) embeddings of all processes, in rank order, with gradients to this one's own.

    Every process then computes the whole loss. Its own embeddings get their gradient as many times as there are
    processes: the mean over these, which data-parallel training takes, is the gradient of the loss.
    """
    world = world_size()
    if world == 1:
        return embeddings
    everyone, start = gather(embeddings)
    own = embeddings.detach() + world * (embeddings - embeddings.detach())
    return torch.cat([everyone[:start], own, everyone[start + len(own) :]])
