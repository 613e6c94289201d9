"""mmdet's Faster and Mask R-CNN as ours.

mmdet's facts, against torchvision's: its background is the last class and not the first, its box and mask layers have
no rows for the background, its anchors are not rounded and its regions are pooled half a pixel on (`regions="exact"`).
The order of anchors, the coding of boxes, strides and levels are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.errors import UserError
from selfdet.interchange.architectures import State
from selfdet.interchange.mmdet_shared import (
    FIRST_LATERAL,
    IMAGE_SIZE,
    NECK,
    RATIOS,
    Given,
    Reading,
    Table,
    norm_of,
    refuse_settings,
    renamed_by,
)
from selfdet.interchange.training_settings import IS

FULL_SCALE = 784  # px from which on our anchors are as large as in the papers
# What its settings may say, where the file has them, that makes it another network than the one of these names.
SETTINGS: Table = (
    (rf"aligned{IS}(False|false)", "regions are pooled half a pixel off"),
    (rf"sampling_ratio{IS}[1-9]", "each bin of a region has a fixed number of samples"),
    (rf"type{IS}['\"]((?!RoIAlign['\"])\w*RoI(Align|Pool)\w*|GenericRoIExtractor)", "regions are pooled otherwise"),
    (rf"finest_scale{IS}(?!56\b)\d+", "levels take regions of other sizes"),
    (rf"\bscales{IS}\[(?!8(\.0)?\])", "anchors are of other sizes than 8 strides"),
    (RATIOS, "anchors are of other shapes than 1:2, 1:1 and 2:1"),
    (rf"center_offset{IS}(?!0(\.0*)?(?![\d.]))[\d.]+", "anchors stand elsewhere than at the corners of cells"),
    (
        rf"target_stds{IS}[\[(](?!(1(\.0)?,\s*){{3}}1(\.0)?[\])]|0?\.1,\s*0?\.1,\s*0?\.2,\s*0?\.2[\])])[^\])]*",
        "deltas are measured otherwise",
    ),
    (rf"num_groups{IS}(?!32\b)\d+", "norms have other groups than 32"),
    (r"upsample_cfg[^)}]*bilinear", "the pyramid is interpolated"),
    (rf"type{IS}['\"]soft_nms", "boxes that overlap are scored down"),
    (
        rf"\brcnn{IS}(dict\(|\{{)[^)}}]*\bnms{IS}(dict\(|\{{)[^)}}]*iou_thr(eshold)?{IS}(?!0?\.50*\b)[\d.]+",
        "boxes suppress each other from another overlap on than 0.5",
    ),
)
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


def read_rcnn(given: Given) -> Reading | None:
    """The R-CNN that these names, of mmdet, are of; None where they are of none.

    Raises: UserError for images so small that anchors would be other ones, and settings of another network.
    """
    if not any(name.startswith("roi_head.bbox_head.") for name in given.state):
        return None
    if given.image_size < FULL_SCALE and given.image_size != given.own.get("image_size"):
        raise UserError(
            f"--image-size {given.image_size}: mmdet's anchors are made for images of about {IMAGE_SIZE} px, ours "
            f"would be smaller below {FULL_SCALE}",
            f"Use at least {FULL_SCALE}",
        )
    refuse_settings(given.path, given.text, SETTINGS)
    state = _renamed(given.state, given.pretrained)
    count = len(state.get(f"{CLASSES}bias", ())) - 1
    state = state if given.pretrained else _background_first(state, count)
    options = {**_options(given.path, state), "regions": "exact"}
    if given.own:  # a file that selfdet wrote says of what kind its network was
        own = given.own["options"]
        options = {**own, **options, "regions": own.get("regions", "rounded")}
    key = "mask_rcnn" if any("mask_head" in name for name in state) else "faster_rcnn"
    return Reading(key, state, count, options)


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


def _options(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the builder has to know, of names and shapes."""
    width = state.get(f"{FIRST_LATERAL}0.weight", torch.empty(256)).shape[0]
    neck, head = (norm_of(state, part) for part in (f"{FIRST_LATERAL}1.", "roi_heads.box_head.0.1."))
    convolutions = "roi_heads.box_head.0.0.weight" in state
    used = {neck, head} if convolutions else {neck}
    if len(used) > 1:
        raise UserError(
            f"{path}: its pyramid and its box head have other norms than each other ({' and '.join(map(str, used))})",
        )
    return {"fpn_channels": width, "neck_norm": used.pop(), "box_head": "4conv1fc" if convolutions else "2fc"}
