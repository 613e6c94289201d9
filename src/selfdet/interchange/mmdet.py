"""Detectors of mmdet, and what AlignDet pre-trained there: equal in what they find, or refused with the reason.

mmdet's facts, against torchvision's: its background is the last class and not the first, its box and mask layers have
no rows for the background, its anchors are not rounded and its regions are pooled half a pixel on (`regions="exact"`).
The order of anchors, the coding of boxes, strides and levels are the same. `mmdet_one_stage` has the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.detectors.network import Part
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import State, renamed, told_by
from selfdet.interchange.formats import tensors_in
from selfdet.interchange.imports import NotTakenError, Pixels, full_tensors, with_own_pixels
from selfdet.interchange.mmdet_one_stage import (
    class_count,
    one_stage_kind,
    one_stage_options,
    renamed_one_stage,
)
from selfdet.interchange.mmdet_shared import (
    BACKBONE_ALONE,
    FIRST_LATERAL,
    NECK,
    Table,
    norm_of,
    read_settings,
    refuse_settings,
    renamed_by,
    settings_text,
)
from selfdet.interchange.notes import check_note, read_note
from selfdet.models.backbones import build_backbone
from selfdet.training.checkpoint import check_tensors
from selfdet.training.transfer import TransferReport, transfer

SELFDET = "selfdet"  # under which selfdet's own files say in `meta` what else they were written from
ONLINE = "online_backbone."  # what AlignDet puts before the detector that it trains
IMAGE_SIZE = 1333  # px, mmdet's usual long side
FULL_SCALE = 784  # px from which on our anchors are as large as in the papers
# Why what has these names is no detector of ours, the first that matches.
REASONS = (
    (r"roi_head\.bbox_head\.0\.", "a cascade; of mmdet's two-stage detectors only Faster and Mask R-CNN are taken"),
    (r"bbox_head\.shared_fcs", "a detector of mmdet's first version, whose classes and regions are others"),
    (r"roi_head\.(bbox_head\.(cls|reg)_(fcs|convs)|grid_|semantic_|mask_iou)", "an R-CNN with more branches than ours"),
)
# What its settings may say, where the file has them, that makes it another network than the one of these names.
SETTINGS: Table = (
    (r"aligned['\"]?\s*[=:]\s*(False|false)", "regions are pooled half a pixel off"),
    (r"sampling_ratio['\"]?\s*[=:]\s*[1-9]", "each bin of a region has a fixed number of samples"),
    (r"scales['\"]?\s*[=:]\s*\[(?!8\])", "anchors are of other sizes than 8 strides"),
)
CAFFE = r"style['\"]?\s*[=:]\s*['\"]caffe"
RENAMED: Table = (
    *NECK,
    (r"rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (r"roi_head\.bbox_head\.shared_convs\.(\d+)\.conv\.", r"roi_heads.box_head.\1.0."),
    (r"roi_head\.bbox_head\.shared_convs\.(\d+)\.(?:bn|gn)\.", r"roi_heads.box_head.\1.1."),
    (r"roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"roi_head\.mask_head\.convs\.(\d+)\.conv\.", r"roi_heads.mask_head.\1.0."),
    (r"roi_head\.mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
CLASSES, BOXES, MASKS = (
    f"roi_heads.{layer}."
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
)


@dataclass
class ImportedDetector:
    """A detector out of mmdet's file; `classes` are the names of its K classes."""

    detector: Detector
    classes: list[str]
    image_size: int
    report: TransferReport
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    pretrained: bool = False


def import_detector(
    path: Path,
    content: Mapping[str, Any],
    *,
    name: str | None = None,
    pixels: Pixels | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    settings: Path | None = None,
) -> ImportedDetector:
    """The RetinaNet, FCOS, Faster or Mask R-CNN in a checkpoint of mmdet 2 or 3, or one that AlignDet pre-trained.

    `name`: the backbone's, where its shapes don't tell. `pixels`: as of `import_backbone`. `classes`: names of its
    classes where the file has none, or others. `image_size`: the long side (px) that images will be resized to.
    `settings`: a file with those of its training, in place of what the file itself has of them.
    Of AlignDet's the last layers, which tell its pseudo classes, start afresh with one class.

    Raises: UserError for a detector that torchvision's networks cannot be; NotTakenError where not every tensor fits.
    """
    own = _own_note(path, content)
    size = (own.get("image_size", IMAGE_SIZE)) if image_size is None else image_size
    found, _ = tensors_in(content, "mmdet")
    state = {str(each): value.detach() for each, value in found.items() if isinstance(value, Tensor)}
    check_tensors(path, state)
    pretrained = any(each.startswith(ONLINE) for each in state)
    left = sorted({each.partition(".")[0] for each in state if pretrained and not each.startswith(ONLINE)})
    if pretrained:
        state = {each.removeprefix(ONLINE): value for each, value in state.items() if each.startswith(ONLINE)}
    for pattern, reason in REASONS:
        if any(re.match(pattern, each) for each in state):
            raise UserError(f"{path} is {reason}", BACKBONE_ALONE)
    kind = one_stage_kind(state)
    if kind is None and not any(each.startswith("roi_head.bbox_head.") for each in state):
        raise UserError(f"{path} holds no detector that selfdet knows", BACKBONE_ALONE)
    if kind is None and size < FULL_SCALE and size != own.get("image_size"):
        raise UserError(
            f"--image-size {size}: mmdet's anchors are made for images of about {IMAGE_SIZE} px, ours would be smaller "
            f"below {FULL_SCALE}",
            f"Use at least {FULL_SCALE}",
        )

    text = settings_text(content) if settings is None else read_settings(settings)
    if pixels is None and re.search(CAFFE, text):
        raise UserError(f"{path}: its settings say style='caffe': blue first in 0…255", "Add --pixels caffe")
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
    rest = _renamed(rest, pretrained) if kind is None else renamed_one_stage(kind, rest, pretrained)
    count = len(rest.get(f"{CLASSES}bias", ())) - 1 if kind is None else class_count(kind, rest)
    names = ["object"] if pretrained else _class_names(path, content, count, classes)
    if kind is None:
        key = "mask_rcnn" if any("mask_head" in each for each in rest) else "faster_rcnn"
        refuse_settings(path, text, SETTINGS)
        rest = rest if pretrained else _background_first(rest, len(names))
        options = {**_options(path, rest), "regions": "exact"}
        if own:  # a file that selfdet wrote says of what kind its network was
            options = {**own["options"], **options, "regions": own["options"].get("regions", "rounded")}
    else:
        key, known = kind, pretrained or bool(own)
        options, more = one_stage_options(kind, path, rest, backbone.channels[-1], text, known)
        said = [*said, *([] if own else more)]
        options |= own.get("options", {})
    options["image_size"] = size
    ours = {**{f"backbone.body.{each}": value for each, value in body.items()}, **rest}
    with torch.device("meta"):
        shapes = DETECTORS[key](len(names), build_backbone(backbone.name), **options)
    report = _taken(shapes, ours, pretrained, str(path), keep_box_outputs=kind is not None)
    detector = DETECTORS[key](len(names), build_backbone(backbone.name), **options)
    filled = {each: ours.get(each, value) for each, value in detector.net.state_dict().items()}
    detector.net.load_state_dict(full_tensors(detector.net.state_dict(), filled))
    return ImportedDetector(detector, names, size, report, said, left, pretrained)


