"""Labels for segmentation: images with the class of each pixel, from PNG masks or from COCO's polygons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from selfdet.data.class_maps import IGNORED, MOST, MaskedImage, paint_over, present, read_class_map
from selfdet.data.images import UnreadableImage, read_image, read_size
from selfdet.data.labels import ImageRecord, Labels, load_labels, read_sample
from selfdet.data.mask_formats import LOOKUPS, find_masks
from selfdet.data.masks import decode_mask, has_segmentation, segmentation_rle
from selfdet.data.untrusted import expanded, parse_json
from selfdet.errors import UserError

BACKGROUND = "background"
LISTED = "selfdet_masks"  # the key that tells our own list of masks from COCO JSON


@dataclass(frozen=True)
class MaskRecord:
    """One image before its pixels are read, with its `mask` or with COCO's `objects` and `crowds` (annotations)."""

    image_id: int
    path: Path
    mask: Path | None = None
    objects: ImageRecord | None = None
    crowds: Sequence[dict[str, Any]] = ()


@dataclass
class MaskLabels:
    """Images with class maps; classes by name in the order of their numbers.

    `lookup`: name of a way to read numbers (`LOOKUPS`). `order`: what each number of the file is here, where classes
    are those of other labels (`in_order_of`), 255 for what these don't have. `coco`: the labels that polygons are of.
    `left_out`: classes of the file that these don't have; `unmasked`: images that are left out, as they have no mask.
    """

    file: Path
    classes: list[str]
    records: list[MaskRecord]
    hash: str
    lookup: str | None = None
    named: bool = True
    order: tuple[int, ...] | None = None
    coco: Labels | None = None
    left_out: tuple[str, ...] = ()
    unmasked: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def category_ids(self) -> list[int]:
        """The classes' numbers: their places."""
        return list(range(len(self.classes)))

    def subset(self, image_ids: Iterable[int]) -> MaskLabels:
        """The same labels for the images `image_ids` only."""
        wanted = set(image_ids)
        return replace(self, records=[record for record in self.records if record.image_id in wanted])

    def in_order_of(self, classes: Sequence[str]) -> MaskLabels:
        """These labels in the numbers of other `classes`; pixels of a class that these don't have are ignored.

        Raises: UserError when one of `classes` is not among these; numbered ones are taken by their number.
        """
        if list(classes) == self.classes:
            return self
        if not self.named:
            if len(self.classes) > len(classes):
                raise UserError(
                    f"{self.file} has the class number {len(self.classes) - 1}, where {len(classes)} classes are known",
                    "Use masks with the same classes",
                )
            return replace(self, classes=list(classes))
        absent = [name for name in classes if name not in self.classes]
        if absent:
            raise UserError(
                f"{self.file} has no class {absent[0]!r}; it has {', '.join(self.classes[:5])}",
                "Use masks with the same classes",
            )
        places = {name: number for number, name in enumerate(classes)}
        order = tuple(places.get(name, IGNORED) for name in self.classes)
        unknown = tuple(name for name in self.classes if name not in places)
        return replace(self, classes=list(classes), order=order, left_out=unknown)

    def read(self, record: MaskRecord) -> MaskedImage:
        """The image and its class map.

        Raises: UnreadableImage; UserError for a mask of another size, of colours, or with an unknown number.
        """
        if record.objects is not None:
            image, classes = self._painted(record, record.objects)
        else:
            assert record.mask is not None
            classes = self._numbers(record.mask)
            height, width = classes.shape
            check_mask_size(record.path, record.mask, (width, height))
            image = read_image(record.path, (width, height)).as_subclass(Tensor)
        return MaskedImage(image, self._ordered(classes), str(record.path), record.image_id)

    def classes_in(self, record: MaskRecord) -> set[int]:
        """The classes with pixels in an image, without reading the image; of COCO those of its objects. For labels in
        their own order only.

        Raises: UnreadableImage; UserError as `read`.
        """
        if record.objects is None:
            assert record.mask is not None
            return present(self._numbers(record.mask))
        shown = map(has_segmentation, record.objects.segmentations)
        return {0} | {int(label) + 1 for label, seen in zip(record.objects.labels, shown) if seen}

    def check_measurable(self) -> None:
        """Raises: UserError where every pixel of every mask is ignored; as `read` for a mask before the first pixel."""
        read = False
        for record in self.records:
            if record.mask is None:  # what COCO doesn't label is background
                return
            try:
                if present(self._ordered(self._numbers(record.mask))):
                    return
            except UnreadableImage:
                continue
            read = True
        if read:
            raise UserError(
                f"every pixel of the masks of {self.file} is ignored, so that nothing could be measured",
                "Use labels with pixels of the classes that are known",
            )

    def _ordered(self, classes: Tensor) -> Tensor:
        if self.order is None:
            return classes
        table = np.full(256, IGNORED, np.uint8)
        table[: len(self.order)] = self.order
        return classes.new_tensor(table)[classes.long()]

    def _numbers(self, mask: Path) -> Tensor:
        return read_class_map(mask, self._table, len(self.order or self.classes), self._hint)

    @cached_property
    def _table(self) -> np.ndarray | None:
        return None if self.lookup is None else LOOKUPS[self.lookup]()

    @property
    def _hint(self) -> str:
        if self.lookup is not None:
            return "Known are Cityscapes' labelIds, 0…33, and 255 for ignored: correct the mask"
        known = len(self.order or self.classes)
        return f"Known are 0…{known - 1} and 255 for ignored; name more classes in classes.json, or correct the mask"

    def _painted(self, record: MaskRecord, objects: ImageRecord) -> tuple[Tensor, Tensor]:
        """Objects over the background, smaller ones over larger ones; what is not known well is ignored."""
        sample = read_sample(objects, with_masks=True)
        assert sample.masks is not None
        assert sample.labels is not None
        masks = sample.masks.as_subclass(Tensor).numpy()
        height, width = sample.size
        layers: list[tuple[int, np.ndarray]] = []
        for entry in record.crowds:
            if has_segmentation(entry.get("segmentation")):
                try:
                    layers.append((IGNORED, decode_mask(segmentation_rle(entry["segmentation"], (height, width)))))
                except ValueError as error:
                    raise UserError(
                        f"the segmentation of annotation {entry['id']} of {record.path} cannot be read: {error}",
                        "Use polygons or COCO RLE",
                    ) from error
        for row, position in enumerate(sample.ids.tolist()):
            if not has_segmentation(objects.segmentations[position]):  # the object is somewhere in its box
                box = np.zeros((height, width), bool)
                x1, y1, x2, y2 = (round(edge) for edge in sample.boxes.as_subclass(Tensor)[row].tolist())
                box[y1:y2, x1:x2] = True
                layers.append((IGNORED, box))
        largest_first = sorted(range(len(masks)), key=lambda row: -int(masks[row].sum()))
        layers += [(int(sample.labels[row]) + 1, masks[row]) for row in largest_first]
        return sample.image.as_subclass(Tensor), paint_over((height, width), layers)

    def write(self, file: Path, write: Callable[[Path, str], None]) -> None:
        """Write these labels as a file that `load_mask_labels` reads."""
        if self.coco is not None:
            write(file, json.dumps(self.coco.subset(record.image_id for record in self.records).coco))
            return
        entries = [
            {
                "id": record.image_id,
                "image": str(record.path.absolute()),
                "mask": str(Path(str(record.mask)).absolute()),
            }
            for record in self.records
        ]
        write(file, json.dumps({LISTED: entries, "classes": self.classes, "lookup": self.lookup}))


