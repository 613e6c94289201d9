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

from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.interchange.companions.rebuild import NETWORKS
from selfdet.interchange.detectron2_names import as_detectron2, as_mmdet, detector_as_detectron2
from selfdet.interchange.export_backbone import home_of
from selfdet.interchange.export_check import ExportMismatchError
from selfdet.interchange.export_detectron2 import detectron2_settings
from selfdet.interchange.export_mmdet_one_stage import REASONS as ONE_STAGE
from selfdet.interchange.export_mmdet_one_stage import is_mmdets, one_stage_model, one_stage_state
from selfdet.interchange.export_mmdet_rcnn import rcnn_model, rcnn_state, without_background
from selfdet.interchange.imports import import_backbone, read_content
from selfdet.interchange.mmdet import SELFDET, import_detector
from selfdet.interchange.mmdet_rcnn import FULL_SCALE
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.models.backbones import Backbone
from selfdet.training.rundir import write_text

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


def export_peer(folder: Path, given: Outgoing, library: str) -> Written:
    """Write what `library`, mmdet or detectron2, loads as the weights of a detector or backbone, the settings that
    build it there and a table of its tensors, and read it again.

    Raises: UserError for what the library would not find the same with; ExportMismatchError.
    """
    network = given.network
    backbone: Backbone = network if given.kind == "backbone" else network.backbone
    if backbone.library != "torchvision" or not RESNET.fullmatch(backbone.name):
        whole = "torchvision" if given.note.get("detector") in NETWORKS else "onnx"
        raise UserError(
            f"--to {library}: the backbone of {given.source} is {backbone.library}'s {backbone.library_name}, and only "
            "torchvision's plain ResNets have names there",
            home_of(backbone) if given.kind == "backbone" else f"--to {whole} writes all of it",
        )
    if given.kind == "backbone":
        state, warning = network.net.state_dict(), ""
        state = as_detectron2(state) if library == "detectron2" else {f"backbone.{n}": v for n, v in state.items()}
    else:
        _check_kind(given, library)
        made = one_stage_state if is_mmdets(network) else rcnn_state
        state, warning = made(network), _warning(network, library)
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
    make = one_stage_model if is_mmdets(given.network) else rcnn_model
    model = make(given, body, pixels, norm)
    return {"model": model, "load_from": "detector.pth", "image_scale": (size, size)}


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
        if not torch.equal(*(without_background(name, each[name].cpu()) for each in (own, found)))
    ]
    if wrong:
        raise ExportMismatchError(f"{file.name} differs in {len(wrong)} tensors once it is read, as {sorted(wrong)[0]}")
    return {"tensors": len(own) - len(unused)}
