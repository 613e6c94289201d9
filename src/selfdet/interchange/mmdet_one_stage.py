"""mmdet's RetinaNet and FCOS as ours: its names, and which of mmdet's networks it is, by shapes and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfdet.detectors.mmdet import FORMS
from selfdet.errors import UserError
from selfdet.interchange.architectures import State
from selfdet.interchange.mmdet_shared import (
    FIRST_LATERAL,
    NECK,
    RATIOS,
    WHOLE,
    Given,
    Reading,
    Table,
    norm_of,
    refuse_settings,
    renamed_by,
    told,
)
from selfdet.interchange.training_settings import IS

SIGNS = {"retinanet": r"bbox_head\.retina_(cls|reg)\.", "fcos": r"bbox_head\.conv_centerness\."}
# Of what AlignDet pre-trained, also extracted by its own program, without last layers; the factors tell an FCOS.
EXTRACTED = {
    "fcos": r"bbox_head\.(scales|conv_centerness)\.",
    "retinanet": r"bbox_head\.(cls_convs|retina_(cls|reg))\.",
}
# Of five levels the last two; in our pyramid they stand apart.
COARSE: Table = (
    (r"backbone\.fpn\.layer_blocks\.3\.", "backbone.fpn.extra_blocks.p6."),
    (r"backbone\.fpn\.layer_blocks\.4\.", "backbone.fpn.extra_blocks.p7."),
)
PLAIN: Table = ((r"(backbone\.fpn\.extra_blocks\.p\d\.)0\.", r"\1"),)  # a convolution without a norm
TOWERS: Table = (
    (r"bbox_head\.cls_convs\.", "head.classification_head.conv."),
    (r"bbox_head\.reg_convs\.", "head.regression_head.conv."),
)
HEADS: dict[str, Table] = {
    "retinanet": (
        *TOWERS,
        (r"(head\.\w+\.conv\.\d+)\.conv\.", r"\1.0."),
        (r"bbox_head\.retina_cls\.", "head.classification_head.cls_logits."),
        (r"bbox_head\.retina_reg\.", "head.regression_head.bbox_reg."),
    ),
    "fcos": (
        *TOWERS,
        (r"bbox_head\.conv_cls\.", "head.classification_head.cls_logits."),
        (r"bbox_head\.conv_reg\.", "head.regression_head.bbox_reg."),
        (r"bbox_head\.conv_centerness\.", "head.regression_head.bbox_ctrness."),
    ),
}
# In FCOS's towers a convolution, a norm and a ReLU are in a row, and the factors of its levels are one tensor.
LAYER = re.compile(r"(head\.\w+\.conv)\.(\d+)\.(conv|gn)\.(weight|bias)")
SCALES, LEVELS = "head.regression_head.scales", 5
CLASSIFIER = "head.classification_head.cls_logits."
BOXES = "head.regression_head.bbox_reg."
ANCHORS = {"retinanet": 9, "fcos": 1}  # of a cell
SCORE = 0.05  # above which mmdet looks at a place
# What settings may say that makes it another network than the one of these names.
SETTINGS: Table = (
    (
        rf"type{IS}['\"](?!(?:SelfSup)?(?:Retina|FCOS)Head['\"])\w*(?:Retina|FCOS)\w*Head['\"]",
        "it has another head of the same names",
    ),
    (rf"octave_base_scale{IS}(?!4\b)[\d.]+", "anchors are of other sizes than 4 strides"),
    (rf"scales_per_octave{IS}(?!3\b)\d+", "an octave has not 3 sizes of anchors"),
    (RATIOS, "anchors are of other shapes than 1:2, 1:1 and 2:1"),
    (rf"center_offset{IS}(?!0(\.0*)?(?![\d.]))[\d.]+", "anchors stand elsewhere than at the corners of cells"),
    (rf"target_stds{IS}[\[(](?!(1(\.0)?,\s*){{3}}1(\.0)?[\])])", "deltas are measured otherwise"),
    (rf"use_sigmoid{IS}(False|false)", "classes exclude each other"),
    (rf"add_extra_convs{IS}['\"]on_lateral", "coarse levels are made of a lateral map"),
    (rf"num_groups{IS}(?!32\b)\d+", "norms have other groups than 32"),
    (r"upsample_cfg[^)}]*bilinear", "the pyramid is interpolated"),
    (rf"type{IS}['\"]soft_nms", "boxes that overlap are scored down"),
)


def read_one_stage(given: Given) -> Reading | None:
    """The RetinaNet or FCOS that these names, of mmdet, are of; None where they are of neither.

    Raises: UserError for settings of another network, and for an FCOS without any.
    """
    signs = EXTRACTED if given.pretrained else SIGNS
    kind = next((kind for kind, sign in signs.items() if any(re.match(sign, name) for name in given.state)), None)
    if kind is None:
        return None
    state = _renamed(kind, given.state, given.pretrained)
    options, said = _options(kind, given, state)
    said, options = [] if given.own else said, options | given.own.get("options", {})
    boxes = f"{BOXES}weight" in state  # not where AlignDet's own program extracted the detector
    return Reading(kind, state, _class_count(kind, state), options, said, keep_box_outputs=boxes)


def _renamed(kind: str, state: State, pretrained: bool) -> State:
    """Tensors under our names; of what was only pre-trained, without what it had for a classifier."""
    normed = any(re.match(r"neck\.fpn_convs\.\d+\.(bn|gn)\.", name) for name in state)
    table = (*NECK, *COARSE, *(() if normed else PLAIN), *HEADS[kind])
    made = {renamed_by(table, name): value for name, value in state.items()}
    if kind == "fcos":
        made = _in_rows(made)
    return {name: value for name, value in made.items() if not (pretrained and name.startswith(CLASSIFIER))}


def _in_rows(state: State) -> State:
    """FCOS's towers and factors; convolutions that have no biases anywhere, as before norms, get biases of 0."""
    made: State = {}
    convolutions: State = {}
    for name, value in state.items():
        layer = LAYER.fullmatch(name)
        own = name if layer is None else f"{layer[1]}.{3 * int(layer[2]) + (layer[3] == 'gn')}.{layer[4]}"
        made[own] = value
        if layer is not None and layer[3] == "conv":
            convolutions[own] = value
    if not any(name.endswith(".bias") for name in convolutions):
        made |= {name.removesuffix("weight") + "bias": torch.zeros(len(v)) for name, v in convolutions.items()}
    scales = [f"bbox_head.scales.{level}.scale" for level in range(LEVELS)]
    if all(name in made and made[name].dim() == 0 for name in scales):
        made[SCALES] = torch.stack([made.pop(name) for name in scales])
    return made


