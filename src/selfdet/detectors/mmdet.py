"""mmdet's RetinaNet and FCOS beside torchvision's: which settings of mmdet's make of one network the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdet.errors import UserError
from selfdet.models.fpn import Coarse

# By kind what may be said, under mmdet's names, and what holds where it isn't: all as in its published settings.
FORMS: dict[str, dict[str, Any]] = {
    "retinanet": {"add_extra_convs": "on_input", "relu_before_extra_convs": False, "iou_threshold": 0.5},
    "fcos": {
        "add_extra_convs": "on_output",
        "relu_before_extra_convs": True,
        "norm_on_bbox": False,
        "centerness_on_reg": False,
        "iou_threshold": 0.5,
    },
}
SOURCES = {"on_input": "c5", "on_output": "p5"}


def mmdet_form(kind: str, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """All settings of a network of mmdet's, of those that are given; None for torchvision's own.

    `add_extra_convs`: whether the coarse levels are made of the backbone's last map ("on_input") or the pyramid's
    ("on_output"). `relu_before_extra_convs`: whether a ReLU stands before the last of them. `iou_threshold`: from which
    overlap on a box suppresses another of its class. Of FCOS: `norm_on_bbox`, whether distances come through a ReLU
    and in strides, or as exponentials; `centerness_on_reg`, whether the centerness stands on the tower of the boxes or
    on that of the classes.

    Raises: UserError for a name or value that is none.
    """
    if given is None:
        return None
    known = FORMS[kind]
    for name, value in given.items():
        if name not in known:
            raise UserError(f"mmdet {name}: no setting of mmdet's that {kind} takes", f"It takes {', '.join(known)}")
        if name == "add_extra_convs":
            sound = value in SOURCES
        elif isinstance(known[name], bool):
            sound = isinstance(value, bool)
        else:
            sound = isinstance(value, float) and 0 < value < 1
        if not sound:
            raise UserError(f"mmdet {name} {value!r}", f"It is usually {known[name]!r}")
    return {**known, **given}


def coarse_levels(form: Mapping[str, Any] | None, normed: bool) -> Coarse:
    """How a network makes its two coarsest levels; with norms, where the pyramid is `normed`, only in mmdet's."""
    if form is None:
        return Coarse()
    return Coarse(SOURCES[form["add_extra_convs"]], form["relu_before_extra_convs"], normed)
