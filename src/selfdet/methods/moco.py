"""MoCo v2: contrast an image with its other view against a queue of other images.

Legend: q query, k key, queue K × D keys of earlier batches, τ temperature.
Source: He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfdet.data.pixels import normalise
from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.methods.contrast import info_nce
from selfdet.methods.momentum import (
    BATCH_NORMS,
    Draws,
    enqueue,
    gather,
    seeded_queue,
    split_batch_norm,
    update_average,
)
from selfdet.methods.statistics import effective_rank, feature_std
from selfdet.models.heads import GlobalHead

if TYPE_CHECKING:
    from selfdet.data.views import ViewBatch
    from selfdet.models.backbones import Backbone


def unit(embeddings: Tensor) -> Tensor:
    """Normalise (N, D, …) over D in float32 at least, whatever autocast made of them."""
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return functional.normalize(embeddings.to(dtype), dim=1)


class Encoder(nn.Module):
    """Backbone and global head."""

    def __init__(self, backbone: Backbone, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.global_head = GlobalHead(backbone.channels[-1], out_channels=dim)

    def features(self, images: Tensor) -> Tensor:
        """The last map (B, C, H, W) of normalised (B, 3, h, w) images."""
        return list(self.backbone(images).values())[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, h, w) normalised images to one (B, D) unit embedding each."""
        return (unit(self.global_head(self.features(images))),)


class MoCo(Method):
    """MoCo v2 over a backbone.

    Args:
        backbone: becomes `.encoder.backbone` and is trained in place.
        dim: D, size of the embeddings.
        queue_length: K.
        momentum: share of the old weights in the key encoder's average.
        temperature: τ.
        key_batch_norm: "split" (see `split_batch_norm`) or "none": the key batch is encoded as it is.
        seed: of the heads, the queue and the shuffling.

    The key encoder is averaged once per optimiser step before the first key pass of that step; `after_step` marks the
    step's end, so gradient accumulation averages once. The very first pass averages too, which changes nothing as both
    encoders are equal then. In eval mode `forward` only computes: nothing is averaged, nothing enters the queue.

    Raises:
        UserError: an argument out of range, or a batch of one image so small that batch norm sees one value.
    """

    queue: Tensor
    queue_entered: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        queue_length: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        key_batch_norm: str = "split",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check(temperature > 0, f"temperature is {temperature}, expected a number above 0", "0.2 is usual")
        check(0 <= momentum <= 1, f"momentum is {momentum}, expected 0 to 1", "0.999 is usual")
        check(queue_length >= 1, f"queue length is {queue_length}, expected 1 or more", "65536 is usual")
        check(
            key_batch_norm in ("split", "none"),
            f"key batch norm is {key_batch_norm!r}, expected 'split' or 'none'",
            "take 'split' unless the backbone has no batch norm",
        )
        self.momentum, self.temperature, self.key_batch_norm = momentum, temperature, key_batch_norm
        # The heads follow from the seed alone, and building them leaves the caller's random state as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = self.build_encoder(backbone, dim)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", seeded_queue(queue_length, dim, seed))
        self.register_buffer("queue_entered", torch.zeros((), dtype=torch.int64))
        self.shuffle = Draws(seed)
        self._has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in self.encoder.modules())
        self._average_due = True
        self._last: dict[str, Tensor] = {}

    def build_encoder(self, backbone: Backbone, dim: int) -> Encoder:
        """Put the heads of this method on the backbone."""
        return Encoder(backbone, dim)

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the InfoNCE loss of a batch of view pairs under "loss" and "global"."""
        (q,), (k,) = self.both_views(batch)
        loss = self.contrast_images(q, k)
        self.enter(self.queue, self.queue_entered, k)
        return {"loss": loss, "global": loss}

    def both_views(self, batch: ViewBatch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Encode the query views with gradient and the key views, by the averaged encoder, without."""
        backbone = self.encoder.backbone
        height, width = batch.query.shape[-2:]
        check(
            not (self.training and self._has_batch_norm and len(batch.query) == 1)
            or max(height, width) > backbone.strides[-1],
            f"a batch of 1 image of {width} x {height} px leaves batch norm one value a channel",
            "take a batch size of 2 or more, or a larger image size",
        )
        with torch.no_grad():
            if self.training and self._average_due:
                update_average(self.encoder, self.key_encoder, self.momentum)
                self._average_due = False
            key_images = normalise(batch.key, backbone.mean, backbone.std)
            if self.training and self._has_batch_norm and self.key_batch_norm == "split":
                target = split_batch_norm(self.key_encoder, key_images, self.shuffle)
            else:
                target = self.key_encoder(key_images)
        return self.encoder(normalise(batch.query, backbone.mean, backbone.std)), target

    def contrast_images(self, q: Tensor, k: Tensor) -> Tensor:
        """InfoNCE of (B, D) queries and keys against the queue; remembers both for `health`."""
        self._last.update(q=q.detach(), k=k, mean_negative=self.queue.mean(0))
        return info_nce(q, k, self.queue, self.temperature)

    def enter(self, queue: Tensor, entered: Tensor, keys: Tensor) -> None:
        """Put the (B, D) keys of all processes into a queue: after the loss, lest a query meet its own key there."""
        if self.training:
            enqueue(queue, entered, gather(keys)[0])

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Mark the end of an optimiser step: the next pass averages the key encoder."""
        self._average_due = True

    def health(self) -> dict[str, float]:
        """Figures of the last batch: similarities, spread and effective rank of the queries, the loss of pure chance.

        `pos_similarity`, `neg_similarity`: mean cosine of a query with its key and with the queue. `feature_std`: 1 =
        spread evenly, 0 = collapsed. `effective_rank` of at most `rank_limit` = min(B, D). `loss_chance` = log(K + 1).
        `queue_filled`: share of the queue that holds keys; the rest is still random vectors.
        """
        length = len(self.queue)
        figures = {
            "loss_chance": math.log(length + 1),
            "queue_filled": min(1.0, float(self.queue_entered) / length),
        }
        if self._last:
            q = self._last["q"]
            figures["pos_similarity"] = float((q * self._last["k"]).sum(1).mean())
            figures["neg_similarity"] = float(q.mean(0) @ self._last["mean_negative"].to(q.dtype))
            figures["feature_std"] = feature_std(q)
            figures["effective_rank"] = effective_rank(q)
            figures["rank_limit"] = float(min(q.shape))
        return figures


def check(condition: bool, message: str, hint: str) -> None:
    """Raise a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message, hint)
