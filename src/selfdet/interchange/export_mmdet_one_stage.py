"""RetinaNet and FCOS as mmdet's own, where they are that: tensors under its names, and the settings that build them."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.interchange.mmdet_one_stage import SCALES
from selfdet.interchange.mmdet_shared import NECK_OUT, Table
from selfdet.interchange.outgoing import Outgoing

# mmdet's names for ours behind the pyramid's own; `mmdet_one_stage` has the other direction.
COARSE: Table = (
    (r"backbone\.fpn\.extra_blocks\.p6\.(?:0\.)?(?!1\.)", "neck.fpn_convs.3.conv."),
    (r"backbone\.fpn\.extra_blocks\.p7\.(?:0\.)?(?!1\.)", "neck.fpn_convs.4.conv."),
    (r"backbone\.fpn\.extra_blocks\.p6\.1\.", "neck.fpn_convs.3.NORM."),
    (r"backbone\.fpn\.extra_blocks\.p7\.1\.", "neck.fpn_convs.4.NORM."),
)
NAMES: dict[str, Table] = {
    "retinanet": (
        (r"head\.classification_head\.conv\.(\d+)\.0\.", r"bbox_head.cls_convs.\1.conv."),
        (r"head\.regression_head\.conv\.(\d+)\.0\.", r"bbox_head.reg_convs.\1.conv."),
        (r"head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
        (r"head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
    ),
    "fcos": (
        (r"head\.classification_head\.conv\.", "bbox_head.cls_convs."),
        (r"head\.regression_head\.conv\.", "bbox_head.reg_convs."),
        (r"head\.classification_head\.cls_logits\.", "bbox_head.conv_cls."),
        (r"head\.regression_head\.bbox_reg\.", "bbox_head.conv_reg."),
        (r"head\.regression_head\.bbox_ctrness\.", "bbox_head.conv_centerness."),
        (SCALES, "bbox_head.scales"),
    ),
}
LAYER = re.compile(r"(bbox_head\.\w+_convs)\.(\d+)\.(\w+)")  # of FCOS's towers: convolution, norm and ReLU in a row
REASONS = {
    "fcos": "mmdet's FCOS has its points at the centres of cells, torchvision's at their corners",
    "retinanet": "mmdet's RetinaNet has anchors that are no whole pixels, torchvision's has them rounded",
}


def is_mmdets(detector: Detector) -> bool:
    """Whether a one-stage network is mmdet's and not torchvision's."""
    return detector.config()["options"].get("mmdet") is not None


def one_stage_state(detector: Detector) -> dict[str, Tensor]:
    """A one-stage network's tensors under mmdet's names."""
    config = detector.config()
    table, norm = (*NECK_OUT, *COARSE, *NAMES[config["detector"]]), config["options"]["neck_norm"] or ""
    made: dict[str, Tensor] = {}
    for name, value in detector.net.state_dict().items():
        own = next(re.sub(f"^{ours}", theirs, name) for ours, theirs in table if re.match(ours, name))
        layer = LAYER.fullmatch(own)
        if name == SCALES:
            made |= {f"{own}.{level}.scale": scale for level, scale in enumerate(value.clone())}
        elif layer is not None:
            number, kind = divmod(int(layer[2]), 3)
            made[f"{layer[1]}.{number}.{('conv', 'gn')[kind]}.{layer[3]}"] = value
        else:
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
    }
    fcos = config["detector"] == "fcos"
    if fcos:
        told = {name: form[name] for name in ("norm_on_bbox", "centerness_on_reg")}
        head |= {"type": "FCOSHead", "strides": config["strides"], "conv_bias": True, "center_sampling": True, **told}
    else:
        anchors = {"octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}
        head |= {
            "type": "RetinaHead",
            "anchor_generator": {"type": "AnchorGenerator", **anchors, "strides": config["strides"]},
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        }
    return {
        "type": "FCOS" if fcos else "RetinaNet",
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
