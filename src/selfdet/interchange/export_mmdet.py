"""Backbones and detectors under the names of mmdet and detectron2, with a configuration for them.

Neither can be run here: what is written is read again and compared, and a table of names and shapes goes along.
"""

from __future__ import annotations

import json
import pprint
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.interchange.detectron2_names import as_detectron2, as_mmdet, detector_as_detectron2
from selfdet.interchange.export_check import ExportMismatchError
from selfdet.interchange.export_mmdet_one_stage import REASONS as ONE_STAGE
from selfdet.interchange.export_mmdet_one_stage import is_mmdets, one_stage_model, one_stage_state
from selfdet.interchange.imports import import_backbone, read_content
from selfdet.interchange.mmdet import SELFDET, import_detector
from selfdet.interchange.mmdet_rcnn import BOXES, CLASSES, FULL_SCALE, MASKS
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.models.backbones import Backbone
from selfdet.training.rundir import write_text

State = dict[str, Tensor]
RESNET = re.compile(r"resnet(18|34|50|101|152)")
SHAPES = "shapes.txt"
# Why a kind of detector is not what these libraries call so.
REASONS = {
    "mmdet": {
        **ONE_STAGE,
        "cascade_rcnn": "mmdet's cascade takes the mean of its stages' logits, ours that of their probabilities",
    },
    "detectron2": {
        "fcos": "detectron2's FCOS has its points at the centres of cells, torchvision's at their corners",
        "retinanet": "detectron2 makes RetinaNet's coarse levels from the backbone's last map, torchvision from the "
        "pyramid's",
        "cascade_rcnn": "selfdet reads no cascade of detectron2's back, so that nothing would prove it",
    },
}


# mmdet's names for ours, the first that matches; `mmdet.RENAMED` has the other direction.
NAMES = (
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.", r"neck.lateral_convs.\1.NORM."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.", r"neck.fpn_convs.\1.NORM."),
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


def export_peer(folder: Path, given: Outgoing, library: str) -> Written:
    """Write what `library`, mmdet or detectron2, loads as the weights of a detector or backbone, the settings that
    build it there and a table of its tensors, and read it again.

    Raises: UserError for what the library would not find the same with; ExportMismatchError.
    """
    network = given.network
    backbone: Backbone = network if given.kind == "backbone" else network.backbone
    if backbone.library != "torchvision" or not RESNET.fullmatch(backbone.name):
        raise UserError(
            f"--to {library}: the backbone of {given.source} is {backbone.library}'s {backbone.library_name}, and only "
            "torchvision's plain ResNets have names there",
            "Export it to its own library",
        )
    if given.kind == "backbone":
        state, warning = network.net.state_dict(), ""
        state = as_detectron2(state) if library == "detectron2" else {f"backbone.{n}": v for n, v in state.items()}
    else:
        _check_kind(given, library)
        state, warning = mmdet_state(network), _warning(network, library)
    meta = {"CLASSES": tuple(given.note.get("classes", ())), SELFDET: json.dumps(_note(given))}
    if library == "mmdet":
        file, content = folder / f"{given.kind}.pth", {"meta": meta, "state_dict": state}
        text = "".join(f"{name} = {pprint.pformat(each, width=110)}\n" for name, each in mmdet_settings(given).items())
        write_text(folder / "config.py", f"# For mmdet 3; not run there.\n{text}")
    else:
        if given.kind == "detector":
            state = detector_as_detectron2(state)
        file = folder / f"{given.kind}.pth"
        content = {
            "model": state,
            "__author__": "selfdet",
            "matching_heuristics": given.kind == "backbone",
            "meta": meta,
        }
        write_text(folder / "config.yaml", f"# For detectron2; not run there.\n{detectron2_settings(given)}")
    torch.save(content, file)
    rows = (
        f"{name}\t{'×'.join(map(str, value.shape)) or '1'}\t{str(value.dtype)[6:]}" for name, value in state.items()
    )
    write_text(folder / SHAPES, "\n".join(rows) + "\n")
    figures = _read_again(file, given, library)
    equal = f"; but not equal there: {warning}" if warning else ""
    line = f"not run in {library}, which does not install here; read again, {figures['tensors']} tensors are the same"
    return Written({**figures, "run_in_the_library": False, **({"warning": warning} if warning else {})}, line + equal)


def _note(given: Outgoing) -> dict[str, Any]:
    if given.kind == "backbone":
        return {"kind": "backbone", "backbone": given.network.name}
    names = ("detector", "backbone", "options", "classes", "category_ids", "image_size")
    return {"kind": "detector", **{name: given.note[name] for name in names}}


