"""A segmenter as a folder for use without selfdet, and the proof that it gives the same scores there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from selfdet.detectors.segmenter import Segmenter
from selfdet.evaluation.segmenting import Sight, image_scores
from selfdet.interchange.companions.texts import text_of
from selfdet.interchange.export_check import (
    STRANGER,
    ExportMismatchError,
    check_images,
    check_weights,
    run_stranger,
)
from selfdet.interchange.export_words import map_differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.segmenters import save_segmenter
from selfdet.models.backbones import Backbone, build_backbone, evaluating
from selfdet.training.rundir import write_text

WEIGHTS, DESCRIPTION, PROGRAM = "segmenter.safetensors", "segmenter.json", "rebuild.py"
TOLERANCE = 1e-4  # of the largest score
SEGMENT = """
    net = exported.build()
    for name in sorted(given):
        for sliding in (False, True):
            found[f"{name}.{int(sliding)}"] = net.scores(given[name], sliding=sliding).contiguous()
save_file(found, outputs)
"""


def export_segmenter(folder: Path, given: Outgoing) -> Written:
    """Write a segmenter under the names of torchvision's FCN, and compare its scores without selfdet.

    Raises: ExportMismatchError.
    """
    write_segmenter(folder, given.network, given.note)
    figures = check_segmenter(folder, given.network, given.note)
    return Written(figures, f"rebuilt without selfdet, {map_differences(figures, 'score maps')}")


def write_segmenter(folder: Path, segmenter: Segmenter, note: Mapping[str, Any]) -> None:
    """Write segmenter.safetensors (names of torchvision's FCN), segmenter.json and rebuild.py into `folder`."""
    save_segmenter(folder / WEIGHTS, segmenter, note)
    backbone = segmenter.backbone
    about = {
        "segmenter": note["segmenter"],
        "head_convs": segmenter.options["head_convs"],
        "backbone": {"library": backbone.library, "name": backbone.library_name, "channels": backbone.channels[-1]},
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        **{name: note[name] for name in ("image_size", "crop_size", "classes")},
        "made_with": {name: version(name) for name in ("selfdet", "torch", "torchvision", "timm")},
    }
    write_text(folder / DESCRIPTION, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / PROGRAM, text_of("segmenter"))


def check_segmenter(folder: Path, segmenter: Segmenter, note: Mapping[str, Any]) -> dict[str, float]:
    """Compare the scores of a folder's `build()` with the segmenter's own, on two images, whole and sliding.

    Returns the number of "score_maps" compared and the "largest_difference" as a share of the largest score.
    Raises: ExportMismatchError when the weights differ, or a score does by more than 0.0001 of the largest.
    """
    check_weights(folder / WEIGHTS, segmenter.net)
    images = {f"image{row}": image for row, image in enumerate(check_images(note["image_size"]))}
    theirs = run_stranger(STRANGER + SEGMENT, folder / PROGRAM, images)
    worst = 0.0
    for name, image in images.items():
        for sliding in (False, True):
            sight = Sight(note["image_size"], note["crop_size"], sliding)
            with torch.no_grad(), evaluating(segmenter):
                (ours,) = image_scores(segmenter, [image], sight)
            found = theirs[f"{name}.{int(sliding)}"]
            if found.shape != ours.shape:
                raise ExportMismatchError(f"scores of the exported segmenter are {tuple(found.shape)}")
            worst = max(worst, float((found - ours).abs().max() / ours.abs().max().clamp_min(1e-12)))
    if not worst <= TOLERANCE:
        raise ExportMismatchError(f"the exported segmenter's scores differ by {worst:.2g} of the largest")
    return {"score_maps": 2 * len(images), "largest_difference": worst}


def ordinary_backbone(segmenter: Segmenter) -> Backbone:
    """The backbone of a segmenter with its strides back, as its library has it."""
    backbone = build_backbone(segmenter.backbone.name)
    backbone.net.load_state_dict(segmenter.backbone.net.state_dict())
    return backbone