def _own_note(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file that selfdet wrote in this format says of the detector that it was; empty of any other file."""
    meta = content.get("meta")
    text = meta.get(SELFDET) if isinstance(meta, Mapping) else None
    note = read_note(text) if isinstance(text, str) else {}
    check_note(note, path)
    return note if note.get("kind") == "detector" and isinstance(note.get("options"), dict) else {}


def _renamed(state: State, pretrained: bool) -> State:
    made: State = {}
    convolutions = any(".shared_convs." in name for name in state)
    numbers = {"0": "5"} if convolutions else {"0": "fc6", "1": "fc7"}
    for name, value in state.items():
        if pretrained and re.match(r"roi_head\.bbox_head\.fc_(cls|reg)\.", name):
            continue
        name = renamed_by(RENAMED, name)
        layer = re.fullmatch(r"roi_head\.bbox_head\.shared_fcs\.(\d+)\.(\w+)", name)
        if layer is not None and layer[1] in numbers:
            name = f"roi_heads.box_head.{numbers[layer[1]]}.{layer[2]}"
        made[name] = value
    return made


def _background_first(state: State, classes: int) -> State:
    """The last layers with the background's rows where torchvision's are; of boxes and masks they are never read."""
    made = dict(state)
    for kind in ("weight", "bias"):
        logits, boxes, masks = (f"{layer}{kind}" for layer in (CLASSES, BOXES, MASKS))
        if logits in state:
            made[logits] = state[logits].roll(1, 0)
        if boxes in state:
            own = state[boxes]
            if len(own) == 4 and classes > 1:  # one box whatever the class
                own = own.repeat(classes, *[1] * (own.dim() - 1))
            made[boxes] = torch.cat([torch.zeros_like(own[:4]), own])
        if masks in state:
            made[masks] = torch.cat([torch.zeros_like(state[masks][:1]), state[masks]])
    return made


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


def _options(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the builder has to know, of names and shapes."""
    width = state.get(f"{FIRST_LATERAL}0.weight", torch.empty(256)).shape[0]
    neck, head = (norm_of(state, part) for part in (f"{FIRST_LATERAL}1.", "roi_heads.box_head.0.1."))
    convolutions = "roi_heads.box_head.0.0.weight" in state
    used = {neck, head} if convolutions else {neck}
    if len(used) > 1:
        raise UserError(
            f"{path}: its pyramid and its box head have other norms than each other ({' and '.join(map(str, used))})",
            BACKBONE_ALONE,
        )
    return {"fpn_channels": width, "neck_norm": used.pop(), "box_head": "4conv1fc" if convolutions else "2fc"}


def _taken(detector: Detector, state: State, pretrained: bool, source: str, keep_box_outputs: bool) -> TransferReport:
    """The report of what fits the detector, where that is all of it but, of what was only pre-trained, last layers."""
    own_parts = detector.parts(keep_box_outputs)
    parts = {name: Part(part.patterns, part.reinit and pretrained) for name, part in own_parts.items()}
    shapes = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    report = transfer(detector.net, shapes, parts, expect=())
    try:
        kept = [name for name, part in parts.items() if not part.reinit]
        transfer(detector.net, state, parts, expect=kept, minimum=1.0, source=source)
        own = detector.net.state_dict()
        more = [name for name, value in state.items() if name not in own and value.dim() > 0]
        if more:
            raise UserError(f"{source} has layers that ours does not have: {', '.join(more[:3])}", BACKBONE_ALONE)
    except UserError as error:
        raise NotTakenError(error, report) from None
    return report
