"""What we use of torchvision's detectors beyond its documented interface, in one place: a contract test for each.

Legend: B images, N anchors an image (those of a cell one after the other, cells row by row, the finest level first), K
classes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.misc import Conv2dNormActivation

__all__ = [
    "FCOS",
    "CellGenerator",
    "ExactAnchorGenerator",
    "FCOSHead",
    "OneStageNet",
    "RetinaNet",
    "UnroundedAnchorGenerator",
    "anchors_of",
    "assignment",
    "box_losses",
    "box_outputs",
    "class_logits",
    "decoded",
    "head_outputs",
    "net_detections",
    "net_losses",
    "retinanet_head",
]

OneStageNet: TypeAlias = "FCOS | RetinaNet"
Outputs = dict[str, Tensor]
Targets = list[dict[str, Tensor]]


class ExactAnchorGenerator(AnchorGenerator):
    """torchvision's anchors, never coarser than float32.

    The library takes the anchors' type from the maps: under bfloat16 autocast positions above 256 px would be off by
    up to 4 px. Double maps keep double anchors.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        super().set_cell_anchors(exact, device)


class UnroundedAnchorGenerator(ExactAnchorGenerator):
    """Anchors whose sides are no whole pixels, on levels whose strides are known, as mmdet and detectron2 place them.

    torchvision rounds the corners of anchors, by up to half a pixel, and guesses the coarsest stride from the padding.
    """

    offset = 0.0  # of an anchor's centre from the corner of its cell, in sides

    def __init__(self, sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...], strides: list[int]) -> None:
        super().__init__(sizes, (ratios,) * len(sizes))
        self.strides = strides

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """The anchors (N, 4) xyxy px of a cell at 0, in the library's order: each ratio with every scale."""
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        halves = torch.stack([(sides / roots).flatten(), (sides * roots).flatten()], 1) / 2
        return torch.cat([-halves, halves], 1) + self.offset * sides.repeat(len(aspect_ratios))[:, None]

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """The anchors (N, 4) xyxy px of each level."""
        known = [[torch.full_like(side, stride) for side in sides] for stride, sides in zip(self.strides, strides)]
        return super().grid_anchors(grid_sizes, known)


class CellGenerator(UnroundedAnchorGenerator):
    """Anchors around the centres of cells: of their sides, the cells themselves."""

    offset = 0.5


def retinanet_head(channels: int, anchors: int, num_classes: int, convs: int) -> RetinaNetHead:
    """RetinaNet's head with towers of `convs` convolutions, named and initialised as the library's four are."""
    head = RetinaNetHead(channels, anchors, num_classes)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = nn.Sequential(
            *(Conv2dNormActivation(channels, channels, norm_layer=None) for _ in range(convs)),
        )
        for layer in branch.conv.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
    return head