def _check_kind(given: Outgoing, library: str) -> None:
    kind = given.note["detector"]
    if library == "mmdet" and is_mmdets(given.network):
        return
    reason = REASONS[library].get(kind)
    if given.network.config()["options"].get("neck", "fpn") != "fpn":
        reason = "a C4 detector has no names there that selfdet reads back"
    if reason or kind not in ("faster_rcnn", "mask_rcnn"):
        raise UserError(
            f"--to {library}: {given.source} is a {kind}; {reason or f'{library} has none that finds the same'}",
            "Export its backbone, with --part backbone",
        )


def _warning(detector: Detector, library: str) -> str:
    options = detector.config()["options"]
    if is_mmdets(detector):
        return ""
    if options["regions"] != "exact":
        return "anchors and regions of this detector are torchvision's, half a pixel off; fine-tune it there"
    if library == "detectron2" and options["image_size"] < FULL_SCALE:
        return f"regions of images below {FULL_SCALE} px are of other levels there; fine-tune it there"
    return ""


def mmdet_state(detector: Detector) -> State:
    """A detector's tensors under mmdet's names, an R-CNN's background last."""
    if is_mmdets(detector):
        return one_stage_state(detector, NAMES[:5])
    norm = detector.config()["options"]["neck_norm"] or ""
    made: State = {}
    for name, value in detector.net.state_dict().items():
        own = next(re.sub(f"^{ours}", theirs, name) for ours, theirs in NAMES if re.match(ours, name))
        made[own.replace("NORM", norm)] = _without_background(name, value)
    return made


def _without_background(name: str, value: Tensor) -> Tensor:
    if name.startswith(CLASSES):
        return value.roll(-1, 0)
    if name.startswith(BOXES):
        return value[4:]
    return value[1:] if name.startswith(MASKS) else value


def mmdet_settings(given: Outgoing) -> dict[str, Any]:
    """What `mmdet.registry.MODELS.build` makes the network of, and where its weights are."""
    backbone: Backbone = given.network if given.kind == "backbone" else given.network.backbone
    body = {
        "type": "ResNet",
        "depth": int(backbone.name.removeprefix("resnet")),
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "style": "pytorch",
    }
    pixels = {
        "type": "DetDataPreprocessor",
        "mean": [round(255 * each, 3) for each in backbone.mean],
        "std": [round(255 * each, 3) for each in backbone.std],
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    }
    if given.kind == "backbone":
        body["init_cfg"] = {"type": "Pretrained", "checkpoint": "backbone.pth", "prefix": "backbone."}
        return {"backbone": body, "data_preprocessor": pixels}
    size, options = given.note["image_size"], given.network.config()["options"]
    norm = {None: None, "bn": {"type": "BN"}, "gn": {"type": "GN", "num_groups": 32}}[options["neck_norm"]]
    make = one_stage_model if is_mmdets(given.network) else _rcnn_model
    model = make(given, body, pixels, norm)
    return {"model": model, "load_from": "detector.pth", "image_scale": (size, size)}


def _rcnn_model(given: Outgoing, body: dict[str, Any], pixels: dict[str, Any], norm: Any) -> dict[str, Any]:
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


def _read_again(file: Path, given: Outgoing, library: str) -> dict[str, Any]:
    """Raises: ExportMismatchError where the file is not the network once it is read."""
    content, network = read_content(file), given.network
    if given.kind == "backbone":
        found = import_backbone(file, content, library, network.name, "rgb").state
    else:
        content = as_mmdet(content) if library == "detectron2" else content
        again = import_detector(file, content, name=network.backbone.name)
        if again.detector.config() != network.config() or again.classes != list(given.note["classes"]):
            raise ExportMismatchError(f"{file.name} is read as another detector")
        found = again.detector.net.state_dict()
    own = network.net.state_dict()
    # Not a weight: how many batches a norm has seen, of which detectron2 keeps no count.
    unused = {name for name in own if name.endswith("num_batches_tracked")}
    # Rows of the background in the layers of boxes and masks are never read, and have no place there.
    wrong = [
        name
        for name in own.keys() - unused
        if not torch.equal(*(_without_background(name, each[name].cpu()) for each in (own, found)))
    ]
    if wrong:
        raise ExportMismatchError(f"{file.name} differs in {len(wrong)} tensors once it is read, as {sorted(wrong)[0]}")
    return {"tensors": len(own) - len(unused)}
