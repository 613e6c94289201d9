"""detectron2's settings of a backbone, Faster or Mask R-CNN."""

from __future__ import annotations

from typing import Any

import yaml

from selfdet.interchange.outgoing import Outgoing
from selfdet.models.backbones import Backbone


def detectron2_settings(given: Outgoing) -> str:
    """What is merged into detectron2's own configuration; one for a network on a pyramid."""
    backbone: Backbone = given.network if given.kind == "backbone" else given.network.backbone
    depth = int(backbone.name.removeprefix("resnet"))
    model: dict[str, Any] = {
        "WEIGHTS": f"{given.kind}.pth",
        "PIXEL_MEAN": [round(255 * each, 3) for each in backbone.mean],
        "PIXEL_STD": [round(255 * each, 3) for each in backbone.std],
        "RESNETS": {"DEPTH": depth, "STRIDE_IN_1X1": False, "RES2_OUT_CHANNELS": 64 if depth < 50 else 256},
    }
    settings: dict[str, Any] = {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}
    if given.kind == "detector":
        config = given.network.config()
        options, norm = config["options"], {None: "", "bn": "BN", "gn": "GN"}[config["options"]["neck_norm"]]
        linear, size = options["box_head"] == "2fc", given.note["image_size"]
        settings["INPUT"] |= {"MIN_SIZE_TEST": size, "MAX_SIZE_TEST": size}
        settings["TEST"] = {"DETECTIONS_PER_IMAGE": options["detections"]}
        levels = ["res2", "res3", "res4", "res5"]
        model["META_ARCHITECTURE"], model["MASK_ON"] = "GeneralizedRCNN", given.note["detector"] == "mask_rcnn"
        model["BACKBONE"] = {"NAME": "build_resnet_fpn_backbone"}
        model["RESNETS"]["OUT_FEATURES"] = levels
        model["FPN"] = {"IN_FEATURES": levels, "OUT_CHANNELS": options["fpn_channels"], "NORM": norm}
        model["ANCHOR_GENERATOR"] = {"SIZES": config["anchor_sizes"], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]}
        model["RPN"] = {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"], "PRE_NMS_TOPK_TEST": 1000}
        model["ROI_HEADS"] = {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "NUM_CLASSES": config["num_classes"],
            "SCORE_THRESH_TEST": options["score_threshold"],
            "NMS_THRESH_TEST": config["nms_threshold"],
        }
        model["ROI_BOX_HEAD"] = {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 2 if linear else 1,
            "NUM_CONV": 0 if linear else 4,
            "CONV_DIM": options["fpn_channels"],
            "FC_DIM": 1024,
            "NORM": "" if linear else norm,
            "POOLER_RESOLUTION": 7,
        }
        model["ROI_MASK_HEAD"] = {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_RESOLUTION": 14}
    return yaml.safe_dump(settings, sort_keys=False)