def _exact(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def head_outputs(net: OneStageNet, maps: list[Tensor]) -> Outputs:
    """The head's "cls_logits" (B, N, K), "bbox_regression" (B, N, 4) and, of FCOS, "bbox_ctrness" (B, N, 1), float32 or
    double."""
    return {name: _exact(value) for name, value in net.head(maps).items()}


def box_outputs(net: OneStageNet, maps: list[Tensor]) -> Outputs:
    """`head_outputs` without the classification branch."""
    found = net.head.regression_head(maps)
    values = found if isinstance(found, tuple) else (found,)
    return {name: _exact(value) for name, value in zip(("bbox_regression", "bbox_ctrness"), values)}


def class_logits(net: OneStageNet, features: list[Tensor]) -> Tensor:
    """The classifier's logits (B, N, K), float32 or double, of the classification tower's features on each level."""
    rows = []
    for level in features:
        logits = net.head.classification_head.cls_logits(level)
        # (B, A · K, H, W) to (B, H · W · A, K): the anchors of a cell are neighbours.
        logits = logits.unflatten(1, (-1, net.head.classification_head.num_classes)).permute(0, 3, 4, 1, 2)
        rows.append(logits.flatten(1, 3))
    return _exact(torch.cat(rows, 1))


def anchors_of(net: OneStageNet, tensor: Tensor, sizes: list[tuple[int, int]], maps: list[Tensor]) -> list[Tensor]:
    """Each image's anchors (N, 4) xyxy px."""
    return net.anchor_generator(ImageList(tensor, sizes), maps)


def _anchors_per_level(net: OneStageNet, maps: list[Tensor]) -> list[int]:
    each = net.anchor_generator.num_anchors_per_location()
    return [level.shape[-2] * level.shape[-1] * count for level, count in zip(maps, each)]


def _losses_of(net: Any, of: OneStageNet, targets: Targets, outputs: Outputs, anchors: list[Tensor], maps: Any) -> Any:
    """`compute_loss` of the class of `of` with `net` as self."""
    levels = [_anchors_per_level(of, maps)] if isinstance(of, FCOS) else []
    return type(of).compute_loss(net, targets, outputs, anchors, *levels)


def net_losses(
    net: OneStageNet,
    tensor: Tensor,
    sizes: list[tuple[int, int]],
    maps: list[Tensor],
    outputs: Outputs,
    targets: Targets,
) -> dict[str, Tensor]:
    """The network's own "classification", "bbox_regression" and, of FCOS, "bbox_ctrness" losses, autocast off.

    `tensor` (B, 3, H, W) and `sizes` (h, w) are the padded images, `outputs` the head's; `targets` hold "boxes" (M, 4)
    xyxy px of those images and "labels" (M,) 0…K−1. Images without boxes are background throughout.
    """
    with torch.autocast(tensor.device.type, enabled=False):
        return _losses_of(net, net, targets, outputs, anchors_of(net, tensor, sizes, maps), maps)


class _Assigning:
    """A network in all but its head, which gives back what the anchors were assigned instead of losses."""

    def __init__(self, net: OneStageNet) -> None:
        self.net = net
        self.head = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def compute_loss(
        self, targets: Targets, head_outputs: Outputs, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> list[Tensor]:
        """The last argument."""
        return matched_idxs


@torch.no_grad()
def assignment(net: OneStageNet, anchors: list[Tensor], maps: list[Tensor], targets: Targets) -> Tensor:
    """What the network's own training would assign to each anchor: (B, N) int64 row in its image's "boxes", −1 for
    background, −2 where RetinaNet trains neither."""
    with torch.autocast(anchors[0].device.type, enabled=False):
        return torch.stack(_losses_of(_Assigning(net), net, targets, {}, anchors, maps))


def box_losses(
    net: OneStageNet, outputs: Outputs, targets: Targets, anchors: list[Tensor], matched: Tensor
) -> dict[str, Tensor]:
    """The network's own losses but the classification, of an assignment (B, N) as of `assignment`; autocast off."""
    regression = outputs["bbox_regression"]
    with torch.autocast(regression.device.type, enabled=False):
        if isinstance(net, RetinaNet):
            loss = net.head.regression_head.compute_loss(targets, outputs, anchors, list(matched))
            return {"bbox_regression": loss}
        # FCOS makes all its losses at once: the classification gets one class and logits that nothing hangs on.
        blank = [{**target, "labels": torch.zeros_like(target["ids"])} for target in targets]
        losses = net.head.compute_loss(
            blank, {**outputs, "cls_logits": torch.zeros_like(regression[..., :1])}, anchors, list(matched)
        )
        return {name: loss for name, loss in losses.items() if name != "classification"}


def decoded(net: OneStageNet, regression: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (R, 4) xyxy px of "bbox_regression" (R, 4) at the anchors (R, 4)."""
    coder = net.box_coder
    return coder.decode_single(regression, anchors) if isinstance(net, RetinaNet) else coder.decode(regression, anchors)


def net_detections(
    net: OneStageNet, tensor: Tensor, sizes: list[tuple[int, int]], maps: list[Tensor], outputs: Outputs
) -> list[dict[str, Tensor]]:
    """The network's own thresholding and suppression: per image "boxes" (M, 4) xyxy px of the unpadded image, "scores"
    (M,) falling, "labels" (M,)."""
    levels = _anchors_per_level(net, maps)
    with torch.autocast(tensor.device.type, enabled=False):
        split = {name: list(value.split(levels, dim=1)) for name, value in outputs.items()}
        anchors = [list(one.split(levels)) for one in anchors_of(net, tensor, sizes, maps)]
        return net.postprocess_detections(split, anchors, sizes)
