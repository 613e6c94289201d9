"""DenseCL: MoCo v2 plus the same contrast cell by cell between the two views' feature maps.

Legend: q query, k key, λ dense weight, S × S cells, τ temperature.
Source: Wang et al., arXiv 2011.09157.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfdet.data.geometry import true_matches
from selfdet.methods.contrast import dense_info_nce, match_dense
from selfdet.methods.moco import Encoder, MoCo, check, unit
from selfdet.methods.momentum import Draws, gather, seeded_queue
from selfdet.methods.statistics import feature_std
from selfdet.models.heads import DenseHead

if TYPE_CHECKING:
    from selfdet.data.views import ViewBatch
    from selfdet.models.backbones import Backbone

MATCHINGS = ("max-similarity", "geometric", "random")
NEGATIVES = ("pooled", "dense")


class DenseEncoder(Encoder):
    """Backbone, global head and dense head."""

    def __init__(self, backbone: Backbone, dim: int, grid: int | None) -> None:
        super().__init__(backbone, dim)
        self.dense_head = DenseHead(backbone.channels[-1], out_channels=dim, grid=grid)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, h, w) normalised images to (B, D) unit embeddings, the features (B, C, S, S) that are matched,
        and the (B, D, S, S) cells, not normalised."""
        features = self.features(images)
        return unit(self.global_head(features)), self.dense_head.pool(features.detach()), self.dense_head(features)


class DenseCL(MoCo):
    """DenseCL over a backbone: (1 - λ) · global loss + λ · dense loss.

    Args:
        dense_weight: λ, 0 to 1. With 0 the loss is MoCo's.
        dense_warmup: steps over which λ rises linearly from 0; 0 = none.
        matching: which key cell is a query cell's positive: "max-similarity" of backbone features (the method),
            "geometric" (the cell that shows the same point; query cells outside the key view are left out) or "random".
        grid: pool maps to grid × grid cells first; None takes the last map as it is.
        negatives: what an image enters into the dense queue: "pooled", the mean of its key cells before normalisation
            (the method), or "dense", one of its key cells drawn at random.
        Others: as of `MoCo`.

    Raises:
        UserError: an argument out of range.
    """

    dense_queue: Tensor
    dense_queue_entered: Tensor
    steps: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        dense_weight: float = 0.5,
        dense_warmup: int = 0,
        matching: str = "max-similarity",
        grid: int | None = None,
        negatives: str = "pooled",
        dim: int = 128,
        queue_length: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        key_batch_norm: str = "split",
        seed: int = 0,
    ) -> None:
        check(0 <= dense_weight <= 1, f"dense weight is {dense_weight}, expected 0 to 1", "0.5 is usual")
        check(dense_warmup >= 0, f"dense warm-up is {dense_warmup} steps, expected 0 or more", "0 turns it off")
        check(grid is None or grid >= 1, f"grid is {grid}, expected 1 or more", "leave it out for the map as it is")
        check(matching in MATCHINGS, f"matching is {matching!r}", f"choose from {', '.join(MATCHINGS)}")
        check(negatives in NEGATIVES, f"negatives are {negatives!r}", f"choose from {', '.join(NEGATIVES)}")
        self._grid = grid
        super().__init__(
            backbone,
            dim=dim,
            queue_length=queue_length,
            momentum=momentum,
            temperature=temperature,
            key_batch_norm=key_batch_norm,
            seed=seed,
        )
        self.dense_weight, self.dense_warmup = dense_weight, dense_warmup
        self.matching, self.negatives = matching, negatives
        self.register_buffer("dense_queue", seeded_queue(queue_length, dim, seed + 1))
        self.register_buffer("dense_queue_entered", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Apart from `shuffle`, so that the shuffling is MoCo's whatever is drawn here.
        self.cell_draws = Draws(seed + 1)

    def build_encoder(self, backbone: Backbone, dim: int) -> Encoder:
        """Put the global and the dense head on the backbone."""
        return DenseEncoder(backbone, dim, self._grid)

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the losses of a batch of view pairs: "loss", "global" and "dense"."""
        (q, q_features, q_cells), (k, k_features, k_cells) = self.both_views(batch)
        global_loss = self.contrast_images(q, k)

        q_grid, k_grid = unit(q_cells), unit(k_cells)
        match, valid = self.match(batch, q_features, k_features)
        dense_loss = dense_info_nce(q_grid, k_grid, match, self.dense_queue, self.temperature, valid)
        mean_negative = self.dense_queue.mean(0)
        self._last.update(q_grid=q_grid.detach(), k_grid=k_grid, match=match, dense_mean_negative=mean_negative)

        self.enter(self.queue, self.queue_entered, k)
        if self.training:
            self.enter(self.dense_queue, self.dense_queue_entered, self.dense_entries(k_cells, k_grid))
        weight = self.current_weight()
        return {"loss": (1 - weight) * global_loss + weight * dense_loss, "global": global_loss, "dense": dense_loss}

    def current_weight(self) -> Tensor | float:
        """λ at this step."""
        if self.dense_warmup == 0:
            return self.dense_weight
        return self.dense_weight * (self.steps / self.dense_warmup).clamp(max=1)

    def match(self, batch: ViewBatch, q_features: Tensor, k_features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The key cell of each query cell, (B, S·S), and which of them count; None = all."""
        if self.matching == "max-similarity":
            return match_dense(q_features, k_features), None
        rows, columns = q_features.shape[-2:]
        if self.matching == "random":
            return self.draw_cells(rows * columns, len(q_features), rows * columns).to(q_features.device), None
        match, valid, _ = true_matches(batch.query_affine, batch.key_affine, batch.query.shape[-1], rows)
        return match.clamp(min=0), valid

    def dense_entries(self, k_cells: Tensor, k_grid: Tensor) -> Tensor:
        """What each image enters into the dense queue: (B, D) unit vectors."""
        if self.negatives == "pooled":
            return unit(k_cells.mean((2, 3), dtype=torch.promote_types(k_cells.dtype, torch.float32)))
        cells = k_grid.flatten(2)
        drawn = self.draw_cells(cells.shape[2], len(cells), 1).to(cells.device)
        return cells.gather(2, drawn[:, None].expand(-1, cells.shape[1], -1)).squeeze(2)

    def draw_cells(self, cells: int, images: int, count: int) -> Tensor:
        """Draw `count` cells an image: (images, count). Every process draws for all, so that their generators agree."""
        everyone, start = gather(self.dense_queue.new_empty((images, 0)))
        return self.cell_draws.integers(cells, (len(everyone), count))[start : start + images]

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Mark the end of an optimiser step: the next pass averages the key encoder, and λ's warm-up moves on."""
        super().after_step(step, total_steps)
        self.steps += 1

    def health(self) -> dict[str, float]:
        """The figures of `MoCo.health`, and those of the cells: `dense_pos_similarity`, `dense_neg_similarity`,
        `dense_feature_std`."""
        figures = super().health()
        if self._last:
            q, k = (self._last[name].flatten(2) for name in ("q_grid", "k_grid"))
            matched = k.gather(2, self._last["match"][:, None].expand(-1, k.shape[1], -1))
            cells = q.transpose(1, 2).flatten(0, 1)
            figures["dense_pos_similarity"] = float((q * matched).sum(1).mean())
            figures["dense_neg_similarity"] = float(cells.mean(0) @ self._last["dense_mean_negative"].to(q.dtype))
            figures["dense_feature_std"] = feature_std(cells)
        return figures
