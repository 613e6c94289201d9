"""`selfdet import-weights`: weights of another program as a file that selfdet starts from, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdet.data.untrusted import expanded
from selfdet.errors import UserError
from selfdet.interchange.formats import FormatKey
from selfdet.interchange.imports import NotTakenError, Pixels, import_backbone, read_content
from selfdet.interchange.starts import NOTE, backbone_note
from selfdet.interchange.weights import write_safetensors
from selfdet.training.log import Reporter


def import_weights(
    *, file: str, out: str, format: FormatKey = "auto", backbone: str | None = None, pixels: Pixels | None = None
) -> dict[str, Any]:
    """Make a weights file of another program one that `--init` and `--backbone-weights` take.

    Read are the formats of docs/how-to-weights.md; nothing in a file is executed. Every tensor of the network has to be
    there, under the format's names and in its shape; else nothing is written, and the table says what did not fit. No
    name is guessed.

    Args:
        file: .safetensors, .pt, .pth, .ckpt or detectron2's .pkl.
        out: weights file to write.
        format: whose file it is; auto goes by its names.
        backbone: the network, where its shapes don't tell (other networks of timm than ResNets, ViTs and Swins).
        pixels: what the network was trained on: rgb, normalised as the library does; bgr, the same with blue first;
            caffe, blue first in 0…255 with the mean taken off. What isn't rgb becomes so, in the first convolution.
            rgb if not given; files of detectron2 are of every kind, and need it.

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
    reporter = Reporter()
    try:
        taken = import_backbone(source, read_content(source), format, backbone, pixels)
    except NotTakenError as error:
        reporter.line(error.report.table())
        raise
    reporter.line(taken.report.table())
    for line in taken.said:
        reporter.line(line)
    about = {"file": source.name, "format": taken.format, "pixels": pixels or "rgb", "sha256": _sha256(source)}
    note: Mapping[str, Any] = {**backbone_note(taken.backbone, {}), "imported": {**about, "done": taken.said}}
    write_safetensors(target, taken.state, {NOTE: json.dumps(note)})
    rest = f"; left out: {', '.join(taken.left)}" if taken.left else ""
    reporter.line(f"{taken.backbone.name} from {taken.format} weights: {out}{rest}")
    return {
        "out": out,
        "kind": "backbone",
        "format": taken.format,
        "backbone": taken.backbone.name,
        "left_out": taken.left,
        "done": taken.said,
        "report": taken.report.to_dict(),
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
