"""`selfdet import-weights`: weights of another program as a file that selfdet starts from, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selfdet.data.untrusted import expanded
from selfdet.errors import UserError
from selfdet.interchange.detectron2_names import as_mmdet
from selfdet.interchange.formats import DETECTOR_FORMATS, NO_FORMAT, FormatKey, recognise
from selfdet.interchange.imports import Imported, NotTakenError, Pixels, check_pixels, import_backbone, read_content
from selfdet.interchange.mmdet import ImportedDetector, import_detector
from selfdet.interchange.pretrainings import import_pretraining
from selfdet.interchange.relatives import PRETRAINED
from selfdet.interchange.starts import NOTE, PRETRAINING, backbone_note, detector_note
from selfdet.interchange.weights import write_safetensors
from selfdet.training.log import Reporter


def import_weights(
    *,
    file: str,
    out: str,
    format: FormatKey = "auto",
    part: Literal["detector", "backbone", "pretraining"] | None = None,
    backbone: str | None = None,
    pixels: Pixels | None = None,
    classes: list[str] | None = None,
    image_size: int | None = None,
    settings: str | None = None,
) -> dict[str, Any]:
    """Make a weights file of another program one that `--init` and `--backbone-weights` take.

    Read are the formats of docs/how-to-weights.md; nothing in a file is executed. Every tensor of the network has to be
    there, under the format's names and in its shape; else nothing is written, and the table says what did not fit. No
    name is guessed.

    Args:
        file: .safetensors, .pt, .pth, .ckpt or detectron2's .pkl.
        out: weights file to write.
        format: whose file it is; auto goes by its names.
        part: what of it; the detector of mmdet and aligndet, of all others the backbone, if not given. Of detectron2
            it may be the detector, too; of MoCo v2 and DenseCL, pretraining: heads, key encoder and queues as well, so
            that `pretrain --stages backbone` goes on with the same method.
        backbone: the network, where its shapes don't tell (other networks of timm than ResNets, ViTs and Swins).
        pixels: what the network was trained on: rgb, normalised as the library does; bgr, the same with blue first;
            caffe, blue first in 0…255 with the mean taken off. What isn't rgb becomes so, in the first convolution.
            rgb if not given; files of detectron2 are of every kind, and need it.
        classes: names of a detector's classes, where the file doesn't name them.
        image_size: long side (px) that a detector's images will have, of an R-CNN at least 784; 1333 if not given.
        settings: the config.py of mmdet's training of a detector, where the file itself has none: an FCOS needs it.

    Raises: UserError when the file is missing, damaged, of another format or another network, or not finite, and when
    `out` exists.

    Example:
        selfdet import-weights --file moco_v2_800ep.pth.tar --out moco.safetensors
    """
    source, target = expanded(file), expanded(out)
    if target.exists():
        raise UserError(f"--out {out} exists", "Name a new file")
    if not target.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {target.parent}", "Make it, or name another")
    reporter, content = Reporter(), read_content(source)
    key = recognise(content) if format == "auto" else format
    of_detector = part == "detector" if key == "detectron2" else key in DETECTOR_FORMATS and part != "backbone"
    if part == "detector" and not of_detector:
        raise UserError(f"--part detector: {NO_FORMAT if key is None else key} files give a backbone", "Leave it out")
    given = {"--classes": classes, "--image-size": image_size, "--settings": settings}
    if flag := next((each for each in given if not of_detector and given[each] is not None), None):
        raise UserError(f"{flag} is for detectors, and this gives a backbone", "Leave it out")
    about = {"file": source.name, "format": key, "pixels": pixels or "rgb", "sha256": _sha256(source)}
    taken: Imported | ImportedDetector
    try:
        if of_detector:
            if key == "detectron2":
                check_pixels(source, key, pixels, content)
                content = as_mmdet(content)
            taken = import_detector(
                source,
                content,
                name=backbone,
                pixels=pixels,
                classes=classes,
                image_size=image_size,
                settings=None if settings is None else expanded(settings),
                pretrained=key == "aligndet",
            )
            name, state, note = _described(taken)
        elif part == "pretraining":
            whole = import_pretraining(source, content, format, backbone, pixels)
            taken, state = whole.taken, whole.state
            name = f"{whole.method} over {taken.backbone.name}"
            note = backbone_note(taken.backbone, {"kind": PRETRAINING, "method": whole.method})
        else:
            taken = import_backbone(source, content, format, backbone, pixels)
            name, state, note = taken.backbone.name, taken.state, backbone_note(taken.backbone, {})
    except NotTakenError as error:
        reporter.line(error.report.table())
        raise
    reporter.line(taken.report.table())
    for line in taken.said:
        reporter.line(line)
    note = {**note, "imported": {**about, "done": taken.said}}
    write_safetensors(target, state, {NOTE: json.dumps(note)})
    rest = f"; left out: {', '.join(taken.left)}" if taken.left else ""
    reporter.line(f"{name} from {key} weights: {out}{rest}")
    return {
        "out": out,
        "kind": note["kind"],
        "format": key,
        "backbone": note["backbone"],
        **{each: note[each] for each in ("detector", "classes", "image_size", "method") if each in note},
        "left_out": taken.left,
        "done": taken.said,
        "report": taken.report.to_dict(),
    }


def _described(taken: ImportedDetector) -> tuple[str, Mapping[str, Tensor], dict[str, Any]]:
    """What it is called, its tensors and what its file says of it."""
    detector = taken.detector
    note = detector_note(detector, taken.classes, range(1, len(taken.classes) + 1), taken.image_size)
    if taken.pretrained:
        note["method"] = PRETRAINED
    return f"{note['detector']} over {note['backbone']}", detector.net.state_dict(), note


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
