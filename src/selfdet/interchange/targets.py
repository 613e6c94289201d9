"""Where networks go out to: of each target what it takes, and what writes and checks that there.

A table, so that the code, the command line and docs/how-to-weights.md say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from selfdet.errors import UserError
from selfdet.interchange.export_backbone import export_backbone, open_backbone
from selfdet.interchange.export_check import check_finite
from selfdet.interchange.export_detector import export_detector
from selfdet.interchange.export_lightly import export_lightly
from selfdet.interchange.export_mmdet import export_peer
from selfdet.interchange.export_onnx import export_onnx
from selfdet.interchange.export_program import export_program
from selfdet.interchange.export_segmenter import export_segmenter, ordinary_backbone
from selfdet.interchange.export_transformers import export_transformers
from selfdet.interchange.export_transformers_backbone import export_transformers_backbone
from selfdet.interchange.history import HISTORY
from selfdet.interchange.outgoing import KINDS, Kind, Outgoing, Writer
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import open_detector, resolve_start

# The keys, for the command line.
TargetKey = Literal[
    "torchvision", "timm", "detectron2", "mmdet", "transformers", "lightly-train", "onnx", "torch-export"
]


@dataclass(frozen=True)
class Target:
    """A library or format: `writers` has what it takes; of anything else it gets the backbone. `options`: those of
    `export` that are for it."""

    writers: Mapping[Kind, Writer]
    options: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "torchvision": Target(
        {
            "detector": export_detector,
            "segmenter": export_segmenter,
            "backbone": partial(export_backbone, library="torchvision"),
        }
    ),
    "timm": Target({"backbone": partial(export_backbone, library="timm")}),
    "lightly-train": Target({"backbone": export_lightly}),
    "onnx": Target(dict.fromkeys(KINDS, export_onnx), ("nms", "opset")),
    "torch-export": Target(dict.fromkeys(KINDS, export_program), ("nms",)),
    "detectron2": Target({kind: partial(export_peer, library="detectron2") for kind in ("detector", "backbone")}),
    "mmdet": Target({kind: partial(export_peer, library="mmdet") for kind in ("detector", "backbone")}),
    "transformers": Target({"detector": export_transformers, "backbone": export_transformers_backbone}),
}


def open_outgoing(init: str) -> Outgoing:
    """The network that `--init` names, every tensor of it from there.

    Raises: UserError when there is nothing trained, or something that doesn't fit its description or is not finite.
    """
    start = resolve_start(init)
    if start.kind in ("scratch", "library"):
        raise UserError(f"--init {init} holds nothing trained", "Name a run directory or a weights file of one")
    check_finite(start.state, start.source)
    if start.kind == "detector":
        return Outgoing("detector", *open_detector(start, init), init)
    if start.kind == "segmenter":
        return Outgoing("segmenter", *load_segmenter(start), init)
    return Outgoing("backbone", open_backbone(start), start.note, init)


def backbone_of(given: Outgoing) -> Outgoing:
    """The backbone alone, as it was trained in a detector or a segmenter."""
    if given.kind == "backbone":
        return given
    inside = given.network.backbone if given.kind == "detector" else ordinary_backbone(given.network)
    told = {name: given.note[name] for name in (HISTORY, "imported") if name in given.note}
    note = {"trained_as": f"backbone of {given.note[given.kind]}", **told}
    return replace(given, kind="backbone", network=inside, note=note)
