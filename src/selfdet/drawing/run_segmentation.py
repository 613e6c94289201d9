"""What a segmenter's page shows: IoU of each class, and class maps beside labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from selfdet.data.class_maps import IGNORED
from selfdet.drawing.class_maps import draw_classes
from selfdet.drawing.report import Item, Picture, Table, Text
from selfdet.training.log import plural

SHARP = 640  # long side, pixels, of the pictures
CLASSES = 20  # that have a line each; of more those with the highest and the lowest IoU


def segmentation_items(last: Mapping[str, Any], words: str) -> Iterator[Item]:
    """The scores of a run's last evaluation, if there was one, and `words` on where pictures come from."""
    if last.get("mIoU") is not None:
        known = [(name, value) for name, value in last["per_class"].items() if value is not None]
        ranked = sorted(known, key=lambda entry: -entry[1])
        chosen = ranked if len(ranked) <= CLASSES else ranked[: CLASSES // 2] + ranked[-CLASSES // 2 :]
        which = "" if len(chosen) == len(ranked) else f", the best and worst of {len(ranked)} classes"
        counted = plural(last["images"], "image")
        yield Text(
            f"At the end of training mIoU is {100 * last['mIoU']:.1f} % and {100 * last['pixel_accuracy']:.1f} % of "
            f"pixels are right, on {counted}."
        )
        yield Table(["class", "IoU"], [[name, round(100 * value, 1)] for name, value in chosen], f"In %{which}.")
    yield Text(words)


def class_pictures(
    name: str, image: Tensor, truth: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str]
) -> Iterator[Picture]:
    """An image twice: with the classes that are labelled, and with those that are found."""
    known = truth["classes"] != IGNORED
    right = float((found["classes"] == truth["classes"])[known].float().mean()) if bool(known.any()) else 0.0
    long_side = max(SHARP, *image.shape[-2:])
    for classes, caption, alt in (
        (truth["classes"], f"{name}, labels", f"{name} with labelled classes"),
        (
            found["classes"],
            f"found: {100 * right:.0f} % of the labelled pixels are right",
            f"{name} with found classes",
        ),
    ):
        yield Picture(draw_classes(image, classes, names, long_side), caption, alt, photograph=True)
