"""The starts of a comparison: their names, what they must agree in, and what became of their weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdet.detectors.network import Network
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.relatives import RELATIVES, options_for
from selfdet.interchange.segmenters import build_segmenter
from selfdet.interchange.starts import NOTE, WIDTHS, Start, build_detector, detector_of, resolve_start
from selfdet.interchange.weights import write_safetensors
from selfdet.interchange.whole_detectors import as_detector
from selfdet.models.backbones import build_backbone
from selfdet.training import defaults
from selfdet.training.transfer import TransferReport, transfer
from selfdet.verbs.finetune_choices import FEW

FCN = "fcn"  # what segments, in the place of a detector's key
OTHER_BACKBONE = "resnet50"  # where neither the user nor a start names one
KINDS = {
    "scratch": "random weights",
    "library": "the library's backbone",
    "backbone": "a backbone",
    "detector": "a whole detector",
    "segmenter": "a whole segmenter",
}


@dataclass(frozen=True)
class NamedStart:
    """A start by its short name; `init` as the user wrote it.

    `written`: where its weights are written with what they are, as a plain file of a whole detector doesn't say so.
    """

    slug: str
    init: str
    start: Start
    written: Path | None = None

    @property
    def told(self) -> str:
        """What a fine-tuning is told as --init."""
        return self.init if self.written is None else str(self.written)

    @property
    def words(self) -> str:
        """What it is, for tables and pages."""
        method = self.start.note.get("method")
        kind = KINDS[self.start.kind] + (f" ({method})" if method else "")
        return kind if self.start.kind == "scratch" else f"{self.init}: {kind}"

    def hashes(self) -> Iterator[tuple[str, str]]:
        """Its weights' name and a hash of them."""
        if self.start.kind == "library":
            name = self.start.note["backbone"]
            yield self.start.source, _state_hash(build_backbone(name, "library").net.state_dict())
        elif self.start.kind != "scratch":
            yield self.start.source, _file_hash(Path(self.start.source))

    def write(self) -> None:
        """Write what has to be written of it, unless it has been done."""
        if self.written is not None and not self.written.is_file():
            self.written.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(self.written, self.start.state, {NOTE: json.dumps(self.start.note)})


@dataclass(frozen=True)
class Design:
    """What all cells of a comparison share: `widths` are those of the network's weights that are not the usual.

    `detector`: its key, or `FCN` of a segmenter.
    """

    detector: str
    backbone: str
    widths: Mapping[str, Any]
    image_size: int
    batch_norm: str
    keep_box_outputs: bool

    @property
    def segments(self) -> bool:
        """Whether it is a segmenter."""
        return self.detector == FCN

    @property
    def options(self) -> dict[str, Any]:
        """For the detector's builder."""
        return {"image_size": self.image_size, "batch_norm": self.batch_norm, **self.widths}

    def build(self, start: Start, classes: int) -> tuple[Network, TransferReport | None]:
        """The network of a cell."""
        if self.segments:
            return build_segmenter(start, classes, self.backbone, {**self.widths, "batch_norm": self.batch_norm})
        return build_detector(start, classes, self.detector, self.backbone, self.options, self.keep_box_outputs)

    def usual_rate(self, batch: int) -> float:
        """The usual learning rate."""
        usual = defaults.segmentation_lr(batch) if self.segments else defaults.detector_lr(batch, self.detector)
        return usual.value

    def usual_steps(self, images: int, batch: int) -> int:
        """The usual number of steps."""
        usual = defaults.segmentation_steps if self.segments else defaults.finetune_steps
        return int(usual(images, batch).value)


def name_starts(inits: Sequence[str], folder: Path, backbone: str | None) -> list[NamedStart]:
    """The starts in the order given, each by a short name that no other has.

    Raises: UserError for fewer than two, one given twice, and what is no start.
    """
    if len(inits) < 2:
        raise UserError("a comparison needs at least two starts", "Repeat --init: --init scratch --init runs/pre")
    if twice := [init for position, init in enumerate(inits) if init in inits[:position]]:
        raise UserError(f"--init {twice[0]} is given twice", "Name each start once")
    starts = [resolve_start(init) for init in inits]
    name = backbone or _agreed("backbone", starts) or OTHER_BACKBONE
    named: dict[str, NamedStart] = {}
    for init, start in zip(inits, starts):
        slug = _slug(init)
        slug = next(each for each in (slug, *(f"{slug}-{n}" for n in range(2, 99))) if each not in named)
        whole = as_detector(start, name)
        written = None if whole is start else folder / f"{slug}.safetensors"
        named[slug] = NamedStart(slug, init, whole, written)
    return list(named.values())


