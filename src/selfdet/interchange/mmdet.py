"""Detectors of mmdet, and what AlignDet pre-trained there: equal in what they find, or refused with the reason.

What all have alike is here; the readers know the names and facts of their kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import State, renamed, told_by
from selfdet.interchange.formats import tensors_in
from selfdet.interchange.imported import BACKBONE_ALONE, ImportedDetector, fill_detector, taken_detector
from selfdet.interchange.imports import check_imported
from selfdet.interchange.mmdet_detr import read_detr
from selfdet.interchange.mmdet_one_stage import read_one_stage
from selfdet.interchange.mmdet_rcnn import read_rcnn
from selfdet.interchange.mmdet_shared import IMAGE_SIZE, Given, read_settings
from selfdet.interchange.notes import check_note, read_note
from selfdet.interchange.pixels import Pixels, with_own_pixels
from selfdet.interchange.training_settings import check_settings, settings_text
from selfdet.models.backbones import build_backbone, build_unfilled

SELFDET = "selfdet"  # under which selfdet's own files say in `meta` what else they were written from
ONLINE = "online_backbone."  # what AlignDet puts before the detector that it trains
READERS = (read_detr, read_one_stage, read_rcnn)
# Why what has these names is no detector of ours, the first that matches.
REASONS = (
    (r"roi_head\.bbox_head\.0\.", "a cascade; of mmdet's two-stage detectors only Faster and Mask R-CNN are taken"),
    (r"bbox_head\.shared_fcs", "a detector of mmdet's first version, whose classes and regions are others"),
    (r"roi_head\.(bbox_head\.(cls|reg)_(fcs|convs)|grid_|semantic_|mask_iou)", "an R-CNN with more branches than ours"),
)


def import_detector(
    path: Path,
    content: Mapping[str, Any],
    *,
    name: str | None = None,
    pixels: Pixels | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    settings: Path | None = None,
    pretrained: bool = False,
) -> ImportedDetector:
    """A DETR, RetinaNet, FCOS, Faster or Mask R-CNN in a checkpoint of mmdet 2 or 3, or what AlignDet pre-trained.

    `name`: the backbone's, where its shapes don't tell. `pixels`: as of `import_backbone`. `classes`: names of its
    classes where the file has none, or others. `image_size`: the long side (px) that images will be resized to.
    `settings`: a file with those of its training, in place of what the file itself has of them. `pretrained`: whether
    it is known to be AlignDet's, as its names tell unless the detector was extracted.
    Of AlignDet's the last layers, which tell its pseudo classes, start afresh with one class.

    Raises: UserError for a detector that torchvision's networks cannot be; NotTakenError where not every tensor fits.
    """
    own = _own_note(path, content)
    size = (own.get("image_size", IMAGE_SIZE)) if image_size is None else image_size
    found, _ = tensors_in(content, "mmdet")
    state = {str(each): value.detach() for each, value in found.items() if isinstance(value, Tensor)}
    check_imported(path, state)
    whole = any(each.startswith(ONLINE) for each in state)
    left = sorted({each.partition(".")[0] for each in state if whole and not each.startswith(ONLINE)})
    pretrained = pretrained or whole
    if whole:
        state = {each.removeprefix(ONLINE): value for each, value in state.items() if each.startswith(ONLINE)}
    for pattern, reason in REASONS:
        if any(re.match(pattern, each) for each in state):
            raise UserError(f"{path} is {reason}", BACKBONE_ALONE)
    if not pretrained and _extracted(state):
        raise UserError(
            f"{path} has a detector without its last layers", "If AlignDet pre-trained it, add --format aligndet"
        )
    text = settings_text(content) if settings is None else read_settings(settings)
    check_settings(path, text, state, pixels)
    body, said = renamed(
        {each.removeprefix("backbone."): v for each, v in state.items() if each.startswith("backbone.")}
    )
    architecture = told_by(body)
    if name is None and architecture is None:
        raise UserError(f"{path}: its shapes tell no backbone that selfdet knows", "Name it with --backbone")
    # Small beside the file where the backbone is given: without memory, only names and shapes.
    with torch.device("meta"):
        backbone = build_backbone(name or architecture.name)  # type: ignore[union-attr]
    if pixels not in (None, "rgb"):
        body, line = with_own_pixels(backbone, body, pixels)
        said = [*said, line]
    rest = {each: value for each, value in state.items() if not each.startswith("backbone.")}
    given = Given(path, rest, pretrained, text, own, size, backbone.channels[-1])
    reading = next((each for read in READERS if (each := read(given)) is not None), None)
    if reading is None:
        raise UserError(f"{path} holds no detector that selfdet knows", BACKBONE_ALONE)
    names = ["object"] if pretrained else _class_names(path, content, reading.classes, classes)
    key, said, options = reading.key, [*said, *reading.said], {**reading.options, "image_size": size}
    ours = {**{f"{reading.body}{each}": value for each, value in body.items()}, **reading.state}
    try:
        with torch.device("meta"):
            shapes = DETECTORS[key](len(names), build_backbone(backbone.name), **options)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if not own:
            raise
        raise UserError(f"{path}: {error}", "Use the version of selfdet that wrote it") from None
    report = taken_detector(shapes, ours, pretrained, str(path), reading.keep_box_outputs)

    def build() -> Detector:
        return DETECTORS[key](len(names), build_backbone(backbone.name), **options)

    # The file's own tensors become the detector's, but for last layers that start afresh.
    detector = build() if pretrained else build_unfilled(build)
    fill_detector(detector, ours)
    return ImportedDetector(detector, names, size, report, said, left, pretrained, own.get("category_ids"))


def _extracted(state: State) -> bool:
    """Whether these are what AlignDet's own program takes out of its files: all but the last layers of a head."""
    heads = [name for name in state if re.match(r"(roi_head\.)?bbox_head\.", name)]
    if not any(re.search(r"\.(shared_fcs|cls_convs)\.", name) for name in heads):
        return False
    return all(re.search(r"bbox_head\.(shared_fcs|shared_convs|cls_convs|reg_convs|scales)\.", name) for name in heads)


def _own_note(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file that selfdet wrote in this format says of the detector that it was; empty of any other file."""
    meta = content.get("meta")
    text = meta.get(SELFDET) if isinstance(meta, Mapping) else None
    note = read_note(text) if isinstance(text, str) else {}
    check_note(note, path)
    return note if note.get("kind") == "detector" and isinstance(note.get("options"), dict) else {}


def _class_names(path: Path, content: Mapping[str, Any], count: int, given: Sequence[str] | None) -> list[str]:
    """The names of `count` classes, −1 if unknown: those given, those that the file has, or numbers."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    about = meta.get("dataset_meta")
    own = (about.get("classes") if isinstance(about, Mapping) else None) or meta.get("CLASSES")
    own = [str(each) for each in own] if isinstance(own, (list, tuple)) else None
    names = list(given) if given else own or [f"class {number}" for number in range(max(1, count))]
    if count < 0:  # the layer that tells them is not there, as the report will say
        return names
    if len(names) != count:
        whose = "--classes" if given else "the file"
        raise UserError(f"{path} has {count} classes, and {whose} names {len(names)}", "Name each with --classes")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two classes are called {shown(max(names, key=names.count))}", "Give --classes")
    return names
