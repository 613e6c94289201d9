"""Faster and Mask R-CNN under mmdet's names, and the settings that build them there."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.interchange.architectures import State
from selfdet.interchange.mmdet_rcnn import BOXES, CLASSES, MASKS
from selfdet.interchange.mmdet_shared import NECK_OUT, Table
from selfdet.interchange.outgoing import Outgoing

# mmdet's names for ours, the first that matches; `mmdet_rcnn.RENAMED` has the other direction.
NAMES: Table = (
    *NECK_OUT,
    (r"rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"roi_heads\.box_head\.5\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box_head\.(\d)\.0\.", r"roi_head.bbox_head.shared_convs.\1.conv."),
    (r"roi_heads\.box_head\.(\d)\.1\.", r"roi_head.bbox_head.shared_convs.\1.NORM."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
)


def rcnn_state(detector: Detector) -> State:
    """An R-CNN's tensors under mmdet's names, the background last."""
    norm = detector.config()["options"]["neck_norm"] or ""
    made: State = {}
    for name, value in detector.net.state_dict().items():
        own = next(re.sub(f"^{ours}", theirs, name) for ours, theirs in NAMES if re.match(ours, name))
        made[own.replace("NORM", norm)] = without_background(name, value)
    return made


def without_background(name: str, value: Tensor) -> Tensor:
    """A tensor of ours by its `name` as mmdet has it: the background's class last, no boxes or masks of it."""
    if name.startswith(CLASSES):
        return value.roll(-1, 0)
    if name.startswith(BOXES):
        return value[4:]
    return value[1:] if name.startswith(MASKS) else value


def rcnn_model(given: Outgoing, body: dict[str, Any], pixels: dict[str, Any], norm: Any) -> dict[str, Any]:
    """mmdet's settings of the network: `body` and `pixels` are those of its backbone and images, `norm` of its
    pyramid."""
    config, backbone = given.network.config(), given.network.backbone
    options, sides = config["options"], [each[0] for each in config["anchor_sizes"]]
    width, scale = options["fpn_channels"], config["canonical_scale"]
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    regions = {"type": "SingleRoIExtractor", "out_channels": width, "featmap_strides": config["strides"][:4]}
    linear = options["box_head"] == "2fc"
    heads: dict[str, Any] = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": {**regions, "roi_layer": _cut(7), "finest_scale": scale // 4},
        "bbox_head": {
            "type": "Shared2FCBBoxHead" if linear else "Shared4Conv1FCBBoxHead",
            "in_channels": width,
            "fc_out_channels": 1024,
            "roi_feat_size": 7,
            "num_classes": config["num_classes"],
            "bbox_coder": {**coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "reg_class_agnostic": False,
            **({} if linear else {"conv_out_channels": width, "norm_cfg": norm}),
        },
    }
    if given.note["detector"] == "mask_rcnn":
        heads["mask_roi_extractor"] = {**regions, "roi_layer": _cut(14), "finest_scale": scale // 4}
        own = {"num_convs": 4, "in_channels": width, "conv_out_channels": 256, "num_classes": config["num_classes"]}
        heads["mask_head"] = {"type": "FCNMaskHead", **own}
    anchors = {"type": "AnchorGenerator", "base_sizes": sides, "scales": [1.0], "ratios": [0.5, 1.0, 2.0]}
    rcnn = {
        "score_thr": options["score_threshold"],
        "nms": {"type": "nms", "iou_threshold": config["nms_threshold"]},
        "max_per_img": options["detections"],
        "mask_thr_binary": 0.5,
    }
    return {
        "type": "MaskRCNN" if given.note["detector"] == "mask_rcnn" else "FasterRCNN",
        "data_preprocessor": pixels,
        "backbone": body,
        "neck": {
            "type": "FPN",
            "in_channels": list(backbone.channels),
            "out_channels": width,
            "num_outs": 5,
            "norm_cfg": norm,
        },
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": width,
            "feat_channels": width,
            "anchor_generator": {**anchors, "strides": config["strides"]},
            "bbox_coder": {**coder, "target_stds": [1.0] * 4},
        },
        "roi_head": heads,
        "test_cfg": {
            "rpn": {"nms_pre": 1000, "max_per_img": 1000, "nms": {"type": "nms", "iou_threshold": 0.7}},
            "rcnn": rcnn,
        },
    }


def _cut(cells: int) -> dict[str, Any]:
    return {"type": "RoIAlign", "output_size": cells, "sampling_ratio": 0, "aligned": True}
