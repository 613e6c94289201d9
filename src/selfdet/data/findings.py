"""What a check of images and labels found, gathered from every image and annotation."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.data.box_faults import BOX_FAULTS, BoxFault, box_faults, four_numbers
from selfdet.data.coco import require_unique_ids
from selfdet.data.duplicates import duplicate_groups
from selfdet.data.images import list_images
from selfdet.data.inspection import IMAGE_FAULTS, Inspection, Look
from selfdet.data.labels import parse_labels
from selfdet.data.untrusted import expanded, is_integer, is_side
from selfdet.errors import shown


@dataclass(frozen=True)
class Split:
    """Labels as they are written: nothing of them is refused but what can't be read at all."""

    coco: dict[str, Any]
    paths: list[Path]

    @classmethod
    def read(cls, file: str, images: str | None) -> Split:
        """Read labels of any format.

        Raises: UserError for files that are not labels, and for images and classes without ids of their own.
        """
        path = expanded(file)
        coco, paths, _ = parse_labels(path, images, strict=False)
        for key in ("images", "categories"):
            require_unique_ids(coco, key, path)
        for entry in coco["annotations"]:
            for key in ("image_id", "category_id"):
                if key in entry and not is_integer(entry[key]):  # it is of nothing, and may be no key at all
                    entry[key] = shown(entry[key])
        return cls(coco, paths)

    def told_sizes(self) -> list[tuple[int, int] | None]:
        """(width, height) of each image as the labels have it, in pixels."""
        return [_size(image) for image in self.coco["images"]]


@dataclass
class Checked:
    """All images of a check: those of `data` first, then others of the folder, then those of `val_data`.

    number: absolute path → position; train, val: positions in `paths`, each image of a split once.
    """

    paths: list[Path] = field(default_factory=list)
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    number: dict[str, int] = field(default_factory=dict)
    train: set[int] = field(default_factory=set)
    val: set[int] = field(default_factory=set)

    @classmethod
    def gather(cls, images: str | None, data: Split | None, val: Split | None) -> Checked:
        """Bring together what is to be looked at. Raises: UserError when `images` stands for nothing."""
        checked = cls()
        if data is not None:
            checked.train = checked._add(data.paths, data.told_sizes())
        own = set() if val is None else {os.path.abspath(path) for path in val.paths}
        if images is not None:
            others = [path for path in list_images(images, absent_too=True) if os.path.abspath(path) not in own]
            found = checked._add(others, [None] * len(others))
            checked.train = checked.train if data is not None else found
        if val is not None:
            checked.val = checked._add(val.paths, val.told_sizes())
        return checked

    def _add(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int] | None]) -> set[int]:
        places = set()
        for path, size in zip(paths, sizes):
            place = self.number.setdefault(os.path.abspath(path), len(self.paths))
            if place == len(self.paths):
                self.paths.append(path)
                self.sizes.append(size)
            places.add(place)
        return places

    def inspections(self) -> list[Inspection]:
        """The work: one task an image, whose id is its position."""
        return [Inspection(place, path, size) for place, (path, size) in enumerate(zip(self.paths, self.sizes))]


@dataclass
class Findings:
    """What is wrong, and how much there is.

    images: fault → pairs of file and detail; boxes: in the order of the labels; groups: files that show the same, one
    list a group; sides: (N, 3) width and height of each sound box of `data` and the long side of its image, pixels;
    long_sides: of its images as the labels have them, pixels; told: file → (width, height) that its labels go by.
    """

    images: dict[str, list[tuple[str, str]]]
    boxes: list[BoxFault]
    counts: dict[str, Any]
    groups: list[list[str]]
    sides: np.ndarray
    long_sides: list[int]
    told: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """As `--json` has it: every fault has a list, most of them empty."""
        boxes = {kind: [each.to_dict() for each in self.boxes if each.fault == kind] for kind in BOX_FAULTS}
        images = {fault: [file for file, _ in found] for fault, found in self.images.items()}
        return {"images": images, "boxes": boxes, "counts": self.counts}


