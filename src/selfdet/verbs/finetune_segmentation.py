"""Fine-tuning an FCN for semantic segmentation, as `selfdet finetune --task segmentation` does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from selfdet.data.images import Quarantine, UnreadableImage, read_size
from selfdet.data.mask_labels import MaskLabels, class_counts, load_mask_labels
from selfdet.data.masked import MaskedBatch, MaskedDataset, collate_masked
from selfdet.data.trial import trial_masked
from selfdet.detectors.segmenter import Segmenter
from selfdet.errors import UserError
from selfdet.evaluation.segmentation import segmentation_line
from selfdet.evaluation.segmenting import SMALLEST, Sight, score_segmentation
from selfdet.interchange.segmenters import build_segmenter, save_segmenter, segmenter_note
from selfdet.interchange.starts import Start
from selfdet.methods.segmentation import SupervisedSegmentation
from selfdet.training import defaults
from selfdet.training.defaults import Default
from selfdet.training.log import Reporter, plural
from selfdet.training.optimizers import OptimizerName
from selfdet.training.transfer import TransferReport
from selfdet.verbs.evaluate_segmentation import held_out_masks, unmasked
from selfdet.verbs.finetune_task import Shape, Task

LOOKED_AT = 50  # images whose headers tell how large those of a data set are


@dataclass
class HeldOutMasks:
    """The labels that a training run is evaluated on, and what could not be read of their images."""

    labels: MaskLabels
    unreadable: Quarantine = field(init=False)

    def __post_init__(self) -> None:
        self.unreadable = Quarantine(len(self.labels))


class Segmentation(Task[MaskLabels, HeldOutMasks, Segmenter, MaskedDataset]):
    """A class for every pixel: an FCN on a backbone, the start's own where none is asked for.

    Raises: UserError naming a flag that is for detection only.
    """

    product = "segmenter"
    schedule = "poly"
    jitter = (0.5, 2.0)
    collate = staticmethod(collate_masked)

    def __init__(self, shape: Shape) -> None:
        asked = {"detector": shape.detector, **shape.widths, "keep_box_outputs": shape.keep_box_outputs or None}
        if other := [name for name, value in asked.items() if value is not None and name != "head_convs"]:
            flag = f"--{other[0].replace('_', '-')}"
            raise UserError(f"{flag} is for detection, not for --task segmentation", "Leave it out")
        if shape.crop_size is not None and shape.crop_size < SMALLEST:
            raise UserError(f"--crop-size {shape.crop_size} is below {SMALLEST} px", "Use 128 or more")
        self.backbone, self.crop_size = shape.backbone, shape.crop_size
        self.head_convs = {} if shape.head_convs is None else {"head_convs": shape.head_convs}
        self.scale_jitter = shape.scale_jitter or self.jitter
        self.counts: dict[str, int] = {}

    def crop(self, pixels: int) -> int:
        """Side (px) of the squares that are learned from, of images with a long side of `pixels`."""
        return int(defaults.segmentation_crop(pixels).value) if self.crop_size is None else self.crop_size

    def load(self, data: str, images: str | None) -> MaskLabels:
        """PNG masks or COCO."""
        return load_mask_labels(data, images)

    def hold_out(self, data: str, images: str | None, labels: MaskLabels) -> HeldOutMasks:
        """See `held_out_masks`."""
        return HeldOutMasks(held_out_masks(data, images, labels.classes))

    def check(self, chosen: MaskLabels) -> None:
        """Every mask is looked at. Raises: UserError for one that does not fit, and without a foreground."""
        with Reporter().counting(len(chosen), "masks") as seen:
            self.counts = class_counts(chosen, seen)

    def usual_steps(self, images: int, batch: int) -> Default:
        """See `segmentation_steps`."""
        return defaults.segmentation_steps(images, batch)

    def usual_optimizer(self, start: Start) -> OptimizerName:
        """SGD, as published."""
        return "sgd"

    def usual_rate(self, batch: int, start: Start, optimizer: OptimizerName) -> Default:
        """See `segmentation_lr`."""
        return defaults.segmentation_lr(batch, optimizer)

    def usual_size(self, labels: MaskLabels) -> Default:
        """The median of some images' long sides."""
        step = max(1, len(labels) // LOOKED_AT)
        return defaults.detection_side(list(_long_sides(labels, step)))

    def build(
        self, start: Start, labels: MaskLabels, pixels: int, batch_norm: str
    ) -> tuple[Segmenter, TransferReport | None]:
        """See `build_segmenter`. Raises: UserError for a size of images at which nothing is looked at later."""
        if pixels < SMALLEST:
            raise UserError(f"--image-size {pixels} is below {SMALLEST} px", "Use 128 or more")
        return build_segmenter(start, len(labels.classes), self.backbone, {**self.head_convs, "batch_norm": batch_norm})

    def dataset(self, chosen: MaskLabels, network: Segmenter, pixels: int, seed: int) -> MaskedDataset:
        """Scaled, cropped and mirrored."""
        views: dict[str, Any] = {"image_size": pixels, "crop_size": self.crop(pixels)}
        return MaskedDataset(chosen, **views, seed=seed, scale_jitter=self.scale_jitter)

    def note(self, network: Segmenter, labels: MaskLabels, pixels: int) -> dict[str, Any]:
        """See `segmenter_note`."""
        return segmenter_note(network, labels.classes, pixels, self.crop(pixels))

    def settings(self, note: Mapping[str, Any]) -> dict[str, Any]:
        """The task, what is trained, and its views."""
        own = {name: note[name] for name in ("segmenter", "backbone", "options", "image_size", "crop_size")}
        return {"task": "segmentation", **own, "scale_jitter": list(self.scale_jitter)}

    def remarks(
        self, labels: MaskLabels, chosen: MaskLabels, held_out: HeldOutMasks | None, dataset: MaskedDataset
    ) -> Iterator[str]:
        """Images that have no mask, classes that nothing can be learned of, and those that are not evaluated."""
        yield from unmasked(labels)
        if absent := [name for name, count in self.counts.items() if not count]:
            yield f"no pixel to learn from: {', '.join(absent)}"
        if held_out is not None:
            yield from unmasked(held_out.labels)
        if held_out is not None and held_out.labels.left_out:
            yield f"not evaluated, as the training labels lack them: {', '.join(held_out.labels.left_out)}"

    def objects(self, chosen: MaskLabels) -> str:
        """The number of classes."""
        return plural(sum(count > 0 for count in self.counts.values()), "class", "classes")

    def method(self, network: Segmenter) -> SupervisedSegmentation:
        """Cross-entropy."""
        return SupervisedSegmentation(network)

    def trial(self, network: Segmenter, side: int) -> MaskedBatch:
        """All of one class."""
        return trial_masked(side)

    def area(self, chosen: MaskLabels, pixels: int) -> float:
        """That of a crop."""
        return self.crop(pixels) ** 2

    def score(
        self, held_out: HeldOutMasks, network: Segmenter, pixels: int, fabric: Fabric
    ) -> tuple[Mapping[str, Any], str]:
        """mIoU of whole images."""
        sight = Sight(pixels, self.crop(pixels))
        scores = score_segmentation(network, held_out.labels, sight, fabric, quarantine=held_out.unreadable)
        return scores, segmentation_line(scores)

    def save(self, path: Path, network: Segmenter, note: Mapping[str, Any]) -> None:
        """See `save_segmenter`."""
        save_segmenter(path, network, note)


def _long_sides(labels: MaskLabels, step: int) -> Iterator[int]:
    for record in labels.records[::step]:
        try:
            yield max(read_size(record.path))
        except UnreadableImage:
            continue
