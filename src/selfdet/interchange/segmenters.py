"""Segmenters from the starts that `--init` may name, and their weights files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from selfdet.data.images import PIXELS
from selfdet.detectors.segmenter import Segmenter, fcn
from selfdet.errors import UserError
from selfdet.interchange.starts import NOTE, Start, elements, fill_backbone, resolve_start
from selfdet.interchange.weights import write_safetensors
from selfdet.models.atrous import build_atrous_backbone
from selfdet.training.transfer import TransferReport, TransferRow, transfer

OTHER_BACKBONE = "resnet50"  # where neither the user nor the start names one


def build_segmenter(
    start: Start, num_classes: int, backbone: str | None, options: Mapping[str, Any]
) -> tuple[Segmenter, TransferReport | None]:
    """An FCN filled from a start, with the report of what was reused; the classifier is always fresh.

    `options` go to `fcn`, over those of a start that is a segmenter itself. Of a detector its backbone is reused.
    Raises: UserError when the start's weights are of another architecture.
    """
    name = backbone or start.note.get("backbone") or OTHER_BACKBONE
    if start.kind == "library" and backbone not in (None, start.note["backbone"]):
        raise UserError(f"--init {start.source} and --backbone {backbone} disagree", "Leave --backbone out")
    body = build_atrous_backbone(name, "library" if start.kind == "library" else None)
    report = fill_backbone(body, start) if start.kind in ("backbone", "detector") else None
    own = start.note["options"] if start.kind == "segmenter" else {}
    if start.kind == "segmenter" and options.get("head_convs") not in (None, own.get("head_convs")):
        raise UserError(
            f"{start.source} has a head of {own.get('head_convs')} convolutions, not {options['head_convs']}",
            "Leave --head-convs out: the start has its own",
        )
    try:
        built = fcn(num_classes, body, **{**own, **options})
    except TypeError as error:
        raise UserError(f"{start.source}: {error}", "Use the version of selfdet that wrote it") from None
    parts = built.parts()
    if report is not None:  # what a backbone's file does not reach starts afresh
        for part in ("head", "last"):
            report.rows[part] = TransferRow(reinitialised=elements(built.net, parts[part]))
    if start.kind == "segmenter":
        kept = [part for part, rules in parts.items() if not rules.reinit]
        report = transfer(built.net, start.state, parts, expect=kept, source=start.source)
    return built, report


def segmenter_note(segmenter: Segmenter, classes: Sequence[str], image_size: int, crop_size: int) -> dict[str, Any]:
    """What a segmenter's file says of itself: all that rebuilds it, its classes, the long side (px) of the images it is
    for, the side of the squares it has learned from, and what became of channels and bit depths."""
    about = {"classes": list(classes), "image_size": image_size, "crop_size": crop_size, "pixels": PIXELS}
    return {"kind": "segmenter", **segmenter.config(), **about}


def save_segmenter(path: Path, segmenter: Segmenter, note: Mapping[str, Any]) -> None:
    """Write a segmenter's weights under the names of torchvision's FCN; `note` is a `segmenter_note`."""
    write_safetensors(path, segmenter.net.state_dict(), {NOTE: json.dumps(dict(note))})


def load_segmenter(start: Start) -> tuple[Segmenter, dict[str, Any]]:
    """Rebuild a fine-tuned segmenter from a start that is one, with its note.

    Raises: UserError when the file doesn't fill every tensor of it.
    """
    segmenter, _ = build_segmenter(start, len(start.note["classes"]), None, {})
    _fill(segmenter.net, start)
    return segmenter, start.note


def start_is_segmenter(init: str) -> Start | None:
    """The start that `--init` names if it is a segmenter, None of any other; `resolve_start` says what is wrong."""
    start = resolve_start(init)
    return start if start.kind == "segmenter" else None


def _fill(net: nn.Module, start: Start) -> None:
    try:
        net.load_state_dict(start.state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1].strip()
        raise UserError(f"{start.source} does not fit its own description: {first}", "Fine-tune again") from None
