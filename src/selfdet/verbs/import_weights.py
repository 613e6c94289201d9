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
from selfdet.interchange.imported import ImportedDetector
from selfdet.interchange.imports import Imported, NotTakenError, import_backbone, read_content
from selfdet.interchange.mmdet import import_detector
from selfdet.interchange.pixels import Pixels, check_pixels
from selfdet.interchange.pretrainings import import_pretraining
from selfdet.interchange.relatives import PRETRAINED
from selfdet.interchange.starts import NOTE, PRETRAINING, backbone_note, detector_note
from selfdet.interchange.transformers_folder import holds_detector, import_transformers, weights_in
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
        file: .safetensors, .pt, .pth, .ckpt or detectron2's .pkl; of transformers, the folder.
        out: weights file to write.
        format: program that wrote the file; auto recognises it from the names in it.
        part: what to take; if not given, the detector from mmdet, aligndet and transformers, and the backbone from all
            others. detector is possible for detectron2 too; pretraining, for MoCo v2 and DenseCL, also takes heads, key
            encoder and queues, so that `pretrain --stages backbone` continues with the same method.
        backbone: the network, if its shapes don't tell (timm networks other than ResNets, ViTs and Swins).
        pixels: what the network was trained on: rgb, normalised as the library does; bgr, the same with blue first;
            caffe, blue first in 0…255 with the mean taken off. bgr and caffe are converted to rgb in the first
            convolution. rgb if not given; required for detectron2, whose files are of all kinds.
        classes: names of a detector's classes, if the file doesn't name them.
        image_size: long side of a detector's images, pixels, at least 784 for an R-CNN; 1333 if not given.
        settings: the config.py with which mmdet trained the detector, if the file itself has none: an FCOS needs it.

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
    if source.is_dir():
        source = weights_in(source)
    reporter, content = Reporter(), read_content(source)
    key = recognise(content) if format == "auto" else format
    of_detector = part == "detector" if key == "detectron2" else key in DETECTOR_FORMATS and part in (None, "detector")
    if key == "transformers" and part is None:
        of_detector = holds_detector(content)
    if part == "detector" and not of_detector:
        raise UserError(f"--part detector: {NO_FORMAT if key is None else key} files give a backbone", "Leave it out")
    given = {"--classes": classes, "--image-size": image_size, "--settings": settings}
    if flag := next((each for each in given if not of_detector and given[each] is not None), None):
        raise UserError(f"{flag} is for detectors, and this gives a backbone", "Leave it out")
    if of_detector and key == "transformers" and (flag := "--settings" if settings else "--pixels" if pixels else None):
        raise UserError(f"{flag}: transformers' own config.json says how its network is built", "Leave it out")
    about = {"file": Path(file).name, "format": key, "pixels": pixels or "rgb", "sha256": _sha256(source)}
    taken: Imported | ImportedDetector
    try:
        if of_detector and key == "transformers":
            taken = import_transformers(source, name=backbone, classes=classes, image_size=image_size)
            name, state, note = _described(taken)
        elif of_detector:
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
    ids = taken.category_ids if taken.category_ids and len(taken.category_ids) == len(taken.classes) else ()
    note = detector_note(detector, taken.classes, ids or range(1, len(taken.classes) + 1), taken.image_size)
    if taken.pretrained:
        note["method"] = PRETRAINED
    return f"{note['detector']} over {note['backbone']}", detector.net.state_dict(), note


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