def _class_count(kind: str, state: Mapping[str, Tensor]) -> int:
    """Of how many classes the classifier is; −1 where there is none."""
    return len(state[f"{CLASSIFIER}bias"]) // ANCHORS[kind] if f"{CLASSIFIER}bias" in state else -1


def _options(kind: str, given: Given, state: State) -> tuple[dict[str, Any], list[str]]:
    """What the builder has to know, of names, shapes and settings, and a line about what none of them tells."""
    path, text = given.path, given.text
    refuse_settings(path, text, SETTINGS)
    whole = re.search(WHOLE, text) is not None
    known = given.pretrained or bool(given.own)  # AlignDet's, or written by ourselves
    if kind == "fcos" and not whole and not known:
        raise UserError(
            f"{path} has no settings, and an FCOS's tensors don't tell norm_on_bbox and centerness_on_reg",
            "Name those of its training, the config.py in mmdet's work directory, with --settings",
        )
    form = _form(kind, state, given.coarsest, text, whole)
    width = state.get(f"{FIRST_LATERAL}0.weight", torch.empty(256)).shape[0]
    layers = [re.match(r"head\.classification_head\.conv\.(\d+)\.", name) for name in state]
    last = max((int(found[1]) for found in layers if found), default=0)
    options: dict[str, Any] = {
        "fpn_channels": width,
        "neck_norm": norm_of(state, f"{FIRST_LATERAL}1."),
        "head_convs": 1 + (last // 3 if kind == "fcos" else last),
        "mmdet": form,
    }
    if kind == "fcos" and not known:  # its threshold decides which boxes suppress others
        score = re.search(rf"\bscore_thr{IS}(0?\.\d+)", text)
        options["score_threshold"] = float(score[1]) if score else SCORE
    return options, [] if whole else ["the file has no settings of its network: taken as mmdet's published ones"]


def _form(kind: str, state: Mapping[str, Tensor], coarsest: int, text: str, whole: bool) -> dict[str, Any]:
    form = dict(FORMS[kind])
    width = state.get(f"{FIRST_LATERAL}0.weight", torch.empty(256)).shape[0]
    # Two widths tell where the coarse levels come from; one doesn't.
    first = next((v for n, v in state.items() if re.match(r"backbone\.fpn\.extra_blocks\.p6\.(0\.)?weight", n)), None)
    if coarsest != width and first is not None:
        form["add_extra_convs"] = "on_input" if first.shape[1] == coarsest else "on_output"
    elif (source := told(text, "add_extra_convs")) is not None:
        form["add_extra_convs"] = "on_output" if source == "on_output" else "on_input"
    overlap = re.search(rf"\bnms{IS}(?:dict\(|\{{)[^)}}]*iou_thr(?:eshold)?{IS}(0?\.\d+)", text)
    form["iou_threshold"] = float(overlap[1]) if overlap else form["iou_threshold"]
    for name in ("relu_before_extra_convs", "norm_on_bbox", "centerness_on_reg"):
        if whole and name in form:  # what whole settings don't say is as mmdet's classes have it
            form[name] = told(text, name) in ("True", "true")
    return form
