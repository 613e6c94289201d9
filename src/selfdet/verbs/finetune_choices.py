"""What `selfdet finetune` chooses before it trains: images, rates of the parts, batch norm, and what it advises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from selfdet.data.labels import Labels
from selfdet.data.subset import Subset, coco_split_subset, fraction_subset
from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.interchange.starts import Start
from selfdet.training.defaults import ASKED, Default, Policy
from selfdet.training.log import plural

FEW = 4  # images whose statistics are worse than those that a pre-trained backbone brings


@dataclass
class PartScales:
    """Learning rate of each part, as a multiple of --lr.

    Args:
        backbone: of the backbone.
        neck: of the feature pyramid.
        rpn: of what proposes boxes (R-CNNs).
        head: of the towers, or of the box head.
        mask: of the convolutions that give masks (mask_rcnn).
        last: of the last layers, which start afresh.
    """

    backbone: float = 1.0
    neck: float = 1.0
    rpn: float = 1.0
    head: float = 1.0
    mask: float = 1.0
    last: float = 1.0

    def of(self, detector: Detector) -> dict[str, float]:
        """The scale of each part that the detector has. Raises: UserError for one of a part that it has not."""
        parts = detector.parts()
        for name, value in asdict(self).items():
            if name not in parts and value != 1.0:
                raise UserError(f"--lr-scale.{name} is of no part of this detector", f"It has {', '.join(parts)}")
        return {name: value for name, value in asdict(self).items() if name in parts}


def labelled_subset(labels: Labels, fraction: float, scheme: str, seed: int) -> Subset:
    """The images to train on."""
    ids = [record.image_id for record in labels.records]
    if scheme == "coco-splits":
        return coco_split_subset(ids, 100 * fraction, seed)
    return fraction_subset(ids, fraction, seed)


def batch_norm_policy(asked: str, start: Start, images: int, world: int, device_type: str) -> Policy:
    """The backbone's batch-norm policy: `images` are in one pass of each of `world` processes."""
    syncs = world > 1 and device_type == "cuda"
    if asked == "sync" and world > 1 and not syncs:
        raise UserError(f"--batch-norm sync is for GPUs, this is {device_type}", "Use train or frozen")
    if asked != "auto":
        return Policy(asked, ASKED)
    if start.kind == "library":
        return Policy("frozen", "weights of a library keep their statistics")
    if syncs:
        return Policy("sync", f"over {world} processes")
    if images < FEW and start.kind != "scratch":
        return Policy("frozen", f"{plural(images, 'image')} at a time are too few for statistics of their own")
    return Policy("train", f"statistics of {plural(images, 'image')} at a time")


def evaluation_interval(held_out: bool, asked: int | None, steps: int) -> int:
    """Optimiser steps between evaluations, 0 for none; five evaluations in a run if nothing is asked for."""
    if not held_out:
        if asked is not None:
            raise UserError("--evaluate-every needs labels to evaluate on", "Add --val-data FILE")
        return 0
    if asked is not None and asked < 1:
        raise UserError(f"--evaluate-every is {asked}, expected 1 or more", "Leave --val-data out for no evaluation")
    return max(1, steps // 5) if asked is None else asked


def advice(start: Start, rate: Default, weight_decay: float, asked: bool, keep_box_outputs: bool) -> Iterator[str]:
    """What AlignDet's authors fine-tune with; not done unasked, so that starts are compared with equal settings."""
    if start.note.get("method") == "aligndet" and not asked:
        yield (
            "the start is a whole pre-trained detector: AlignDet's authors fine-tune such a one 1.5 times as fast with "
            f"half the weight decay, as it is nearer to its goal; for that add --lr {1.5 * rate.value:g} "
            f"--weight-decay {weight_decay / 2:g}"
        )
    if keep_box_outputs and start.kind != "detector":
        yield "no box outputs to keep: the start is no detector"
