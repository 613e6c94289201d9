"""Detectors that differ in one branch alone, so that the weights of the one are a start for the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfdet.detectors.base import Detector
from selfdet.detectors.network import Part
from selfdet.errors import UserError

# Mask R-CNN is Faster R-CNN on a pyramid with a branch for masks.
RELATIVES = {"faster_rcnn", "mask_rcnn"}
PRETRAINED = "aligndet"  # the method in the note of a detector that has seen no label


def options_for(key: str, note: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the builder of the detector `key` takes over of a start that is a detector, by its note.

    Raises: UserError when only its backbone would fit.
    """
    own, options = note["detector"], dict(note["options"])
    if own == key:
        return options
    if not {own, key} <= RELATIVES:
        raise UserError(
            f"{source} is a {own}, not a {key}: of its weights only the backbone would fit",
            f"Leave --detector out, or pre-train a {key}; a run's backbone.safetensors suits any detector",
        )
    if options.pop("neck", "fpn") != "fpn":
        raise UserError(
            f"{source} is a {own} with the neck c4, and a {key} has a pyramid: only the backbone would fit",
            f"Leave --detector out, or start from weights of the backbone alone; {key} has the neck fpn",
        )
    return options


def handed_over(detector: Detector, key: str, note: Mapping[str, Any], keep_box_outputs: bool) -> dict[str, Part]:
    """The parts of the detector `key`, those marked `reinit` that start afresh from a start with this note.

    What only labels train is fresh, too, where the start has not seen any or is of a detector without it.
    """
    parts = detector.parts(keep_box_outputs)
    without = key == "cascade_rcnn" and not note["options"].get("masks")  # of Mask R-CNN it is no option
    if note["detector"] == key and note.get("method") != PRETRAINED and not without:
        return parts
    names = list(detector.net.state_dict())
    return {
        name: replace(part, reinit=True) if all(map(detector.labels_only.holds, filter(part.holds, names))) else part
        for name, part in parts.items()
    }
