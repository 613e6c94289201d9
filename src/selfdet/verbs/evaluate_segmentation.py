"""`selfdet evaluate` of a segmenter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from selfdet.data.images import Quarantine
from selfdet.data.labels import Labels
from selfdet.data.mask_labels import MaskLabels, load_mask_labels
from selfdet.errors import UserError
from selfdet.evaluation.segmentation import segmentation_table
from selfdet.evaluation.segmenting import SMALLEST, Sight, score_segmentation
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import Start
from selfdet.training.log import Reporter, plural
from selfdet.training.runtime import Runtime


def evaluate_segmentation(
    start: Start, init: str, data: str, images: str | None, runtime: Runtime, **sight: Any
) -> dict[str, Any]:
    """mIoU, IoU of each class and pixel accuracy of a segmenter; `sight` as `sight_of` takes it.

    Raises: UserError as `held_out_masks`.
    """
    segmenter, note = load_segmenter(start)
    labels = held_out_masks(data, images, note["classes"])
    reporter, unreadable = Reporter(quiet=not runtime.first), Quarantine(len(labels))
    with reporter.counting(len(labels), "images") as seen:
        scores = score_segmentation(
            runtime.place(segmenter), labels, sight_of(note, **sight), runtime.fabric, seen=seen, quarantine=unreadable
        )
    for path in unreadable.paths:
        reporter.line(f"unreadable, left out: {path}")
    for line in unmasked(labels):
        reporter.line(line)
    if labels.left_out:
        reporter.line(f"not evaluated, as the segmenter does not know them: {', '.join(labels.left_out)}")
    reporter.line(segmentation_table(scores, f"{init} on {data}"))
    return scores


def held_out_masks(data: str, images: str | None, classes: Sequence[str]) -> MaskLabels:
    """Labels to measure a segmenter of these `classes` on.

    Raises: UserError for labels that lack one of them or have no pixel of any, and as `load_mask_labels`.
    """
    labels = load_mask_labels(data, images).in_order_of(classes)
    labels.check_measurable()
    return labels


def sight_of(note: dict[str, Any], image_size: int | None, sliding: bool, batch_size: int) -> Sight:
    """How a segmenter looks at images: as it was trained to, but for what was asked.

    Raises: UserError for a size that no window fits into.
    """
    pixels = note["image_size"] if image_size is None else image_size
    if pixels < SMALLEST:
        raise UserError(f"--image-size {pixels} is below {SMALLEST} px", "Leave it out for the size of its training")
    return Sight(pixels, note["crop_size"], sliding, batch_size)


def unmasked(labels: Labels | MaskLabels) -> Iterator[str]:
    """A line that counts the images that are left out, as they have no mask, if there are any."""
    if isinstance(labels, MaskLabels) and labels.unmasked:
        names = ", ".join(path.name for path in labels.unmasked[:3])
        more = ", …" if len(labels.unmasked) > 3 else ""
        yield f"left out, as {labels.file} has no mask of them: {plural(len(labels.unmasked), 'image')} ({names}{more})"


def refuse(asked: dict[str, bool], init: str, task: str) -> None:
    """Raises: UserError naming the first flag that was given and is not for this task."""
    for flag, given in asked.items():
        if given:
            what = "a segmenter" if task == "segmentation" else "a detector"
            raise UserError(f"{flag} is not for {task}, and {init} is {what}", "Leave it out")
