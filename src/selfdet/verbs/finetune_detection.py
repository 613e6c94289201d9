"""Fine-tuning a detector, as `selfdet finetune` does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from selfdet.data.labelled import LabelledDataset, collate_samples
from selfdet.data.labels import Labels, load_labels
from selfdet.data.sample import Sample
from selfdet.data.trial import trial_samples
from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.evaluation.detection import detection_line
from selfdet.interchange.starts import Start, build_detector, detector_note, detector_of, save_detector
from selfdet.methods.supervised import Supervised
from selfdet.training import defaults
from selfdet.training.defaults import Default
from selfdet.training.log import plural
from selfdet.training.memory import batch_area
from selfdet.training.optimizers import OptimizerName
from selfdet.training.transfer import TransferReport
from selfdet.verbs.finetune_task import Shape, Task
from selfdet.verbs.held_out import HeldOut, left_out, without_masks


class Detection(Task[Labels, HeldOut, Detector, LabelledDataset]):
    """Boxes, and masks of objects: a detector on a backbone, each the start's own where none is asked for.

    Raises: UserError for a flag that is for segmentation only.
    """

    product = "detector"
    schedule = "step"
    jitter = (0.8, 1.0)
    collate = staticmethod(collate_samples)

    def __init__(self, shape: Shape) -> None:
        if shape.crop_size is not None:
            raise UserError("--crop-size is for --task segmentation, not for detection", "Leave it out")
        self.detector, self.backbone, self.keep_box_outputs = shape.detector, shape.backbone, shape.keep_box_outputs
        self.widths = {name: value for name, value in shape.widths.items() if value is not None}
        self.scale_jitter = shape.scale_jitter or self.jitter

    def load(self, data: str, images: str | None) -> Labels:
        """COCO, Pascal VOC or YOLO."""
        return load_labels(data, images)

    def hold_out(self, data: str, images: str | None, labels: Labels) -> HeldOut:
        """Raises: UserError for labels without one of the classes."""
        return HeldOut(load_labels(data, images), labels.classes)

    def check(self, chosen: Labels) -> None:
        """Images without boxes teach what is background."""

    def usual_steps(self, images: int, batch: int) -> Default:
        """See `finetune_steps`."""
        return defaults.finetune_steps(images, batch)

    def usual_optimizer(self, start: Start) -> OptimizerName:
        """See `detector_optimizer`."""
        return defaults.detector_optimizer(detector_of(start, self.detector))

    def usual_rate(self, batch: int, start: Start, optimizer: OptimizerName) -> Default:
        """See `detector_lr`."""
        return defaults.detector_lr(batch, detector_of(start, self.detector), optimizer)

    def usual_size(self, labels: Labels) -> Default:
        """See `detection_size`."""
        return defaults.detection_size(labels.records)

    def build(
        self, start: Start, labels: Labels, pixels: int, batch_norm: str
    ) -> tuple[Detector, TransferReport | None]:
        """See `build_detector`."""
        options = {"image_size": pixels, "batch_norm": batch_norm, **self.widths}
        return build_detector(start, len(labels.classes), self.detector, self.backbone, options, self.keep_box_outputs)

    def dataset(self, chosen: Labels, network: Detector, pixels: int, seed: int) -> LabelledDataset:
        """Resized and mirrored, with masks for a detector of these."""
        views: dict[str, Any] = {"image_size": pixels, "seed": seed, "scale_jitter": self.scale_jitter}
        return LabelledDataset(chosen.records, **views, with_masks=network.has_masks)

    def note(self, network: Detector, labels: Labels, pixels: int) -> dict[str, Any]:
        """See `detector_note`."""
        return detector_note(network, labels.classes, labels.category_ids, pixels)

    def settings(self, note: Mapping[str, Any]) -> dict[str, Any]:
        """Detector, backbone and what shapes them."""
        own = {name: note[name] for name in ("detector", "backbone", "options")}
        return {**own, "keep_box_outputs": self.keep_box_outputs, "scale_jitter": list(self.scale_jitter)}

    def remarks(
        self, labels: Labels, chosen: Labels, held_out: HeldOut | None, dataset: LabelledDataset
    ) -> Iterator[str]:
        """What is left out, that no box is chosen, and which objects have no mask."""
        yield from left_out(labels, held_out)
        if not any(len(record.boxes) for record in chosen.records):
            yield (
                f"warning: no box in the chosen images ({len(chosen)} of {len(labels)}): a detector learns from them "
                "that nothing is there. Take a larger --fraction or another --seed"
            )
        if dataset.with_masks:
            yield from without_masks(dataset, held_out)

    def objects(self, chosen: Labels) -> str:
        """The number of boxes."""
        return plural(sum(len(record.boxes) for record in chosen.records), "box", "boxes")

    def method(self, network: Detector) -> Supervised:
        """The detector's own losses."""
        return Supervised(network)

    def trial(self, network: Detector, side: int) -> list[Sample]:
        """With masks for a detector of these."""
        return trial_samples(side, network.has_masks)

    def area(self, chosen: Labels, pixels: int) -> float:
        """At the largest scale."""
        sizes = [(record.width, record.height) for record in chosen.records]
        return batch_area(sizes, pixels * self.scale_jitter[1])

    def score(self, held_out: HeldOut, network: Detector, pixels: int, fabric: Fabric) -> tuple[Mapping[str, Any], str]:
        """COCO AP."""
        scores = held_out.score(network, pixels, fabric)
        return scores, detection_line(scores)

    def save(self, path: Path, network: Detector, note: Mapping[str, Any]) -> None:
        """See `save_detector`."""
        save_detector(path, network, note)