def agree(
    starts: Sequence[NamedStart],
    detector: str | None,
    backbone: str | None,
    widths: Mapping[str, Any],
    *,
    image_size: int,
    batch_norm: str,
    images: int,
    keep_box_outputs: bool,
) -> Design:
    """What the cells of all starts are built with: what was asked for, else what the starts bring.

    `images`: of the smallest batch. Raises: UserError where the starts bring different things.
    """
    plain = [each.start for each in starts]
    key = FCN if detector == FCN else detector_of(plain[0], detector or _agreed("detector", plain))
    name = backbone or _agreed("backbone", plain) or OTHER_BACKBONE
    # One of another detector is refused with what would become of its weights, once they are tried.
    whole = [each for each in plain if each.kind == "detector" and _relatives(each.note["detector"], key)]
    brought = options_for(key, whole[0].note, whole[0].source) if whole else {}
    own = {width: brought[width] for width in WIDTHS if width in brought}
    policy = batch_norm
    if policy == "auto":
        # One for all: statistics that a start brings are no good to one that has none.
        fresh = any(each.kind == "scratch" for each in plain)
        policy = "train" if fresh or images >= FEW else "frozen"
    asked = {width: value for width, value in widths.items() if value is not None}
    return Design(key, name, own | asked, image_size, policy, keep_box_outputs)


def check_designs(starts: Iterable[NamedStart], classes: int, design: Design) -> Iterator[str]:
    """Build the detector of each start; what it reuses and what it is, as lines for the log.

    Raises: UserError, with the transfer report behind it in the lines, for weights of another detector; and where two
    starts would be trained in different configurations.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for named in starts:
        try:
            net, report = design.build(named.start, classes)
        except UserError as error:
            if named.start.state and not design.segments:
                yield f"{named.slug} as {design.detector} on {design.backbone}:"
                yield _report(named.start, classes, design)
            raise UserError(f"--init {named.init}: {error.message}", error.hint) from None
        config = _flat({**net.config(), "parameters": sum(each.numel() for each in net.net.parameters())})
        if first is None:
            first = named.slug, config
        slug, base = first
        other = [name for name in {**base, **config} if base.get(name) != config.get(name)]
        if other:
            told = "; ".join(f"{name} is {base.get(name)} and {config.get(name)}" for name in other)
            raise UserError(
                f"{slug} and {named.slug} would differ in more than their weights: {told}",
                "Name the setting as a flag, or compare starts of one configuration",
            )
        yield f"{named.slug}: {named.words}; {_reused(report)}"


def _relatives(one: str, other: str) -> bool:
    return one == other or {one, other} <= RELATIVES


def _reused(report: TransferReport | None) -> str:
    if report is None:
        return "nothing to hand over"
    parts = [f"{part} {row.share:.0%}" for part, row in report.rows.items() if row.reused]
    fresh = [part for part, row in report.rows.items() if row.size and not row.reused]
    return f"reused: {', '.join(parts)}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")


def _report(start: Start, classes: int, design: Design) -> str:
    """What would become of a start's weights in a detector that they are not of."""
    net = DETECTORS[design.detector](classes, build_backbone(design.backbone), **design.options)
    whole = start.kind == "detector"
    state = start.state if whole else {f"backbone.body.{name}": value for name, value in start.state.items()}
    return transfer(net.net, state, net.parts(design.keep_box_outputs), expect=[], source=start.source).table()


def _agreed(what: str, starts: Iterable[Start]) -> str | None:
    """What the starts say of their detector or backbone, None where none does."""
    said = {start.note[what]: start.source for start in starts if start.note.get(what)}
    if len(said) > 1:
        told = " and ".join(f"{source} is of {value}" for value, source in said.items())
        raise UserError(f"the starts have different {what}s: {told}", f"Compare starts of one {what}, or add --{what}")
    return next(iter(said), None)


def _slug(init: str) -> str:
    path = Path(init.removeprefix("library:"))
    stem = re.sub(r"\.(safetensors|pth?)$", "", path.name)
    if stem == "detector":  # a file of a run is told by the run's name
        stem = path.parent.name
    elif stem in ("backbone", "last", "best"):
        stem = f"{path.parent.name}-{stem}"
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "start"


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _state_hash(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
