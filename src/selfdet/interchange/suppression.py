"""Non-maximum suppression over batches, for graphs that others run: as an operator of ONNX, and with torchvision's.

Legend: B images, N boxes each, M boxes that are left of all images.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.ops import nms


class Suppression(Protocol):
    """Which of boxes (B, N, 4) xyxy px are left, the best of each image first: (M, 2) int64, image and place.

    Boxes compete with those of the same of `groups` (B, N) int64. At most `most` of an image are left, of those whose
    `scores` (B, N) are above `threshold` (1,).
    """

    def __call__(
        self, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor, most: int, overlap: float
    ) -> Tensor: ...


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor, most: int, overlap: float) -> Tensor:
    """The `Suppression` of torchvision."""
    images, places = torch.where(scores > threshold)
    # Apart by more than they are large, nothing of one group or image meets another's; in double the boxes stay exact.
    side = boxes.abs().max().double() + 1
    number = images * (groups.max() + 1) + groups[images, places]
    apart = boxes[images, places].double() + 2 * side * number[:, None]
    scores = scores[images, places].double()
    # A program of torch.export holds torchvision's `nms` to leave at least two: these meet no other box.
    corners = -side * torch.tensor([[4.0], [6.0]], dtype=torch.float64, device=boxes.device).expand(-1, 4)
    more = corners + corners.new_tensor([0.0, 0, 1, 1])
    kept = nms(torch.cat([apart, more]), torch.cat([scores, scores.new_full((2,), -1.0)]), overlap)
    kept = kept[kept < images.shape[0]]
    kept = kept[torch.argsort(images[kept], stable=True)]
    images, places = images[kept], places[kept]
    starts = torch.searchsorted(images, images)
    left = torch.where(torch.arange(images.shape[0], device=images.device) - starts < most)[0]
    return torch.stack([images[left], places[left]], 1)


@torch.library.custom_op("selfdet::suppress", mutates_args=())
def _suppress(boxes: Tensor, scores: Tensor, threshold: Tensor, most: int, overlap: float) -> Tensor:
    return suppressed(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), threshold, most, overlap)


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: Tensor, most: int, overlap: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


def suppressed_by_onnx(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor, most: int, overlap: float
) -> Tensor:
    """The `Suppression` that `onnx_operators` makes one operator of ONNX."""
    side = boxes.max() + 1
    return _suppress(boxes + groups[..., None].to(boxes.dtype) * side, scores, threshold, most, overlap)


def onnx_operators() -> dict[Any, Any]:
    """What `torch.onnx.export` takes as `custom_translation_table`."""
    from onnxscript import opset18

    op: Any = opset18

    def translated(boxes: Any, scores: Any, threshold: Any, most: int, overlap: float) -> Any:
        of_one_class = op.Unsqueeze(scores, op.Constant(value_ints=[1]))
        limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[overlap])
        found = op.NonMaxSuppression(boxes, of_one_class, *limits, threshold)
        return op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)

    return {torch.ops.selfdet.suppress.default: translated}
