"""What `--init` and `--backbone-weights` may name, and how it becomes a backbone or a detector."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from selfdet.data.images import PIXELS
from selfdet.data.labels import Labels
from selfdet.data.untrusted import expanded
from selfdet.detectors.base import Detector
from selfdet.detectors.network import CONNECTIONS, Part
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.notes import check_note, read_note
from selfdet.interchange.relatives import handed_over, options_for
from selfdet.interchange.weights import read_weights, write_safetensors
from selfdet.models.backbones import Backbone, build_backbone, build_unfilled
from selfdet.models.composite import COPIES, PREFIX, Composite, for_both, is_composite, plain_name
from selfdet.training.checkpoint import load_checkpoint, product_of
from selfdet.training.rundir import RunDir
from selfdet.training.transfer import TransferReport, TransferRow, transfer

MODEL = "model.safetensors"  # what the hub calls weights; a folder with it is a start
NOTE = "selfdet"  # the metadata key under which a weights file describes itself, as JSON
# Where a detector keeps its backbone, and what stands there before the backbone's own names. On C4 its last stage is
# the box head; DETRs are transformers'.
BODIES = {"backbone.body.": "", "roi_heads.box_head.layer4.": "layer4.", "model.backbone.model.": ""}
PRETRAINING, QUERY_BODY = "pretraining", "encoder.backbone.net."  # another program's, whole; of it the backbone starts
SEGMENTERS_BODY = {"backbone.": ""}
# Options that decide the shape of a detector's weights.
WIDTHS = ("neck", "fpn_channels", "head_convs", "box_head", "queries")
REBUILDS = {
    "detector": ("detector", "backbone", "options", "classes", "category_ids", "image_size"),
    "segmenter": ("segmenter", "backbone", "options", "classes", "image_size", "crop_size"),
}
Kind = Literal["scratch", "library", "backbone", "detector", "segmenter"]


@dataclass
class Start:
    """Where a fine-tuning starts: tensors under the library's names, and what the file says of itself.

    `kind`: `scratch` (no tensors), `library` (the library fills the backbone), `backbone`, `detector` or `segmenter`.
    """

    kind: Kind
    source: str
    state: dict[str, Tensor] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)


def resolve_start(init: str, flag: str = "--init") -> Start:
    """Read what `flag` names: `scratch`, a run directory, a weights file, or `library:NAME`.

    A run directory stands for its final weights; a checkpoint in it (`best.pt`) may be named like a weights file. So
    does a folder that was pulled from the hub.

    Raises: UserError when it is none of these, or the run has no weights yet.
    """
    if init == "scratch":
        return Start("scratch", "scratch")
    if init.startswith("library:"):
        name = init.removeprefix("library:")
        if not name:
            raise UserError(f"{flag} {init} names no backbone", "Write it behind the colon: library:resnet50")
        return Start("library", init, note={"backbone": name})
    path = expanded(init)
    if (path / MODEL).is_file():
        path = path / MODEL
    elif path.is_dir():
        run = RunDir(path)
        run.read_config()
        found = next((file for file in (run.detector, run.segmenter, run.backbone) if file.is_file()), None)
        if found is None:
            raise UserError(f"{path} holds no weights yet", "Finish the run with its own command and --resume")
        path = found
    elif not path.is_file():
        raise UserError(
            f"{flag} {init} does not exist", "Give scratch, a run directory, a weights file or library:NAME"
        )
    state, note = _read(path)
    check_note(note, path)
    told = note.get("kind")
    kind: Kind = "detector" if told == "detector" else "segmenter" if told == "segmenter" else "backbone"
    if not all(name in note for name in REBUILDS.get(kind, ())):
        raise UserError(f"{path} does not say how its {kind} is built", "Use the file as finetune wrote it")
    return Start(kind, str(path), state, note)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file, or of the product in a run's checkpoint, and its note."""
    if path.suffix == ".pt" and RunDir(path.parent).config_file.is_file():
        return product_of(path, load_checkpoint(path))
    state, metadata = read_weights(path)
    note = read_note(metadata.get(NOTE, "{}"))
    if note.get("kind") == PRETRAINING:
        state = {name.removeprefix(QUERY_BODY): value for name, value in state.items() if name.startswith(QUERY_BODY)}
    return state, note