def load_mask_labels(file: str | Path, images: str | Path | None = None) -> MaskLabels:
    """Load labels for segmentation; images without an object are kept.

    `file`: COCO JSON, whose polygons and RLE become class maps (0 is the background, categories count from 1 in the
    order of their ids; crowds, and boxes without a segmentation, are ignored), or masks as `find_masks` says. Masks
    whose classes nobody names are read for their numbers, which are then their names.

    Raises: UserError for what is neither, as `load_labels` and `find_masks`, and for masks of another size.
    """
    path = expanded(file)
    if path.suffix.lower() == ".json":
        content = _listed(path)
        return _coco(path, images) if content is None else content
    found = find_masks(path, images)
    records = [MaskRecord(number, *pair) for number, pair in enumerate(found.pairs, start=1)]
    names = [str(mask.name) + str(mask.stat().st_size if mask.exists() else 0) for _, mask in found.pairs]
    labels = MaskLabels(path, list(found.classes or ()), records, _digest(names), found.lookup, unmasked=found.unmasked)
    for image, mask in found.pairs:
        check_mask_size(image, mask)
    if found.classes is None:
        labels.named = False
        labels.classes = _numbered(labels)
    return labels


def check_mask_size(image: Path, mask: Path, size: tuple[int, int] | None = None) -> None:
    """Refuse a mask whose (width, height) is not its image's, as stored or as turned by EXIF.

    Files that can't be opened are left to who reads them. Raises: UserError.
    """
    try:
        wanted = read_size(mask) if size is None else size
        found = read_size(image)
    except UnreadableImage:
        return
    if found == wanted:
        return
    try:
        read_size(image, wanted)
    except UnreadableImage:
        raise UserError(
            f"mask {mask} is {wanted[0]}×{wanted[1]} px, its image {image} {found[0]}×{found[1]}",
            "A mask needs one pixel for each of its image",
        ) from None


