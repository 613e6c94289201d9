"""What we use of torchvision's detectors beyond its documented interface, in one place: a contract test for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList

__all__ = ["FCOS", "ExactAnchorGenerator", "FCOSHead", "FCOSOutputs", "fcos_detections", "fcos_losses", "fcos_outputs"]

FCOSOutputs = dict[str, Tensor]


class ExactAnchorGenerator(AnchorGenerator):
    """torchvision's anchors, never coarser than float32.

    The library takes the anchors' type from the maps: under bfloat16 autocast positions above 256 px would be off by
    up to 4 px. Double maps keep double anchors.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        super().set_cell_anchors(exact, device)


def fcos_outputs(net: FCOS, maps: list[Tensor]) -> FCOSOutputs:
    """The head's "cls_logits" (B, A, K), "bbox_regression" (B, A, 4) and "bbox_ctrness" (B, A, 1), float32 or double.

    A counts the cells of all levels, finest level first, row by row.
    """
    return {name: value if value.dtype == torch.float64 else value.float() for name, value in net.head(maps).items()}


def _anchors(net: FCOS, tensor: Tensor, sizes: list[tuple[int, int]], maps: list[Tensor]) -> list[Tensor]:
    return net.anchor_generator(ImageList(tensor, sizes), maps)


def _cells(maps: list[Tensor]) -> list[int]:
    return [level.shape[-2] * level.shape[-1] for level in maps]


def fcos_losses(
    net: FCOS,
    tensor: Tensor,
    sizes: list[tuple[int, int]],
    maps: list[Tensor],
    outputs: FCOSOutputs,
    targets: list[dict[str, Tensor]],
) -> dict[str, Tensor]:
    """FCOS's own "classification", "bbox_regression" and "bbox_ctrness" losses of `outputs`, autocast off.

    `tensor` (B, 3, H, W) and `sizes` (h, w) are the padded images; `targets` hold "boxes" (N, 4) xyxy px of those
    images and "labels" (N,) 0…K−1. Images without boxes are background throughout.
    """
    with torch.autocast(tensor.device.type, enabled=False):
        return net.compute_loss(targets, outputs, _anchors(net, tensor, sizes, maps), _cells(maps))


def fcos_detections(
    net: FCOS, tensor: Tensor, sizes: list[tuple[int, int]], maps: list[Tensor], outputs: FCOSOutputs
) -> list[dict[str, Tensor]]:
    """FCOS's own thresholding and suppression: per image "boxes" (N, 4) xyxy px of the unpadded image, "scores"
    (N,) falling, "labels" (N,)."""
    cells = _cells(maps)
    with torch.autocast(tensor.device.type, enabled=False):
        split = {name: list(value.split(cells, dim=1)) for name, value in outputs.items()}
        anchors = [list(one.split(cells)) for one in _anchors(net, tensor, sizes, maps)]
        return net.postprocess_detections(split, anchors, sizes)
