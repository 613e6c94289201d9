"""The labels that the cells of a comparison learn from, and the images outside them that they are followed on."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdet.data.labels import ImageRecord, Labels
from selfdet.data.subset import Subset, fraction_subset, images_in, outside_subset, shots_subset
from selfdet.errors import UserError
from selfdet.training.log import plural


@dataclass(frozen=True)
class Amount:
    """How much is labelled: a `fraction` of the images, or so many `shots` of each class; one of them is None."""

    fraction: float | None = None
    shots: int | None = None

    @property
    def slug(self) -> str:
        """For names: `0.01`, `5shot`."""
        return f"{self.shots}shot" if self.fraction is None else f"{self.fraction:g}"

    def subset(self, labels: Labels, seed: int) -> Subset:
        """The images of this amount, the same for all starts of a seed."""
        if self.fraction is not None:
            return fraction_subset([record.image_id for record in labels.records], self.fraction, seed)
        assert self.shots is not None
        return shots_subset({each.image_id: each.labels.tolist() for each in labels.records}, self.shots, seed)


@dataclass(frozen=True)
class LabelSet:
    """The labelled images of one amount and seed, and ids of images `outside` of them, none where all are labelled."""

    amount: Amount
    seed: int
    subset: Subset
    chosen: Labels
    outside: Sequence[int]

    @property
    def name(self) -> str:
        """`0.01-s0`."""
        return f"{self.amount.slug}-s{self.seed}"

    @property
    def boxes(self) -> int:
        """Boxes to learn from."""
        return sum(len(record.boxes) for record in self.chosen.records)

    @property
    def lacks(self) -> list[str]:
        """Classes without a box in it."""
        have = {label for record in self.chosen.records for label in record.labels.tolist()}
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


def label_set(labels: Labels, amount: Amount, seed: int, outside: int) -> LabelSet:
    """The images of an amount and seed, and at most so many `outside` of them.

    Raises: UserError where none of its images has a box.
    """
    subset = amount.subset(labels, seed)
    ids = [record.image_id for record in labels.records]
    left = outside_subset(ids, subset.image_ids, outside, seed)
    made = LabelSet(amount, seed, subset, labels.subset(subset.image_ids), left)
    if not made.boxes:
        images = plural(len(subset.image_ids), "image")
        raise UserError(
            f"{labels.file}: {amount.slug} with seed {seed} leaves {images} and no box of {_some(labels.classes)}",
            "Use a larger fraction, or --shots for a number of images of each class",
        )
    return made


def gaps(labels: Labels, sets: Iterable[LabelSet]) -> Iterator[str]:
    """What cells can't learn for lack of boxes, as lines for the log."""
    have = {label for record in labels.records for label in record.labels.tolist()}
    never = [name for label, name in enumerate(labels.classes) if label not in have]
    if never:
        yield f"{labels.file} has no box of {_some(never)}: no start can learn {'it' if len(never) == 1 else 'them'}"
    for each in sets:
        if missing := [name for name in each.lacks if name not in never]:
            yield f"{each.name}: no box of {_some(missing)} among {plural(len(each.chosen), 'image')}"


def check_apart(labels: Labels, val: Labels) -> None:
    """Raises: UserError where images that are learned from are evaluated on as well, and for labels without a box."""
    own = {os.path.realpath(record.path) for record in labels.records}
    both = [record.path.name for record in val.records if os.path.realpath(record.path) in own]
    if both:
        raise UserError(
            f"{plural(len(both), 'image')} of {val.file} are in {labels.file}, too: {_some(both)}",
            "Evaluate on images that nothing was learned from",
        )
    if not any(len(record.boxes) for record in val.records):
        raise UserError(f"{val.file} has no box: nothing could be measured", "Use labels with boxes as --val-data")


def images_hash(records: Iterable[ImageRecord]) -> str:
    """A hash of the images' names and sizes on disk, 16 hexadecimal digits: reading them all would take too long."""
    lines = sorted(f"{record.path.name} {record.path.stat().st_size}" for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def images_root(labels: Labels, images: str | None) -> str:
    """Where the images of a label file are, for files that name some of them."""
    if images is not None:
        return images
    name, path = Path(labels.coco["images"][0]["file_name"]), labels.records[0].path
    return str(labels.file.parent if name.is_absolute() else path.parents[len(name.parts) - 1])


def write_labels(file: Path, labels: Labels, image_ids: Iterable[int]) -> str:
    """Write the labels of some images, unless it has been done; returns the file's name."""
    if not file.exists():
        write_shared(file, json.dumps(labels.subset(image_ids).coco))
    return str(file)


def write_shared(file: Path, text: str) -> None:
    """Write a file that several processes may write at once: a reader sees one whole text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