def gather_findings(checked: Checked, looks: Sequence[Look], data: Split | None, val: Split | None) -> Findings:
    """Everything that was seen, in one; `looks` are in the order of `checked.paths`."""
    images: dict[str, list[tuple[str, str]]] = {fault: [] for fault in IMAGE_FAULTS}
    for path, look in zip(checked.paths, looks):
        for fault, detail in look.faults.items():
            images[fault].append((str(path), detail))
    groups = duplicate_groups(looks)
    images["duplicate"], crossing = _duplicates(checked, groups)
    usable = [look for look in looks if look.usable]
    counts: dict[str, Any] = {
        "images": len(looks),
        "left_out": len(looks) - len(usable),
        "image_faults": {fault: len(found) for fault, found in images.items()},
        "duplicate_groups": len(groups),
        "train_val_duplicates": crossing,
    }
    for name, pick in (("smallest", min), ("largest", max)):
        shape = pick(((look.width * look.height, look.width, look.height) for look in usable), default=(0, 0, 0))
        counts[name] = list(shape[1:])
    boxes: list[BoxFault] = []
    sides: list[np.ndarray] = [np.zeros((0, 3))]
    for name, split in (("", data), ("val", val)):
        if split is None:
            continue
        known = _sizes(checked, looks, split)
        boxes += box_faults(split.coco, split.paths, known)
        if name:
            counts[name] = _counts(split)
        else:
            counts |= _counts(split)
            counts["unlabelled_images"] = len(set(range(len(looks))) - checked.train - checked.val)
            sides.append(_sides(split, known))
    counts["box_faults"] = {kind: sum(each.fault == kind for each in boxes) for kind in BOX_FAULTS}
    same = [[str(checked.paths[place]) for place in group] for group in groups]
    long_sides = [] if data is None else [max(size) for size in data.told_sizes() if size]
    told = {str(path): size for path, size in zip(checked.paths, checked.sizes) if size is not None}
    return Findings(images, boxes, counts, same, np.concatenate(sides), long_sides, told)


def _duplicates(checked: Checked, groups: Sequence[Sequence[int]]) -> tuple[list[tuple[str, str]], int]:
    """All but the first of each group with what they repeat, and the number of validation images seen in training."""
    both = checked.train & checked.val
    found = dict.fromkeys(sorted(both), "in training and in validation")
    crossing = len(both)
    for group in groups:
        trained = [place for place in group if place in checked.train]
        for place in group[1:]:
            if place in checked.val and place not in checked.train and trained:
                found[place] = f"in validation, in training as {checked.paths[trained[0]]}"
                crossing += 1
            else:
                found.setdefault(place, f"as {checked.paths[group[0]]}")
    return [(str(checked.paths[place]), words) for place, words in found.items()], crossing


def _sizes(checked: Checked, looks: Sequence[Look], split: Split) -> dict[int, tuple[int, int]]:
    """(width, height) of each image that either the labels or the file tell."""
    known = {}
    for image, path, told in zip(split.coco["images"], split.paths, split.told_sizes()):
        look = looks[checked.number[os.path.abspath(path)]]
        size = told or ((look.width, look.height) if look.width else None)
        if size is not None:
            known[image["id"]] = size
    return known


def _counts(split: Split) -> dict[str, Any]:
    """Boxes by class, in the order of the classes' ids; crowds apart."""
    entries = [entry for entry in split.coco["annotations"] if not entry.get("iscrowd")]
    kinds = Counter(entry.get("category_id") for entry in entries)
    filled = {entry.get("image_id") for entry in entries}
    names: dict[str, int] = defaultdict(int)
    for category in sorted(split.coco["categories"], key=lambda each: each["id"]):
        names[str(category.get("name"))] += kinds[category["id"]]
    return {
        "labelled_images": len(split.paths),
        "images_without_boxes": sum(image["id"] not in filled for image in split.coco["images"]),
        "boxes": len(entries),
        "crowds": len(split.coco["annotations"]) - len(entries),
        "classes": dict(names),
    }


def _sides(split: Split, sizes: Mapping[int, tuple[int, int]]) -> np.ndarray:
    rows = []
    for entry in split.coco["annotations"]:
        box, size = four_numbers(entry), sizes.get(entry.get("image_id", -1))
        if box is None or size is None or entry.get("iscrowd"):
            continue
        width = min(box[0] + box[2], size[0]) - max(box[0], 0)
        height = min(box[1] + box[3], size[1]) - max(box[1], 0)
        if width > 0 and height > 0:
            rows.append((width, height, max(size)))
    return np.array(rows, float).reshape(-1, 3)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if is_side(width) and is_side(height) else None  # type: ignore[arg-type]
