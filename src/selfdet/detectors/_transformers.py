"""What all DETRs need of transformers beyond its documented interface: a contract test for each.

The extra `detr` has the library.

Legend: B images, Q queries, K classes, N boxes of an image; (h, w) a map's cells.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfdet.errors import UserError
from selfdet.models.backbones import Backbone

# How the library calls what each of its classes loses, as "loss_class".
CLASS_LOSSES = ("loss_ce", "loss_vfl")


class Maps(nn.Module):
    """A backbone in the place of the library's own, its weights in `.model` under their own names."""

    def __init__(self, backbone: Backbone, levels: int) -> None:
        super().__init__()
        self.model = backbone.net
        self.levels = levels
        object.__setattr__(self, "backbone", backbone)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The last maps (B, C, h, w) of images (B, 3, H, W), each with the mask (B, h, w) of what is no padding."""
        backbone: Any = self.backbone
        maps = list(backbone.maps(self.model, pixel_values).values())[-self.levels :]
        return [(each, shrunk(pixel_mask, each.shape[-2:])) for each in maps]


def shrunk(mask: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """A mask (B, H, W) of pixels as one of the cells (B, h, w) of a map, by the pixel at each cell's first corner."""
    return nn.functional.interpolate(mask[None].float(), size=tuple(size))[0].bool()


def library(key: str) -> Any:
    """The module transformers, for the detector `key`. Raises: UserError where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise UserError(f"{key} needs transformers, which is not installed", "pip install 'selfdet[detr]'") from None


def least_backbone(levels: int) -> Any:
    """The configuration of the smallest backbone with so many maps: the library builds one of its own, whatever is
    done, and ours takes its place."""
    from transformers import ResNetConfig

    stages: dict[str, Any] = {"hidden_sizes": [1] * levels, "depths": [1] * levels}
    stages["out_features"] = [f"stage{stage + 1}" for stage in range(levels)]
    return ResNetConfig(embedding_size=1, layer_type="basic", **stages)


def begin_as_published(*parts: nn.Module) -> None:
    """Xavier's start for linear layers, torch's own for convolutions, norms and tables; those of deformable attention
    stay as they are. The library's start is that of language models: a deviation of 0.02, in RT-DETR even of norms."""
    for part in parts:
        for name, module in part.named_modules():
            if name.endswith(("sampling_offsets", "attention_weights")):
                continue
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif hasattr(module, "reset_parameters") and not isinstance(module, nn.MultiheadAttention):
                module.reset_parameters()


class Criterion(NamedTuple):
    """The library's loss of one network: `loss` has `.matcher` and `.get_loss(kind, …)`, asked for `kinds`; `weights`
    by the names that it gives."""

    loss: Any
    kinds: tuple[str, ...]
    weights: dict[str, float]


class Matched:
    """The library's own matching and losses of the queries of one layer.

    `logits` (B, Q, ·) as the network gives them; `boxes` (B, Q, 4) and `targets`' "boxes" (N, 4) cx cy w h as shares
    of their frame, "class_labels" (N,) 0…K−1. `indices`: instead of matching, for each image the queries and targets
    that belong together.
    """

    def __init__(
        self,
        criterion: Criterion,
        logits: Tensor,
        boxes: Tensor,
        targets: list[dict[str, Tensor]],
        indices: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.criterion, self.targets = criterion, targets
        self.outputs = {"logits": logits, "pred_boxes": boxes}
        # The library refuses boxes that are no numbers with an error of its own; the loop has a better one for losses.
        self.sound = bool(boxes.isfinite().all()) and bool(logits.isfinite().all())
        detached = {name: value.detach().nan_to_num(0.5, 0.5, 0.5) for name, value in self.outputs.items()}
        self.indices = criterion.loss.matcher(detached, targets) if indices is None else indices

    def rows(self) -> Tensor:
        """Which target of its image each query has, (B, Q) int64, −1 for none."""
        rows = torch.full(self.outputs["logits"].shape[:2], -1)
        for row, (queries, targets) in zip(rows, self.indices):
            row[queries] = targets
        return rows.to(self.outputs["logits"].device)

    def losses(self, share: float = 1.0) -> dict[str, Tensor]:
        """ "loss_class", "loss_bbox" (L1) and "loss_giou", weighted: scalars, on the graph without targets too.

        `share`: of the number of boxes that losses are divided by, how often each counts.
        """
        if not self.sound:
            lost = self.outputs["logits"].sum() + self.outputs["pred_boxes"].sum()
            return dict.fromkeys(("loss_class", "loss_bbox", "loss_giou"), lost * torch.nan)
        count = max(1, sum(len(target["boxes"]) for target in self.targets)) * share
        found: dict[str, Tensor] = {}
        for kind in self.criterion.kinds:
            found.update(self.criterion.loss.get_loss(kind, self.outputs, self.targets, self.indices, count))
        weighted = {name: weight * found[name] for name, weight in self.criterion.weights.items()}
        return {"loss_class" if name in CLASS_LOSSES else name: loss for name, loss in weighted.items()}
