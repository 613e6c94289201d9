"""A detector as a folder for torchvision: its weights, what they belong to, and a program that puts both together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.interchange.companions.rebuild import NETWORKS
from selfdet.interchange.companions.texts import text_of
from selfdet.interchange.export_check import check_detector
from selfdet.interchange.export_words import differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.starts import save_detector
from selfdet.training.rundir import write_text

WEIGHTS, DESCRIPTION, PROGRAM = "detector.safetensors", "detector.json", "rebuild.py"
TRAINING = {"batch_norm", "teacher_rois"}  # options of a detector that leave its detections alone
PYRAMID = {"fpn_channels", "neck_norm", "box_head", "regions"}  # those that say nothing of one without a pyramid


def export_detector(folder: Path, given: Outgoing) -> Written:
    """Write a detector for torchvision, and compare what it finds there.

    Raises: UserError for one that torchvision's parts cannot be put together to; ExportMismatchError.
    """
    detector, note = given.network, given.note
    if note["detector"] not in NETWORKS:
        raise UserError(
            f"--init {given.source} is a {note['detector']}; export to torchvision writes {', '.join(NETWORKS)} only",
            "Use --to transformers, which has DETRs",
        )
    write_detector(folder, detector, note)
    figures = check_detector(folder / PROGRAM, folder / WEIGHTS, detector, note["image_size"])
    return Written(figures, f"rebuilt without selfdet, {differences(figures)}")


def write_detector(folder: Path, detector: Detector, note: Mapping[str, Any]) -> None:
    """Write detector.safetensors (names of torchvision's model), detector.json and rebuild.py into `folder`.

    `note` is the weights file's own, as `load_detector` returns it; it goes along, so that selfdet reads the weights
    again.
    """
    save_detector(folder / WEIGHTS, detector, note)
    write_text(folder / DESCRIPTION, json.dumps(describe(detector, note), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / PROGRAM, text_of("rebuild"))


def describe(detector: Detector, note: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the weights that a rebuilt detector needs, as plain values; sizes and strides in pixels.

    `image_size` is the long side every image is resized to; `channels` are those of the backbone's maps that the
    pyramid stands on, or, without one, of the map that is looked at and of the stage that looks at its regions. The
    detector's `config` has the rest; what its kind needs, `rebuild.py` finds there.
    """
    config = detector.config()
    backbone = detector.backbone
    net: Any = detector.net
    fpn = getattr(net.backbone, "fpn", None)
    levels, left_out = (2, TRAINING | PYRAMID) if fpn is None else (len(fpn.inner_blocks), TRAINING)
    options = {name: value for name, value in config["options"].items() if name not in left_out}
    own = {name: value for name, value in config.items() if name not in ("num_classes", "options")}
    return {
        **own,
        **options,
        "backbone": {
            "library": backbone.library,
            "name": backbone.library_name,
            "channels": list(backbone.channels[-levels:]),
        },
        "image_size": note["image_size"],
        "classes": list(note["classes"]),
        "category_ids": list(note["category_ids"]),
        "made_with": {name: version(name) for name in ("selfdet", "torch", "torchvision", "timm")},
    }
