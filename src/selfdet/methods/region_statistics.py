"""Figures of two views' regions that show whether a box-domain method has something to learn, and learns it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from selfdet.detectors.base import Regions
from selfdet.methods.statistics import feature_std


@torch.no_grad()
def region_figures(
    online: Regions, teacher: Regions, targets: Sequence[dict[str, Tensor]], temperature: float
) -> dict[str, float]:
    """What happened in one batch; what cannot be told is left out, as where no object has a place.

    Args:
        online, teacher: places of the two views; ids 0 … n-1 tell the batch's objects apart.
        targets: per image of the online view "boxes" (M, 4) xyxy px and "ids" (M,).
        temperature: τ of the contrast.

    Returns:
        `proposals_per_image`; `ids_per_image`, how many of them got a place online; `positives_per_image`, places with
        an id; `positives_per_id`, of the ids that have any; `ids_in_both`, the share of these ids that have a place in
        the teacher's view too. `contrast_chance`: the contrast if all similarities were equal, log(1 + N) for an id
        with N negatives, mean over ids; `contrast_floor`: if negatives were at right angles to their query and keys
        equal to it, log(1 + N·exp(-1/τ)). `box_iou`: mean IoU of the predicted boxes with the proposals. `feature_std`:
        spread of the online embeddings, 1 = even, 0 = collapsed. And the detector's own figures.
    """
    images, ids = len(targets), torch.cat([target["ids"] for target in targets])
    objects = int(max(places.max() if len(places) else -1 for places in (online.ids, teacher.ids, ids))) + 1
    own, others = (_count(regions.ids, objects) for regions in (online, teacher))
    seen = own > 0
    figures = {
        "proposals_per_image": len(ids) / images,
        "ids_per_image": float(seen.sum()) / images,
        "positives_per_image": float(own.sum()) / images,
    }
    if bool(seen.any()):
        own, others = own[seen], others[seen]
        negatives = len(online.ids) + len(teacher.ids) - own - others
        figures["positives_per_id"] = float(own.mean())
        figures["ids_in_both"] = float((others > 0).double().mean())
        figures["contrast_chance"] = float(negatives.log1p().mean())
        figures["contrast_floor"] = float((negatives * math.exp(-1 / temperature)).log1p().mean())
        figures["box_iou"] = _box_iou(online, targets, objects)
    if len(online.ids):
        figures["feature_std"] = feature_std(functional.normalize(online.embeddings.float(), dim=1))
    return figures | {name: float(value) for name, value in online.figures.items()}


def _count(ids: Tensor, objects: int) -> Tensor:
    """How many places each id has, (objects,) double."""
    return ids[ids >= 0].bincount(minlength=objects).double()


def _box_iou(regions: Regions, targets: Sequence[dict[str, Tensor]], objects: int) -> float:
    """Mean IoU of the boxes of the places that have an id with the box of that id."""
    placed = regions.ids >= 0
    boxes = regions.boxes[placed]
    proposals = boxes.new_zeros(objects, 4)
    for target in targets:
        proposals[target["ids"]] = target["boxes"].to(boxes.dtype)
    wanted = proposals[regions.ids[placed]]
    corners = torch.maximum(boxes[:, :2], wanted[:, :2]), torch.minimum(boxes[:, 2:], wanted[:, 2:])
    shared = _area(torch.cat(corners, 1))
    return float((shared / (_area(boxes) + _area(wanted) - shared)).mean())


def _area(boxes: Tensor) -> Tensor:
    """(R,) of (R, 4) xyxy; 0 where a side is negative."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
