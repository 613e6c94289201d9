"""The pictures of a run's page: proposals, views, curves, and what a detector finds beside what is labelled."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from selfdet.data.coco import read_coco
from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.labels import ImageRecord
from selfdet.drawing.boxes import draw_boxes
from selfdet.drawing.report import Item, Picture, Points, Text
from selfdet.drawing.run_segmentation import class_pictures
from selfdet.drawing.run_stages import StageRun, WholeRun
from selfdet.drawing.training import PICTURES, plot_training
from selfdet.errors import UserError
from selfdet.evaluation.inference import above
from selfdet.proposing.store import read_info, read_proposals
from selfdet.training.log import plural

SCORE = 0.3  # of a detection that is drawn, at least
SHARP = 640  # long side, pixels, of pictures with boxes
SHEET = 1500  # long side, pixels, of a sheet of views
SHOWN = 6  # pictures with proposals
BOXES = 20  # proposals on each of them: all would hide it
LARGE = 100_000_000  # bytes of a file of proposals that is not opened for a few pictures

CAPTIONS = {
    "loss": "What training lowers.",
    "contrast": "Telling objects apart: chance is where nothing is learned, the floor the best that can be reached.",
    "box_iou": "How well the boxes it draws fit the boxes it was given; 1 is perfect.",
    "similarity": "Views of one image should be alike, those of other images not.",
    "spread": "If only few dimensions were in use, all images would look alike to it.",
    "deviation": "Near 0, everything would look alike to it.",
    "match_accuracy": "How often it finds the same spot in another view. The first point is before training.",
    "match_error": "How far off the spots are that it finds in another view.",
    "ap": "AP is 1 when every object is found, named and boxed exactly. AP50 asks for boxes that fit by half only. The "
    "AP of masks, where there are some, asks for the object's pixels in place of its box.",
    "miou": "IoU is what was found right over what was found or true, 1 is perfect; mIoU its mean over classes.",
}
VIEWS = {
    "backbone": "The first images as training saw them, in two views each; dots of one number mark the same spot.",
    "detector": "The first images as training saw them, in two views each; a colour and number is one object in both.",
}


@dataclass(frozen=True)
class Example:
    """An image with what is labelled in it and what a detector finds.

    `image`: (3, H, W) uint8 RGB; `truth`: boxes (N, 4) xyxy pixels and labels (N,); `found`: those and scores (N,);
    both with masks, N compressed RLE, from a detector that gives them. Of a segmenter both are class maps, "classes"
    (H, W) uint8.
    """

    name: str
    image: Tensor
    truth: Mapping[str, Any]
    found: Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """Images that a detector was tried on.

    `words`: where they come from, or why there are none; `names`: of the classes.
    """

    words: str
    names: Sequence[str] = ()
    images: Sequence[Example] = field(default_factory=tuple)


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the places 0…total-1, evenly spaced from the first to the last."""
    if total <= count:
        return list(range(total))
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def example_pictures(examples: Examples) -> Iterator[Picture]:
    """Each image twice: as it is labelled, and with what is found."""
    for example in examples.images:
        if "classes" in example.truth:
            yield from class_pictures(example.name, example.image, example.truth, example.found, examples.names)
            continue
        objects = len(example.truth["boxes"])
        yield Picture(
            draw_boxes(example.image, **example.truth, names=examples.names, long_side=SHARP),
            f"{example.name}, labels: {plural(objects, 'object')}",
            f"{example.name} with labelled boxes",
            photograph=True,
        )
        shown = above(example.found, SCORE)
        number, scores = len(shown["boxes"]), example.found["scores"]
        best = f"; the best of the others has {float(scores.max()):.2f}" if len(scores) > number else ""
        yield Picture(
            draw_boxes(example.image, **shown, names=examples.names, long_side=SHARP),
            f"found: {plural(number, 'object')}" + (best if not number else ""),
            f"{example.name} with detected boxes",
            photograph=True,
        )


def charts(stage: StageRun) -> list[Picture]:
    """Each kind of figure that the stage has recorded, drawn afresh: an unfinished run has no charts of its own."""
    titles = {name: title for name, title, *_ in PICTURES}
    with tempfile.TemporaryDirectory() as folder:
        files = plot_training(stage.rows, Path(folder))
        return [Picture(file.read_bytes(), CAPTIONS.get(file.stem, ""), titles[file.stem]) for file in files]


def first_views(stage: StageRun) -> Iterator[Picture]:
    """The sheet of the first views, where there is one."""
    file = stage.run.pictures / "first_views.jpg"
    with contextlib.suppress(OSError, UnidentifiedImageError, Image.DecompressionBombError):
        sheet = Image.open(file).convert("RGB")
        sheet.thumbnail((SHEET, SHEET))
        yield Picture(sheet, VIEWS.get(stage.kind, ""), "Pairs of views", photograph=True, wide=True)


def proposals(whole: WholeRun) -> Iterator[Item]:
    """What the boxes are that the detector stage learned from, and some images with them; nothing without boxes."""
    named = whole.config.get("boxes") or (whole.stages[-1].config.get("boxes") if whole.stages else None)
    file = whole.run.proposals if whole.run.proposals.is_file() else Path(str(named))
    if named is None and not whole.run.proposals.is_file():
        return
    if not file.is_file():
        yield Text(f"The boxes, {file}, can no longer be shown: the file is gone.")
        return
    if file.stat().st_size > LARGE:
        yield Text(f"{file} is too large to be opened for a few pictures; selfdet proposals --preview draws some.")
        return
    try:
        info = read_info(file, read_coco(file))
        records = read_proposals(file, whole.config.get("images", ""))
    except UserError as error:
        yield Text(f"The boxes can no longer be shown: {error.message}.")
        return
    counts, source = info["counts"], info.get("settings", {}).get("source", "selective search")
    found = f"{plural(counts['boxes'], 'box', 'boxes')} in {plural(counts['images'], 'image')}"
    yield Text(
        f"{found}, {counts['boxes'] / max(1, counts['images']):.0f} an image, from {source}, without labels. "
        f"They should hold objects, among much else. Shown are the first {BOXES} of some images from all over."
    )
    relaxed = [f"{plural(count, 'image')}: {step}" for step, count in counts.get("fallback", {}).items() if count]
    if relaxed:
        yield Points([f"Bounds were relaxed for images that no box was left of. {'; '.join(relaxed)}."])
    for place in spread(len(records), SHOWN):
        yield from _with_boxes(records[place])


def _with_boxes(record: ImageRecord) -> Iterator[Picture]:
    """An image with its first boxes, told apart by colour; nothing where it can't be read."""
    try:
        image = read_image(record.path, (record.width, record.height))
    except UnreadableImage:
        return
    boxes = record.boxes[:BOXES]
    picture = draw_boxes(image, boxes, labels=range(len(boxes)), names=[""] * BOXES, long_side=SHARP)
    name, number = record.path.name, plural(len(record.boxes), "box", "boxes")
    yield Picture(picture, f"{name}: {number}", f"{name} with proposed boxes", photograph=True)