def class_counts(labels: MaskLabels, seen: Callable[[int], None] | None = None) -> dict[str, int]:
    """In how many images each class has pixels; what can't be read counts nowhere.

    Raises: UserError where fewer than two classes are there, so that nothing can be told apart, or nothing can be read.
    """
    counts = dict.fromkeys(labels.classes, 0)
    unreadable: list[UnreadableImage] = []
    for place, record in enumerate(labels.records, start=1):
        try:
            for number in labels.classes_in(record):
                counts[labels.classes[number]] += 1
        except UnreadableImage as error:
            unreadable.append(error)
        if seen is not None:
            seen(place)
    if unreadable and len(unreadable) == len(labels):
        raise UserError(f"none of the {len(labels)} masks of {labels.file} can be read: {unreadable[0]}", "Use PNGs")
    there = [name for name, count in counts.items() if count]
    if len(there) < 2:
        only = f"only {there[0]!r}" if there else "nothing but ignored pixels"
        raise UserError(
            f"the masks of {labels.file} that would be learned from hold {only}: there is no foreground to learn",
            "Use labels with at least two classes, of which 255 is none, or a larger --fraction",
        )
    return counts


def _coco(path: Path, images: str | Path | None) -> MaskLabels:
    labels = load_labels(path, images)
    if not any(has_segmentation(entry.get("segmentation")) for entry in labels.coco["annotations"]):
        raise UserError(f"no object of {path} has a segmentation, so there are no masks", "Label polygons or COCO RLE")
    if len(labels.classes) >= MOST:
        raise UserError(f"{path} has {len(labels.classes)} categories, at most {MOST - 1} fit a mask", "Use fewer")
    if BACKGROUND in labels.classes:
        raise UserError(
            f"{path} has a category {BACKGROUND!r}, which is the class of whatever has no label", "Rename or remove it"
        )
    crowds: dict[int, list[dict[str, Any]]] = {}
    for entry in labels.coco["annotations"]:
        if entry["iscrowd"]:
            crowds.setdefault(entry["image_id"], []).append(entry)
    records = [
        MaskRecord(each.image_id, each.path, objects=each, crowds=crowds.get(each.image_id, ()))
        for each in labels.records
    ]
    return MaskLabels(path, [BACKGROUND, *labels.classes], records, labels.hash, coco=labels)


def _listed(path: Path) -> MaskLabels | None:
    """A list that `MaskLabels.write` wrote; None of any other file."""
    if not path.is_file() or LISTED not in (text := path.read_text(encoding="utf-8", errors="replace"))[:100]:
        return None
    try:
        content = parse_json(text.encode())
        records = [MaskRecord(each["id"], Path(each["image"]), Path(each["mask"])) for each in content[LISTED]]
        return MaskLabels(path, content["classes"], records, _digest([text]), content["lookup"])
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is damaged: no list of images and masks", "Start the run or comparison that wrote it anew"
        ) from None


def _numbered(labels: MaskLabels) -> list[str]:
    """Classes named by their numbers, 0 up to the highest in any mask."""
    highest = 0
    for record in labels.records:
        assert record.mask is not None
        try:
            highest = max([highest, *present(read_class_map(record.mask))])
        except UnreadableImage:
            continue
    return [str(number) for number in range(highest + 1)]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
