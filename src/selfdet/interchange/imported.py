"""What every reader of whole detectors gives back, and the report that says whether all of one was there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from selfdet.detectors.base import Detector
from selfdet.detectors.network import Part
from selfdet.errors import UserError
from selfdet.interchange.architectures import State
from selfdet.interchange.imports import NotTakenError, full_tensors
from selfdet.training.transfer import TransferReport, transfer

# Why a file is not taken as a detector is said with this.
BACKBONE_ALONE = "Take its backbone alone, with --part backbone"


@dataclass
class ImportedDetector:
    """A detector out of another program's file; `classes` are the names of its K classes, `category_ids` their numbers
    in the labels, 1…K where nobody knows."""

    detector: Detector
    classes: list[str]
    image_size: int
    report: TransferReport
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    pretrained: bool = False
    category_ids: Sequence[int] | None = None


def taken_detector(
    detector: Detector, state: State, pretrained: bool, source: str, keep_box_outputs: bool
) -> TransferReport:
    """The report of what fits the detector, where that is all of it but, of what was only pre-trained, last layers.

    Raises: NotTakenError.
    """
    own_parts = detector.parts(keep_box_outputs)
    parts = {name: Part(part.patterns, part.reinit and pretrained) for name, part in own_parts.items()}
    shapes = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    report = transfer(detector.net, shapes, parts, expect=())
    try:
        kept = [name for name, part in parts.items() if not part.reinit]
        transfer(detector.net, state, parts, expect=kept, minimum=1.0, source=source)
        own = detector.net.state_dict()
        more = [name for name, value in state.items() if name not in own and value.dim() > 0]
        if more:
            raise UserError(f"{source} has layers that ours does not have: {', '.join(more[:3])}", BACKBONE_ALONE)
    except UserError as error:
        raise NotTakenError(error, report) from None
    return report


def fill_detector(detector: Detector, state: Mapping[str, torch.Tensor]) -> None:
    """Make tensors by the detector's own names its own, without copying them; what is not among them stays as it is."""
    own = detector.net.state_dict()
    filled = full_tensors(own, {name: state.get(name, value) for name, value in own.items()})
    detector.net.load_state_dict(filled, assign=True)
