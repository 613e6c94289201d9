"""Which backbones, detectors and stages are tried together: each row goes all the way, at tiny size.

A new backbone, detector, method or target of the export is a new value in a row; docs/make_matrix.py keeps what passed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from tests.detectors.rcnn_scenes import masked
from tests.detectors.scenes import sample
from tests.detectors.scenes import view_batch as box_views
from tests.methods.tiny import view_batch

from selfdet.data.sample import Sample
from selfdet.detectors.zoo import DETECTORS
from selfdet.interchange.companions import rebuild
from selfdet.interchange.export_check import compare_detections
from selfdet.interchange.export_detector import write_detector
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.starts import (
    backbone_note,
    build_detector,
    detector_note,
    load_backbone,
    load_detector,
    resolve_start,
    save_backbone,
    save_detector,
)
from selfdet.interchange.targets import TARGETS
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.base import Method
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone, torchvision_resnets
from selfdet.models.composite import plain_name
from selfdet.verbs.import_weights import import_weights
from selfdet.verbs.pretrain_backbone import METHODS

SIZE = 64
BOXES = [[6, 8, 40, 52], [30, 20, 60, 50]]
# What makes a detector small; no threshold, so that there is always something to find.
SMALL: dict[str, dict[str, Any]] = {
    **{key: {"fpn_channels": 64, "head_convs": 1} for key in ("fcos", "retinanet")},
    **{key: {"fpn_channels": 64} for key in ("faster_rcnn", "mask_rcnn", "cascade_rcnn")},
    **{key: {"layers": 1, "queries": 60} for key in ("detr", "deformable_detr")},
    "rtdetr": {"queries": 60},
}


@dataclass(frozen=True)
class Row:
    """A backbone, the method of its stage ("" for none: AlignDet alone), a detector with or without masks, and where it
    is exported to ("" for nowhere)."""

    backbone: str
    detector: str
    method: str = ""
    export: str = "torchvision"
    masks: bool = False

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.backbone}-{self.detector}"


# Each kind of backbone (ResNets, small ones, ConvNeXt, Swin, plain transformers, composite ones) with each kind of
# detector (of one stage, of two, cascades, DETRs).
ROWS = [
    Row("resnet18", "fcos", "densecl", export="onnx"),
    Row("resnet50", "mask_rcnn", "moco", masks=True),
    Row("resnet18", "cascade_rcnn", "simclr", masks=True),
    Row("resnet101", "detr", export="transformers"),
    Row("mobilenetv2_100", "retinanet", "moco", export="onnx"),
    Row("tf_efficientnet_lite0", "faster_rcnn", "densecl", export="onnx"),
    Row("tf_efficientnet_lite0", "cascade_rcnn"),
    Row("mobilenetv2_100", "rtdetr", "simclr", export="torch-export"),
    Row("convnext_atto", "fcos", "simclr"),
    Row("convnext_tiny", "mask_rcnn", masks=True),
    Row("convnext_atto", "cascade_rcnn", "moco", masks=True),
    Row("convnext_atto", "deformable_detr", "densecl", export="torch-export"),
    Row("swin_tiny_patch4_window7_224", "retinanet", "densecl"),
    Row("swin_small_patch4_window7_224", "faster_rcnn"),
    Row("swin_tiny_patch4_window7_224", "cascade_rcnn", "simclr"),
    Row("swin_base_patch4_window7_224", "detr", export=""),
    Row("vit_tiny_patch16_224", "fcos", "densecl"),
    Row("vit_small_patch16_dinov3", "mask_rcnn", masks=True),
    Row("vit_small_patch14_dinov2", "cascade_rcnn"),
    Row("vit_tiny_patch16_224", "detr", "moco", export=""),
    Row("cb-resnet50", "fcos"),
    Row("cb-resnet18", "retinanet", "moco"),
    Row("cb-swin_tiny_patch4_window7_224", "faster_rcnn"),
    Row("cb-resnet18", "cascade_rcnn", "densecl", masks=True),
    Row("cb-resnet18", "rtdetr", "simclr", export="torch-export"),
]


def whole_way(row: Row, folder: Path) -> dict[str, Any]:
    """Import the library's weights, pre-train the backbone and then neck and head for a step each, hand over, fine-tune
    for a step, detect, export and find the same there. Returns the row's line of the record; raises where it ends."""
    torch.manual_seed(0)
    plain = plain_name(row.backbone)
    library = "torchvision" if plain in torchvision_resnets() else "timm"
    weights = imported(plain, library, folder)
    stages = ["detector", "finetune"]
    if row.method:
        backbone, _ = load_backbone(plain, str(weights))
        queue = {} if row.method == "simclr" else {"queue_length": 16}
        one_step(METHODS[row.method](backbone, **queue, seed=0), view_batch(4, SIZE))
        weights = folder / "backbone.safetensors"
        save_backbone(weights, backbone, {"method": row.method})
        stages = ["backbone", *stages]
    backbone, report = load_backbone(row.backbone, str(weights))
    assert report is not None
    assert all(part.share == 1 for name, part in report.rows.items() if name != "neck")
    options = {**SMALL[row.detector], "image_size": SIZE}
    detector = DETECTORS[row.detector](1, backbone, **options, batch_norm="frozen")
    one_step(AlignDet(detector, embedding_dim=16, samples=60), box_views(BOXES, BOXES[:1], size=SIZE))
    note = detector_note(detector, ["object"], [1], SIZE)
    save_detector(folder / "pretrained.safetensors", detector, {**note, "method": "aligndet"})

    cascade = {"masks": True} if row.masks and row.detector == "cascade_rcnn" else {}
    start = resolve_start(str(folder / "pretrained.safetensors"))
    tuned, report = build_detector(start, 2, None, None, {**cascade, "score_threshold": 0.0, "detections": 20})
    assert report is not None
    assert report.rows["neck"].share == report.rows["head"].share == 1
    assert tuned.has_masks == row.masks
    one_step(Supervised(tuned), [labelled(row.masks, 0), labelled(row.masks, 1)])
    save_detector(folder / "detector.safetensors", tuned, detector_note(tuned, ["a", "b"], [1, 2], SIZE))
    detector, note = load_detector(str(folder / "detector.safetensors"))
    found = detector.predict([labelled(False, 2)])
    assert len(found[0]["boxes"]) > 0
    assert all(bool(value.isfinite().all()) for value in found[0].values())
    if row.export:
        exported(row, folder / "exported", detector, note, found)
    return {**asdict(row), "library": library, "import": library, "stages": stages}


