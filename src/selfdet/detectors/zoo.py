"""The detectors by key: `DETECTORS[key](num_classes, backbone, **options) -> Detector`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from selfdet.detectors.base import Detector
from selfdet.detectors.cascade_rcnn import cascade_rcnn
from selfdet.detectors.deformable_detr import deformable_detr
from selfdet.detectors.detr import detr
from selfdet.detectors.faster_rcnn import faster_rcnn
from selfdet.detectors.fcos import fcos
from selfdet.detectors.mask_rcnn import mask_rcnn
from selfdet.detectors.retinanet import retinanet
from selfdet.detectors.rtdetr import rtdetr

# The keys, for the command line.
DetectorKey = Literal[
    "fcos", "retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "detr", "deformable_detr", "rtdetr"
]

DETECTORS: dict[str, Callable[..., Detector]] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "detr": detr,
    "deformable_detr": deformable_detr,
    "rtdetr": rtdetr,
}
