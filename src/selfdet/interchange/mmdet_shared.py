"""What all kinds of mmdet's detectors have alike: the names of their pyramid, and settings in the file as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from selfdet.data.untrusted import read_lines
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import State
from selfdet.interchange.imported import BACKBONE_ALONE
from selfdet.interchange.training_settings import IS, in_one_line

Table = tuple[tuple[str, str], ...]
IMAGE_SIZE = 1333  # px, mmdet's usual long side
NECK: Table = (
    (r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.", r"backbone.fpn.\1.\2.0."),
    (r"neck\.(lateral|fpn)_convs\.(\d+)\.(?:bn|gn)\.", r"backbone.fpn.\1.\2.1."),
    (r"backbone\.fpn\.lateral\.", "backbone.fpn.inner_blocks."),
    (r"backbone\.fpn\.fpn\.", "backbone.fpn.layer_blocks."),
)
# The other direction, with those of the backbone, the first that matches; NORM stands for "bn" or "gn".
NECK_OUT: Table = (
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.", r"neck.lateral_convs.\1.NORM."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.", r"neck.fpn_convs.\1.NORM."),
)
FIRST_LATERAL = "backbone.fpn.inner_blocks.0."
# Of anchors, where they are not all that ours are of.
RATIOS = rf"ratios{IS}[\[(](?!0\.5,\s*1(\.0)?,\s*2(\.0)?[\])])"
WHOLE = r"\w+Head['\"]"  # what settings have that say what a detector is made of


def renamed_by(table: Table, name: str) -> str:
    """A name after each of the table's rules whose pattern it begins with."""
    for pattern, instead in table:
        name = re.sub(f"^{pattern}", instead, name)
    return name


def norm_of(state: Mapping[str, Tensor], start: str) -> str | None:
    """The kind of norm whose names begin so: "bn", "gn" or none."""
    if f"{start}weight" not in state:
        return None
    return "bn" if f"{start}running_mean" in state else "gn"


def read_settings(path: Path) -> str:
    """The settings in a file of mmdet's, as text: nothing in it is executed.

    Raises: UserError for a file that is no text, not whole, or of something else.
    """
    hint = "Name the config.py that mmdet wrote into the work directory of the training"
    try:
        text = "\n".join(read_lines(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--settings {path}: {getattr(error, 'strerror', None) or error}", hint) from None
    if re.search(rf"\b_base_{IS}", text):
        raise UserError(f"--settings {path} takes others in (_base_), so that not all of them are there", hint)
    if not re.search(WHOLE, text):
        raise UserError(f"--settings {path} has no head of a detector", hint)
    return in_one_line(text)


def refuse_settings(path: Path, text: str, reasons: Table) -> None:
    """Raises: UserError where a pattern of `reasons` is in the settings, with its reason."""
    for pattern, reason in reasons:
        if found := re.search(pattern, text):
            raise UserError(f"{path}: by its settings ({shown(found[0])}) {reason}", BACKBONE_ALONE)


def told(text: str, name: str) -> str | None:
    """The word or number that settings give a name, without quotes; None where they don't have it."""
    found = re.search(rf"\b{name}{IS}['\"]?([\w.]+)", text)
    return found[1] if found else None


class Given(NamedTuple):
    """What a reader is given: tensors by mmdet's names but for the backbone's, whether they were only `pretrained`, the
    `text` of settings, the note (`own`) of a file of ours, the long side of images (px), and how many channels the
    backbone's last map has."""

    path: Path
    state: State
    pretrained: bool
    text: str
    own: dict[str, Any]
    image_size: int
    coarsest: int


class Reading(NamedTuple):
    """What a reader makes of it: the `key` of a detector, its tensors by our names, how many `classes` it tells apart
    (−1 if unknown), the builder's `options`, what is to be `said`, what stands before the backbone's own names (`body`)
    and whether its layers that give boxes are kept of what was only pre-trained."""

    key: str
    state: State
    classes: int
    options: dict[str, Any]
    said: Sequence[str] = ()
    body: str = "backbone.body."
    keep_box_outputs: bool = False
