"""What `--init` and `--backbone-weights` may name, and how it becomes a backbone or a detector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selfdet.data.labels import Labels
from selfdet.detectors.base import Detector, Part
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.weights import read_weights, write_safetensors
from selfdet.models.backbones import Backbone, build_backbone
from selfdet.training.rundir import RunDir
from selfdet.training.transfer import TransferReport, transfer

NOTE = "selfdet"  # the metadata key under which a weights file describes itself, as JSON


@dataclass
class Start:
    """Where a fine-tuning starts: tensors under the library's names, and what the file says of itself.

    `kind`: `scratch` (no tensors), `library` (the library fills the backbone), `backbone` or `detector`.
    """

    kind: Literal["scratch", "library", "backbone", "detector"]
    source: str
    state: dict[str, Tensor] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)


def resolve_start(init: str) -> Start:
    """Read what `--init` names: `scratch`, a run directory, a weights file, or `library:NAME`.

    Raises: UserError when it is none of these, or the run has no weights yet.
    """
    if init == "scratch":
        return Start("scratch", "scratch")
    if init.startswith("library:"):
        return Start("library", init, note={"backbone": init.split(":", 1)[1]})
    path = Path(init)
    if path.is_dir():
        run = RunDir(path)
        run.read_config()
        found = next((file for file in (run.detector, run.backbone) if file.is_file()), None)
        if found is None:
            raise UserError(f"{path} holds no weights yet", "Finish the run with its own command and --resume")
        path = found
    elif not path.is_file():
        raise UserError(
            f"--init {init} does not exist", "Give scratch, a run directory, a weights file or library:NAME"
        )
    state, metadata = read_weights(path)
    note = _note(metadata)
    kind: Literal["backbone", "detector"] = "detector" if note.get("kind") == "detector" else "backbone"
    return Start(kind, str(path), state, note)


def _note(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        note = json.loads(metadata.get(NOTE, "{}"))
    except json.JSONDecodeError:
        note = {}
    return note if isinstance(note, dict) else {}


def load_backbone(name: str, weights: str | None) -> tuple[Backbone, TransferReport | None]:
    """A backbone by name, random, from its library or from a file or run, with the report of what was reused.

    Raises: UserError for unknown names and for weights of another architecture (under 90 % reused).
    """
    if weights in (None, "random", "scratch"):
        return build_backbone(name), None
    if weights == "library" or str(weights).startswith("library:"):
        return build_backbone(name, "library"), None
    start = resolve_start(str(weights))
    backbone = build_backbone(name)
    return backbone, fill_backbone(backbone, start)


def fill_backbone(backbone: Backbone, start: Start) -> TransferReport:
    """Load a start's tensors into a backbone.

    Raises: UserError when less than 90 % of the backbone's elements are found.
    """
    return transfer(backbone.net, start.state, {"backbone": Part([".*"], reinit=False)}, expect={"backbone"})


def build_detector(
    start: Start, num_classes: int, detector: str | None, backbone: str | None, options: Mapping[str, Any]
) -> tuple[Detector, TransferReport | None]:
    """A detector filled from a start, with the report of what was reused; last layers are always fresh.

    `detector` and `backbone` name what the start leaves open (fcos on resnet50 where nobody says); `options` go to
    the builder, over those of a start that is a detector itself.
    Raises: UserError when the start's weights are of another architecture.
    """
    name = backbone or start.note.get("backbone") or "resnet50"
    if start.kind == "library" and backbone not in (None, start.note["backbone"]):
        raise UserError(f"--init {start.source} and --backbone {backbone} disagree", "Leave --backbone out")
    key = detector or start.note.get("detector") or "fcos"
    body = build_backbone(name, "library" if start.kind == "library" else None)
    report = fill_backbone(body, start) if start.kind == "backbone" else None
    given = start.note.get("options", {}) if start.kind == "detector" and start.note["detector"] == key else {}
    built = DETECTORS[key](num_classes, body, **{**given, **options})
    if start.kind == "detector":
        kept = {part for part, rules in built.parts().items() if not rules.reinit}
        report = transfer(built.net, start.state, built.parts(), expect=kept)
    return built, report


def save_backbone(path: Path, backbone: Backbone, note: Mapping[str, str]) -> None:
    """Write a backbone's weights under its library's own names, atomically."""
    described = {"kind": "backbone", "backbone": backbone.name, "library": backbone.library, **note}
    state = {name: value.detach().cpu() for name, value in backbone.net.state_dict().items()}
    write_safetensors(path, state, {NOTE: json.dumps(described)})


def save_detector(path: Path, detector: Detector, note: Mapping[str, Any]) -> None:
    """Write a detector's weights under the library model's own names; `note` says what rebuilds it.

    `note`: detector, backbone, options, classes, category_ids, image_size.
    """
    state = {name: value.detach().cpu() for name, value in detector.net.state_dict().items()}
    write_safetensors(path, state, {NOTE: json.dumps({"kind": "detector", **note})})


def match_categories(classes: Sequence[str], labels: Labels) -> list[int]:
    """A label file's category ids in the order of a detector's classes.

    Raises: UserError when the file lacks one of the classes.
    """
    known = dict(zip(labels.classes, labels.category_ids))
    absent = [name for name in classes if name not in known]
    if absent:
        raise UserError(
            f"{labels.file} has no category {absent[0]!r}; it has {', '.join(labels.classes[:5])}",
            "Use label files with the same categories",
        )
    return [known[name] for name in classes]


def load_detector(init: str) -> tuple[Detector, dict[str, Any]]:
    """Rebuild a fine-tuned detector from a run directory or a `detector.safetensors`, with its note.

    Raises: UserError when the file holds no detector or doesn't fill every tensor of it.
    """
    start = resolve_start(init)
    if start.kind != "detector":
        raise UserError(f"--init {init} holds no detector ({start.kind})", "Name a run made by finetune")
    note = start.note
    backbone = build_backbone(note["backbone"])
    detector = DETECTORS[note["detector"]](len(note["classes"]), backbone, **note["options"])
    missing = detector.net.load_state_dict(start.state, strict=False)
    wrong = [*missing.missing_keys, *missing.unexpected_keys]
    if wrong:
        raise UserError(f"{start.source} does not fit its own description: {wrong[0]}", "Fine-tune again")
    return detector, note
