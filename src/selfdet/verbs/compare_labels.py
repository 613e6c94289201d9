"""The labels that the cells of a comparison learn from, and the images outside them that they are followed on."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfdet.data.images import UnreadableImage
from selfdet.data.labels import Labels
from selfdet.data.mask_labels import MaskLabels
from selfdet.data.subset import Subset, fraction_subset, images_in, outside_subset, shots_subset
from selfdet.errors import UserError
from selfdet.training.log import plural

AnyLabels = Labels | MaskLabels


class HasPath(Protocol):
    """An image's record."""

    @property
    def path(self) -> Path: ...


def marked(labels: AnyLabels) -> dict[int, list[int]]:
    """Image id → the class of each of its boxes, or each class that it has pixels of."""
    if isinstance(labels, Labels):
        return {record.image_id: record.labels.tolist() for record in labels.records}
    found = {}
    for record in labels.records:
        try:
            found[record.image_id] = sorted(labels.classes_in(record))
        except UnreadableImage:
            found[record.image_id] = []
    return found


@dataclass(frozen=True)
class Amount:
    """How much is labelled: a `fraction` of the images, or so many `shots` of each class; one of them is None."""

    fraction: float | None = None
    shots: int | None = None

    @property
    def slug(self) -> str:
        """For names: `0.01`, `5shot`."""
        return f"{self.shots}shot" if self.fraction is None else f"{self.fraction:g}"

    def subset(self, labels: AnyLabels, seed: int) -> Subset:
        """The images of this amount, the same for all starts of a seed."""
        if self.fraction is not None:
            return fraction_subset([record.image_id for record in labels.records], self.fraction, seed)
        assert self.shots is not None
        return shots_subset(marked(labels), self.shots, seed)


@dataclass(frozen=True)
class LabelSet:
    """The labelled images of one amount and seed, and ids of images `outside` of them, none where all are labelled.

    `marks`: the classes of all boxes to learn from, or of segmentation those that each image has pixels of.
    """

    amount: Amount
    seed: int
    subset: Subset
    chosen: AnyLabels
    outside: Sequence[int]
    marks: Sequence[int]

    @property
    def name(self) -> str:
        """`0.01-s0`."""
        return f"{self.amount.slug}-s{self.seed}"

    @property
    def boxes(self) -> int:
        """Boxes to learn from; of segmentation classes, each once an image."""
        return len(self.marks)

    @property
    def lacks(self) -> list[str]:
        """Classes of which there is nothing in it."""
        have = set(self.marks)
        return [name for label, name in enumerate(self.chosen.classes) if label not in have]


def amounts(fractions: Sequence[float], shots: Sequence[int], images: int) -> list[Amount]:
    """What was asked for, each once, the smallest first.

    Raises: UserError for a fraction that is none, or that is less than one of so many `images`.
    """
    asked = sorted(set(fractions))
    for fraction in asked:
        if not 0 < fraction <= 1:
            raise UserError(f"--fractions {fraction:g} is not a share of the images", "Give shares above 0 and up to 1")
    if empty := [fraction for fraction in asked if not images_in(fraction, images)]:
        left = [f"{fraction:g}" for fraction in asked if fraction not in empty]
        instead = f"Use --fractions {' '.join(left)}" if left else "Use larger fractions"
        raise UserError(
            f"--fractions {empty[-1]:g} of {plural(images, 'labelled image')} leaves no image",
            f"{instead}, or --shots for a number of images of each class",
        )
    return [*(Amount(fraction=each) for each in asked), *(Amount(shots=each) for each in sorted(set(shots)))]


def label_set(labels: AnyLabels, amount: Amount, seed: int, outside: int) -> LabelSet:
    """The images of an amount and seed, and at most so many `outside` of them.

    Raises: UserError where none of its images has a box.
    """
    subset = amount.subset(labels, seed)
    ids = [record.image_id for record in labels.records]
    left = outside_subset(ids, subset.image_ids, outside, seed)
    chosen = labels.subset(subset.image_ids)
    marks = [label for own in marked(chosen).values() for label in own]
    made = LabelSet(amount, seed, subset, chosen, left, marks)
    if not made.boxes:
        images = plural(len(subset.image_ids), "image")
        raise UserError(
            f"{labels.file}: {amount.slug} with seed {seed} leaves {images} and no box of {_some(labels.classes)}",
            "Use a larger fraction, or --shots for a number of images of each class",
        )
    return made


def gaps(labels: AnyLabels, sets: Iterable[LabelSet]) -> Iterator[str]:
    """What cells can't learn for lack of boxes, as lines for the log."""
    have = {label for own in marked(labels).values() for label in own}
    never = [name for label, name in enumerate(labels.classes) if label not in have]
    if never:
        yield f"{labels.file} has no box of {_some(never)}: no start can learn {'it' if len(never) == 1 else 'them'}"
    for each in sets:
        if missing := [name for name in each.lacks if name not in never]:
            yield f"{each.name}: no box of {_some(missing)} among {plural(len(each.chosen), 'image')}"


def check_apart(labels: AnyLabels, val: AnyLabels) -> None:
    """Raises: UserError where images that are learned from are evaluated on as well, and for labels without a box."""
    own = {os.path.realpath(record.path) for record in labels.records}
    both = [record.path.name for record in val.records if os.path.realpath(record.path) in own]
    if both:
        raise UserError(
            f"{plural(len(both), 'image')} of {val.file} are in {labels.file}, too: {_some(both)}",
            "Evaluate on images that nothing was learned from",
        )
    if isinstance(val, Labels) and not any(len(record.boxes) for record in val.records):
        raise UserError(f"{val.file} has no box: nothing could be measured", "Use labels with boxes as --val-data")


def images_hash(records: Iterable[HasPath]) -> str:
    """A hash of the images' names and sizes on disk, 16 hexadecimal digits: reading them all would take too long."""
    lines = sorted(f"{record.path.name} {record.path.stat().st_size}" for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def images_root(labels: AnyLabels, images: str | None) -> str | None:
    """Where the images of a label file are, for files that name some of them; None where these say so themselves."""
    if images is not None:
        return images
    if isinstance(labels, MaskLabels):
        return None if labels.coco is None else images_root(labels.coco, None)
    name, path = Path(labels.coco["images"][0]["file_name"]), labels.records[0].path
    return str(labels.file.parent if name.is_absolute() else path.parents[len(name.parts) - 1])


def write_labels(file: Path, labels: AnyLabels, image_ids: Iterable[int]) -> str:
    """Write the labels of some images, unless it has been done; returns the file's name."""
    if not file.exists():
        some = labels.subset(image_ids)
        if isinstance(some, MaskLabels):
            some.write(file, write_shared)
        else:
            write_shared(file, json.dumps(some.coco))
    return str(file)


def write_shared(file: Path, text: str) -> None:
    """Write a file that several processes may write at once: a reader sees one whole text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
