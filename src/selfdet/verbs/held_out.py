"""The labels that a fine-tuning is evaluated on while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_fabric import Fabric

from selfdet.data.images import Quarantine
from selfdet.data.labelled import LabelledDataset
from selfdet.data.labels import Labels
from selfdet.data.masks import has_segmentation
from selfdet.detectors.base import Detector
from selfdet.evaluation.inference import score, unknown_classes
from selfdet.interchange.starts import match_categories
from selfdet.training.log import plural


class HeldOut:
    """The labels that a training run is evaluated on, and what could not be read of their images.

    Raises: UserError when they lack one of the `classes` that are learned.
    """

    def __init__(self, labels: Labels, classes: Sequence[str]) -> None:
        self.labels = labels
        self.category_ids = match_categories(classes, labels)
        self.unreadable = Quarantine(len(labels))

    def score(self, net: Detector, image_size: int, fabric: Fabric) -> Mapping[str, Any]:
        """COCO AP at a long side of `image_size` px."""
        asked: dict[str, Any] = {"category_ids": self.category_ids, "quarantine": self.unreadable}
        return score(net, self.labels, image_size, fabric, **asked)[0]


def without_masks(dataset: LabelledDataset, held_out: HeldOut | None) -> Iterator[str]:
    """What a detector of masks can't learn or be measured by, as lines for the log."""
    if dataset.unmasked:
        images = sum(not all(map(has_segmentation, record.segmentations)) for record in dataset.records)
        objects = sum(len(record.boxes) for record in dataset.records)
        yield (
            f"{dataset.unmasked} of {plural(objects, 'object')}, in {plural(images, 'image')}, "
            f"{'has' if dataset.unmasked == 1 else 'have'} no segmentation: boxes train, masks don't"
        )
    if held_out is not None and not any(has_segmentation(each) for each in _segmentations(held_out.labels)):
        yield f"the AP of masks is not measured, as no object in {held_out.labels.file} has a segmentation"


def _segmentations(labels: Labels) -> Iterator[Any]:
    return (entry.get("segmentation") for entry in labels.coco["annotations"])


def left_out(labels: Labels, held_out: HeldOut | None) -> Iterator[str]:
    """What of training and evaluation labels is not used, as lines for the log."""
    for fault, count in labels.dropped.items():
        yield f"left out of {labels.file}: {plural(count, 'box', 'boxes')} ({fault.replace('_', ' ')})"
    if held_out is not None and (unknown := unknown_classes(held_out.labels, held_out.category_ids)):
        yield f"not evaluated, as the training labels lack them: {', '.join(unknown)}"