def imported(name: str, library: str, folder: Path) -> Path:
    """A file of the library's own network, as selfdet takes it."""
    whole = torchvision.models.get_model(name) if library == "torchvision" else timm.create_model(name)
    torch.save({"state_dict": whole.state_dict()}, folder / "theirs.pth")
    out = folder / "imported.safetensors"
    import_weights(file=str(folder / "theirs.pth"), out=str(out), format=library, backbone=name)  # type: ignore[arg-type]
    assert backbone_note(build_backbone(name), {}).items() <= resolve_start(str(out)).note.items()
    return out


def one_step(method: Method, batch: Any) -> None:
    """One step of SGD, finite."""
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    loss = method.train()(batch)["loss"]
    assert loss.isfinite()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.SGD(parameters, 0.001).step()
    method.after_step(0, 1)


def labelled(masks: bool, seed: int) -> Sample:
    """An image with two objects of two classes, with their masks if asked."""
    one = sample(SIZE, SIZE, BOXES, [0, 1], seed=seed)
    return masked(one) if masks else one


def exported(row: Row, folder: Path, detector: Any, note: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Write the detector for the row's target and find the same there."""
    folder.mkdir()
    if row.export != "torchvision":
        TARGETS[row.export].writers["detector"](folder, Outgoing("detector", detector, note, row.name))
        return
    write_detector(folder, detector, note)
    with torch.no_grad():
        theirs = rebuild.build(folder)([labelled(False, 2).image.float() / 255])
    compare_detections(found, theirs)
