"""A detector as a folder for torchvision: its weights, what they belong to, and a program that puts both together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfdet.detectors.base import Detector
from selfdet.interchange.starts import save_detector
from selfdet.training.rundir import write_text

WEIGHTS, DESCRIPTION, PROGRAM = "detector.safetensors", "detector.json", "rebuild.py"


def write_detector(folder: Path, detector: Detector, note: Mapping[str, Any]) -> None:
    """Write detector.safetensors (names of torchvision's model), detector.json and rebuild.py into `folder`.

    `note` is the weights file's own, as `load_detector` returns it; it goes along, so that selfdet reads the weights
    again.
    """
    save_detector(folder / WEIGHTS, detector, note)
    write_text(folder / DESCRIPTION, json.dumps(describe(detector, note), indent=2, ensure_ascii=False) + "\n")
    program = Path(__file__).with_name("export_rebuild.py").read_text(encoding="utf-8")
    write_text(folder / PROGRAM, program)


def describe(detector: Detector, note: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the weights that a rebuilt detector needs, as plain values; sizes and strides in pixels.

    `image_size` is the long side every image is resized to; `channels` are those of the backbone's maps that the
    pyramid stands on.
    """
    config = detector.config()
    options = config["options"]
    backbone = detector.backbone
    return {
        "detector": config["detector"],
        "classes": list(note["classes"]),
        "category_ids": list(note["category_ids"]),
        "image_size": note["image_size"],
        "mean": config["mean"],
        "std": config["std"],
        "size_divisible": config["size_divisible"],
        "backbone": {
            "library": backbone.library,
            "name": backbone.library_name,
            "channels": list(backbone.channels[-3:]),
        },
        "fpn_channels": options["fpn_channels"],
        "neck_norm": options["neck_norm"],
        "head_convs": options["head_convs"],
        "strides": config["strides"],
        "anchor_sizes": config["anchor_sizes"],
        "center_sampling_radius": config["center_sampling_radius"],
        "score_threshold": options["score_threshold"],
        "nms_threshold": config["nms_threshold"],
        "detections": options["detections"],
        "made_with": {name: version(name) for name in ("selfdet", "torch", "torchvision", "timm")},
    }
