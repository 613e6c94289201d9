"""RetinaNet as mmdet's own network, where it is that: tensors under its names, and the settings that build it."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.interchange.mmdet_shared import Table
from selfdet.interchange.outgoing import Outgoing

# mmdet's names for ours behind the pyramid's own; `mmdet_one_stage` has the other direction.
NAMES: dict[str, Table] = {
    "retinanet": (
        (r"backbone\.fpn\.extra_blocks\.p6\.(?:0\.)?(?!1\.)", "neck.fpn_convs.3.conv."),
        (r"backbone\.fpn\.extra_blocks\.p7\.(?:0\.)?(?!1\.)", "neck.fpn_convs.4.conv."),
        (r"backbone\.fpn\.extra_blocks\.p6\.1\.", "neck.fpn_convs.3.NORM."),
        (r"backbone\.fpn\.extra_blocks\.p7\.1\.", "neck.fpn_convs.4.NORM."),
        (r"head\.classification_head\.conv\.(\d+)\.0\.", r"bbox_head.cls_convs.\1.conv."),
        (r"head\.regression_head\.conv\.(\d+)\.0\.", r"bbox_head.reg_convs.\1.conv."),
        (r"head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
        (r"head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
    ),
}
REASONS = {
    "retinanet": "mmdet's RetinaNet has anchors that are no whole pixels, torchvision's has them rounded",
}


def is_mmdets(detector: Detector) -> bool:
    """Whether a one-stage network is mmdet's and not torchvision's."""
    return detector.config()["options"].get("mmdet") is not None


def one_stage_state(detector: Detector, shared: Table) -> dict[str, Tensor]:
    """A one-stage network's tensors under mmdet's names; `shared` has those of the backbone and the pyramid."""
    config = detector.config()
    table, norm = (*shared, *NAMES[config["detector"]]), config["options"]["neck_norm"] or ""
    made: dict[str, Tensor] = {}
    for name, value in detector.net.state_dict().items():
        own = next(re.sub(f"^{ours}", theirs, name) for ours, theirs in table if re.match(ours, name))
        made[own.replace("NORM", norm)] = value
    return made


def one_stage_model(given: Outgoing, body: dict[str, Any], pixels: dict[str, Any], norm: Any) -> dict[str, Any]:
    """mmdet's settings of the network: `body` and `pixels` are those of its backbone and images, `norm` of its
    pyramid."""
    config = given.network.config()
    options, form, width = config["options"], config["options"]["mmdet"], config["options"]["fpn_channels"]
    head: dict[str, Any] = {
        "num_classes": config["num_classes"],
        "in_channels": width,
        "feat_channels": width,
        "stacked_convs": options["head_convs"],
        "type": "RetinaHead",
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": config["strides"],
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
    }
    return {
        "type": "RetinaNet",
        "data_preprocessor": pixels,
        "backbone": body,
        "neck": {
            "type": "FPN",
            "in_channels": list(given.network.backbone.channels),
            "out_channels": width,
            "start_level": 1,
            "num_outs": 5,
            "add_extra_convs": form["add_extra_convs"],
            "relu_before_extra_convs": form["relu_before_extra_convs"],
            "norm_cfg": norm,
        },
        "bbox_head": head,
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": options["score_threshold"],
            "nms": {"type": "nms", "iou_threshold": form["iou_threshold"]},
            "max_per_img": options["detections"],
        },
    }
