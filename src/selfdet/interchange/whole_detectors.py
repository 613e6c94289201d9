"""Whole detectors of torchvision, told by the names in a plain state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from selfdet.errors import UserError
from selfdet.interchange.starts import Start

BODY, WIDTH = "backbone.body.", "backbone.fpn.inner_blocks.0.0.weight"
# Nearly all of the rest would fit, and without these it finds nothing.
SECOND_VERSION = {"backbone.fpn.inner_blocks.0.1.weight", "rpn.head.conv.1.0.weight"}
TOWER = re.compile(r"head\.classification_head\.conv\..*weight")


def as_detector(start: Start, backbone: str) -> Start:
    """A state dict of torchvision's FCOS, RetinaNet, Faster or Mask R-CNN on a pyramid as a start that is a detector.

    `backbone`: the architecture of its backbone, which its names don't tell. Any other start is given back as it is.
    Raises: UserError for a Faster or Mask R-CNN of torchvision's second version, whose layers ours would leave out.
    """
    kind = _kind(start.state) if start.kind == "backbone" and not start.note else None
    if kind is None:
        return start
    if SECOND_VERSION & start.state.keys():
        raise UserError(
            f"{start.source} is a {kind} of torchvision's second version, with norms in its pyramid and a longer RPN",
            "Use weights of the first version, or of the backbone alone",
        )
    options: dict[str, Any] = {"fpn_channels": start.state[WIDTH].shape[0]}
    if kind.endswith("rcnn"):
        options["box_head"] = "2fc" if "roi_heads.box_head.fc6.weight" in start.state else "4conv1fc"
    else:
        # Their norms have weights, too, of one dimension.
        options["head_convs"] = sum(
            bool(TOWER.fullmatch(name)) and value.dim() == 4 for name, value in start.state.items()
        )
    note = {"kind": "detector", "detector": kind, "backbone": backbone, "options": options}
    return Start("detector", start.source, start.state, {**note, "classes": [], "category_ids": [], "image_size": 0})


def _kind(state: Mapping[str, Tensor]) -> str | None:
    if WIDTH not in state or not any(name.startswith(BODY) for name in state):
        return None
    if any(name.startswith("rpn.") for name in state):
        if any(name.startswith("refine.") for name in state):
            return "cascade_rcnn"
        return "mask_rcnn" if any(name.startswith("roi_heads.mask_head.") for name in state) else "faster_rcnn"
    if not any(TOWER.fullmatch(name) for name in state):
        return None
    return "fcos" if "head.regression_head.bbox_ctrness.weight" in state else "retinanet"