def load_backbone(name: str, weights: str | None) -> tuple[Backbone, TransferReport | None]:
    """A backbone by name, random, from its library or from a file or run, with the report of what was reused.

    `weights`: None, `random` or `scratch`; `library` or `library:NAME`; a backbone's or detector's file or run.
    Raises: UserError for unknown names and for weights of another architecture (under 90 % reused).
    """
    if weights in (None, "random", "scratch"):
        return build_backbone(name), None
    if weights == "library":
        return build_backbone(name, "library"), None
    start = resolve_start(str(weights), "--backbone-weights")
    if start.kind == "library":
        if start.note["backbone"] != name:
            raise UserError(
                f"--backbone-weights {weights} and --backbone {name} disagree",
                f"Add --backbone {start.note['backbone']}",
            )
        return build_backbone(name, "library"), None
    backbone = build_backbone(name)
    return backbone, fill_backbone(backbone, start)


def fill_backbone(backbone: Backbone, start: Start) -> TransferReport:
    """Load a start's tensors into a backbone; of a detector or a segmenter, those of its backbone. A composite one
    takes those of the network it has two of into both, and the report has a row for each; its connections stay fresh.

    Raises: UserError when less than 90 % of the backbone's elements are found.
    """
    state = start.state
    if start.kind in ("detector", "segmenter"):
        state = {
            own + name.removeprefix(body): value
            for body, own in (BODIES if start.kind == "detector" else SEGMENTERS_BODY).items()
            for name, value in start.state.items()
            if name.startswith(body)
        }
    parts = {"backbone": Part([".*"], reinit=False)}
    if isinstance(backbone.net, Composite) and not is_composite(state):
        parts = {each: Part([rf"{each}\."]) for each in COPIES} | {"neck": Part([CONNECTIONS], reinit=True)}
        state = for_both(state)
    expected = [name for name, part in parts.items() if not part.reinit]
    try:
        return transfer(backbone.net, state, parts, expect=expected, source=start.source)
    except UserError as error:
        raise _better_hint(error, start, backbone.name) from None


def detector_of(start: Start, asked: str | None) -> str:
    """The key of the detector to train: what was asked, else the start's own, else fcos.

    Raises: UserError for one that this version does not know.
    """
    key = asked or start.note.get("detector") or "fcos"
    if key not in DETECTORS:
        raise UserError(f"{start.source} is of the unknown detector {key!r}", f"Known are {', '.join(DETECTORS)}")
    return key


def check_options(key: str, options: Mapping[str, Any], stage: str = "") -> None:
    """Refuse options that a detector's builder does not have; `stage`: what their flags begin with.

    Raises: UserError naming the flag.
    """
    known = inspect.signature(DETECTORS[key]).parameters
    for name in options:
        if name not in known:
            own = [f"--{other.replace('_', '-')}" for other in WIDTHS if other in known]
            raise UserError(f"--{stage}{name.replace('_', '-')} is no setting of {key}", f"It has {', '.join(own)}")


def build_detector(
    start: Start,
    num_classes: int,
    detector: str | None,
    backbone: str | None,
    options: Mapping[str, Any],
    keep_box_outputs: bool = False,
) -> tuple[Detector, TransferReport | None]:
    """A detector filled from a start, with the report of what was reused; last layers are always fresh.

    `detector` and `backbone` name what the start leaves open (fcos on resnet50 where nobody says); `options` go to
    the builder, over those of a start that is a detector itself. `keep_box_outputs`: reuse the layers that give boxes
    as well, where the start has them; only those that give classes are fresh. Of a detector that differs in a branch
    (`relatives`), all but the branch is reused.
    Raises: UserError when the start's weights are of another architecture.
    """
    name = backbone or start.note.get("backbone") or "resnet50"
    if start.kind == "library" and backbone not in (None, start.note["backbone"]):
        raise UserError(f"--init {start.source} and --backbone {backbone} disagree", "Leave --backbone out")
    key = detector_of(start, detector)
    given = options_for(key, start.note, start.source) if start.kind == "detector" else {}
    check_options(key, options)
    own = given.get("neck", "fpn")
    if given and options.get("neck", own) != own:
        raise UserError(
            f"{start.source} has the neck {own}, not {options['neck']}: of its weights only the backbone would fit",
            "Leave --neck out; a run's backbone.safetensors suits either neck",
        )
    body = build_backbone(name, "library" if start.kind == "library" else None)
    report = fill_backbone(body, start) if start.kind in ("backbone", "segmenter") else None
    try:
        built = DETECTORS[key](num_classes, body, **{**given, **options})
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if not given:
            raise
        raise UserError(f"{start.source}: {error}", "Use the version of selfdet that wrote it") from None
    if report is not None:  # what a backbone's file does not reach starts afresh
        for part, rules in built.parts().items():
            if part != "backbone":
                report.rows[part] = TransferRow(reinitialised=elements(built.net, rules))
    if start.kind == "detector":
        parts = handed_over(built, key, start.note, keep_box_outputs)
        kept = [part for part, rules in parts.items() if not rules.reinit]
        try:
            report = transfer(built.net, start.state, parts, expect=kept, source=start.source)
        except UserError as error:
            other = [
                f"--{key.replace('_', '-')}" for key in WIDTHS if key in options and options[key] != given.get(key)
            ]
            if other:
                raise UserError(error.message, f"Leave out {' and '.join(other)}: the start has its own") from None
            raise _better_hint(error, start, name) from None
    return built, report


