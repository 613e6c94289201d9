"""Segmentation beside detection: a class for every pixel, by an FCN head on an atrous backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfdet.data.pixels import normalise
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.network import Network, Part
from selfdet.errors import UserError
from selfdet.models.atrous import STRIDE
from selfdet.models.backbones import Backbone
from selfdet.models.heads import FCNHead

HEAD_CONVS = 2


class Segmenter(Network):
    """An FCN in `.net`, named as torchvision's: `backbone.…` and `classifier.…`; build it with `fcn`."""

    def __init__(self, net: nn.Module, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """Backbone, head, and the classifier (`last`), which starts afresh with other classes."""
        last = len(self.net.get_submodule("classifier")) - 1  # type: ignore[arg-type]
        return {
            "backbone": Part([r"backbone\."]),
            "last": Part([rf"classifier\.{last}\."], reinit=True),
            "head": Part([rf"classifier\.(?!{last}\.)"]),
        }

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild it."""
        return {
            "segmenter": "fcn",
            "backbone": self.backbone.name,
            "num_classes": self.num_classes,
            "options": dict(self.options),
        }

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """Images (3, h, w) uint8 RGB as (B, 3, H, W) float, normalised with the backbone's statistics, zero-padded at
        the right and bottom to a common multiple of the stride (8 px)."""
        weight = next(self.net.parameters())
        height, width = (-(-max(image.shape[side] for image in images) // STRIDE) * STRIDE for side in (-2, -1))
        tensor = torch.zeros(len(images), 3, height, width, device=weight.device)
        for row, image in zip(tensor, images):
            given = image.as_subclass(Tensor).to(weight.device, non_blocking=True)
            row[:, : image.shape[-2], : image.shape[-1]] = normalise(given, self.backbone.mean, self.backbone.std)
        return tensor.to(weight.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, K, H, W) float32, before the softmax, of every pixel of (B, 3, H, W) normalised images; their
        sides are multiples of 8 px."""
        maps = self.backbone.maps(self.net.get_submodule("backbone"), images)
        cells = self.net.get_submodule("classifier")(list(maps.values())[-1])
        # In float32 whatever the precision: what is interpolated is compared.
        return enlarge(cells.float(), (images.shape[-2], images.shape[-1]))


def enlarge(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (B, K, h, w) at `size` (H, W) pixels, bilinear between the centres of cells."""
    return functional.interpolate(scores, size, mode="bilinear", align_corners=False)


def fcn(num_classes: int, backbone: Backbone, *, head_convs: int = HEAD_CONVS, batch_norm: str = "train") -> Segmenter:
    """An FCN for `num_classes` on a backbone from `build_atrous_backbone`.

    `head_convs`: 3×3 convolutions of the head; with 1 the state dict is that of torchvision's own FCN. `batch_norm`:
    of the backbone, see `apply_batch_norm`; the head's trains, with "sync" over all processes.
    Raises: UserError for options out of range.
    Source: FCN, arXiv 1411.4038; the benchmark of DenseCL, arXiv 2011.09157, section 4.2.
    """
    if head_convs < 1:
        raise UserError(f"--head-convs is {head_convs}, expected 1 or more", "Leave it out for 2")
    head = FCNHead(backbone.channels[-1], num_classes, head_convs)
    net = nn.ModuleDict({"backbone": backbone.net, "classifier": head})
    built = Segmenter(net, backbone, num_classes, {"head_convs": head_convs, "batch_norm": batch_norm})
    apply_batch_norm(built, batch_norm)
    return built