def elements(net: nn.Module, part: Part) -> int:
    """Numbers in the tensors of a part that training changes."""
    return sum(v.numel() for name, v in net.state_dict().items() if v.is_floating_point() and part.holds(name))


def _better_hint(error: UserError, start: Start, name: str) -> UserError:
    """The refusal of weights that say themselves which backbone they are of, with that name as what to do."""
    own = start.note.get("backbone", name)
    if own in (name, plain_name(name)):
        return error
    fitting = own if own.startswith(PREFIX) or not name.startswith(PREFIX) else PREFIX + own
    return UserError(error.message, f"These weights are a {own}: add --backbone {fitting}")


def backbone_note(backbone: Backbone, more: Mapping[str, Any]) -> dict[str, Any]:
    """What a backbone's file says of itself."""
    about = {"kind": "backbone", "backbone": backbone.name, "library": backbone.library, "pixels": PIXELS}
    return about | dict(more)


def detector_note(
    detector: Detector, classes: Sequence[str], category_ids: Sequence[int], image_size: int
) -> dict[str, Any]:
    """What a detector's file says of itself: all that rebuilds it, its classes with their numbers in the labels, the
    long side (px) it is for, and what became of channels and bit depths."""
    about = {"classes": list(classes), "category_ids": list(category_ids), "image_size": image_size, "pixels": PIXELS}
    return {"kind": "detector", **detector.config(), **about}


def save_backbone(path: Path, backbone: Backbone, note: Mapping[str, Any]) -> None:
    """Write a backbone's weights under its library's own names, atomically, with what `note` adds to its own."""
    write_safetensors(path, backbone.net.state_dict(), {NOTE: json.dumps(backbone_note(backbone, note))})


def save_detector(path: Path, detector: Detector, note: Mapping[str, Any]) -> None:
    """Write a detector's weights under the library model's own names; `note` is a `detector_note`."""
    write_safetensors(path, detector.net.state_dict(), {NOTE: json.dumps({"kind": "detector", **note})})


def match_categories(classes: Sequence[str], labels: Labels) -> list[int]:
    """A label file's category ids in the order of a detector's classes.

    Raises: UserError when the file lacks one of the classes.
    """
    if list(classes) == labels.classes:  # also where a name stands for several classes
        return list(labels.category_ids)
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

    Raises: UserError as `open_detector`.
    """
    return open_detector(resolve_start(init), init)


def open_detector(start: Start, init: str) -> tuple[Detector, dict[str, Any]]:
    """Rebuild the detector that `init` named, with its note.

    Raises: UserError when the start is no detector or doesn't fill every tensor of it.
    """
    if start.kind != "detector":
        raise UserError(f"--init {init} holds no detector ({start.kind})", "Name a run made by finetune")
    # The start's own tensors become the detector's.
    detector, _ = build_unfilled(lambda: build_detector(start, len(start.note["classes"]), None, None, {}))
    own = detector.net.state_dict()
    state = {name: value.to(own[name].dtype) if name in own else value for name, value in start.state.items()}
    try:
        detector.net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1].strip()
        raise UserError(f"{start.source} does not fit its own description: {first}", "Fine-tune again") from None
    return detector, start.note
