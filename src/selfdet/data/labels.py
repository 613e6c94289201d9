"""Labels of COCO, Pascal VOC or YOLO, checked when loaded: one `ImageRecord` an image, and `Sample`s read from them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from selfdet.data.coco import absent, file_names, image_files, read_coco, require_unique_ids
from selfdet.data.images import list_images, read_image
from selfdet.data.masks import decode_mask, has_segmentation, segmentation_rle
from selfdet.data.sample import Sample, boxes_xyxy
from selfdet.data.shard_finding import open_shards
from selfdet.data.untrusted import expanded, is_side, to_float
from selfdet.data.voc import is_voc, read_voc
from selfdet.data.yolo import is_yolo, read_yolo
from selfdet.errors import UserError, shown


@dataclass
class ImageRecord:
    """One labelled image before its pixels are read; crowds and faulty boxes are not in it.

    width, height: as the label file says, pixels; 0 where it says nothing.
    boxes: (N, 4) float32, xyxy in pixels, clipped to the image; N may be 0.
    labels: (N,) int64, 0…K-1, positions in `Labels.classes`.
    segmentations: N entries as in the file: polygons, RLE, or None.
    annotation_ids: N ids of the file.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    segmentations: list[Any]
    annotation_ids: list[int]


@dataclass
class Labels:
    """A label file: its classes, in the order of their ids, and one record an image, in the order of the file.

    coco: the parsed file, crowds included, for evaluation; a missing `iscrowd` or `area` is filled in, and boxes that
        are not finite are left out. Labels of another format are turned into this.
    dropped: how many boxes are left out of the records, by fault: `degenerate` (a side of 0 or less), `not_finite`,
        `out_of_image`.
    hash: of all files that were read.
    """

    file: Path
    classes: list[str]
    category_ids: list[int]
    records: list[ImageRecord]
    coco: dict[str, Any]
    dropped: dict[str, int]
    hash: str

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, image_ids: Iterable[int]) -> Labels:
        """The same labels for the images `image_ids` only; `records` and `coco` keep the order of the file."""
        wanted = set(image_ids)
        paths = {record.image_id: record.path for record in self.records}
        if not wanted <= paths.keys():
            raise ValueError(f"{self.file} has no image {min(wanted - paths.keys())}")
        coco = dict(self.coco)
        coco["images"] = [image for image in self.coco["images"] if image["id"] in wanted]
        coco["annotations"] = [entry for entry in self.coco["annotations"] if entry["image_id"] in wanted]
        records, dropped = _records(coco, [paths[image["id"]] for image in coco["images"]], self.category_ids)
        return Labels(self.file, self.classes, self.category_ids, records, coco, dropped, self.hash)


def load_labels(file: str | Path, images: str | Path | None = None) -> Labels:
    """Load and check labels whose images are in the folder `images` (or a list or glob of them).

    `file` is COCO JSON; of Pascal VOC a data set's folder or a list in its `ImageSets/Main`; of YOLO a `data.yaml`,
    with `:val` or another split behind it. Without `images` they are looked for in the JSON's own folder, then in
    `images/` beside it; of VOC in `JPEGImages`; of YOLO where the file says. Images without boxes are kept; boxes are
    clipped to the image.

    Raises: UserError for a file that is missing, not JSON or not COCO, repeated ids, images that are absent or whose
        name leaves the folder, and annotations of an unknown image or category.
    """
    path = expanded(file)
    coco, paths, files = parse_labels(path, images)
    for key in ("images", "annotations", "categories"):
        require_unique_ids(coco, key, path)
    for key in ("images", "categories"):
        if not coco[key]:
            raise UserError(f'label file {path}: the list "{key}" is empty', "Labels need images and their classes")
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise UserError(f'label file {path} is not COCO: category {category["id"]} has no "name"')
    _check_annotations(coco, path)
    # What is no place can't be looked for either: an evaluation would count it as missed.
    endless = [entry for entry in coco["annotations"] if not all(map(math.isfinite, entry["bbox"]))]
    coco["annotations"] = [entry for entry in coco["annotations"] if all(map(math.isfinite, entry["bbox"]))]
    category_ids = [category["id"] for category in categories]
    records, dropped = _records(coco, paths, category_ids)
    dropped |= {"not_finite": len(endless)} if endless else {}
    classes = [category["name"] for category in categories]
    return Labels(path, classes, category_ids, records, coco, dropped, _hash(files))


def parse_labels(
    file: Path, images: str | Path | None = None, strict: bool = True
) -> tuple[dict[str, Any], list[Path], list[Path]]:
    """The labels of any format as parsed COCO JSON, the file of each image, and the files that were read.

    What annotations say is not looked at yet. Where not `strict`, absent images are kept, and so is what VOC and YOLO
    have of faulty objects.

    Raises: UserError as `load_labels` for files that are not labels and images that are absent.
    """
    files = [file]
    if is_voc(file) or is_yolo(file):
        coco, folder, files = (read_voc if is_voc(file) else read_yolo)(file, strict)
        images = folder if images is None else images
    else:
        coco = read_coco(file, ("images", "annotations", "categories"))
    return coco, _paths(coco, file, images, strict), files


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_sample(record: ImageRecord, with_masks: bool = False) -> Sample:
    """Read an image with its objects: boxes xyxy in its pixels, ids = positions in the record, labels 0…K-1.

    Masks, when asked for, are empty for objects without a segmentation: of their pixels nothing is known.

    Raises: UnreadableImage, also where the file's size is not the label file's; UserError for a segmentation that
        can't be read, when masks are asked for.
    """
    size = (record.width, record.height) if record.width and record.height else None
    image = read_image(record.path, size)
    height, width = image.shape[-2:]
    # Only where the label file gives no size is there anything left to clip.
    boxes = clip(record.boxes, width, height)
    sample = Sample(
        image=image,
        boxes=boxes_xyxy(torch.from_numpy(boxes), (height, width)),
        ids=torch.arange(len(boxes)),
        labels=torch.from_numpy(record.labels),
        masks=_masks(record, height, width) if with_masks else None,
        path=str(record.path),
        image_id=record.image_id,
        original_size=(height, width),
    )
    inside = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
    return sample if inside.all() else sample.select(torch.from_numpy(inside))


def clip(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cut (N, 4) xyxy pixel boxes off at the edges of a `width` × `height` image."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def _paths(coco: dict[str, Any], file: Path, images: str | Path | None, strict: bool) -> list[Path]:
    shards = None if images is None else open_shards(images)
    if shards is not None:
        return image_files(coco, file, Path(shards.folder), absent_too=not strict)
    root = None if images is None else expanded(images)
    if root is None or root.is_dir():
        return image_files(coco, file, root, absent_too=not strict)
    # A list or a glob names the files themselves: each `file_name` must be the end of exactly one of them.
    named: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(root, not strict):
        named[path.name].append(path)
    paths, missing = [], []
    for name in file_names(coco, file):
        found = [path for path in named[Path(name).name] if path.as_posix().endswith(f"/{name}") or str(path) == name]
        if len(found) > 1:
            raise UserError(f"label file {file}: {name} is {len(found)} files of {root}", "Give a folder as --images")
        paths += found or [Path(name)]
        missing += [] if found else [name]
    if missing and strict:
        raise absent(file, missing, len(coco["images"]), str(root))
    return paths


def _check_annotations(coco: dict[str, Any], file: Path) -> None:
    known = {key: {entry["id"] for entry in coco[key]} for key in ("images", "categories")}
    for entry in coco["annotations"]:
        for key, among in (("image_id", "images"), ("category_id", "categories")):
            if key not in entry:
                raise UserError(f'label file {file} is not COCO: annotation {entry["id"]} has no "{key}"')
            value = entry[key]
            if not isinstance(value, int) or value not in known[among]:
                hint = f'Every "{key}" must be the id of one of "{among}"'
                raise UserError(
                    f"label file {file}: annotation {entry['id']} has the unknown {key} {shown(value)}", hint
                )
        given = entry.get("bbox")
        numbers = [to_float(value) for value in given] if isinstance(given, list) else []
        box = [value for value in numbers if value is not None]
        if len(box) != 4 or len(numbers) != 4:
            raise UserError(
                f'label file {file}: annotation {entry["id"]} has no "bbox" of four numbers',
                "A box is [x, y, width, height] in pixels",
            )
        entry.setdefault("iscrowd", 0)
        for key in ("iscrowd", "ignore"):
            if entry.get(key, 0) not in (0, 1):
                raise UserError(
                    f"label file {file}: annotation {entry['id']} has the {key} {shown(entry[key])}", "It is 0 or 1"
                )
        entry["bbox"] = given if all(map(math.isfinite, box)) else box
        area = to_float(entry.get("area"))
        if area is None or not math.isfinite(area):
            entry["area"] = box[2] * box[3]


def _records(
    coco: dict[str, Any], paths: list[Path], category_ids: list[int]
) -> tuple[list[ImageRecord], dict[str, int]]:
    position = {category: label for label, category in enumerate(category_ids)}
    sizes = {image["id"]: (_pixels(image.get("width")), _pixels(image.get("height"))) for image in coco["images"]}
    rows: dict[int, list[tuple[list[float], int, Any, int]]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    for entry in coco["annotations"]:
        if entry["iscrowd"]:
            continue
        box, fault = _box(entry["bbox"], *sizes[entry["image_id"]])
        if fault:
            dropped[fault] += 1
            continue
        row = (box, position[entry["category_id"]], entry.get("segmentation") or None, entry["id"])
        rows[entry["image_id"]].append(row)
    records = []
    for image, path in zip(coco["images"], paths):
        own = rows[image["id"]]
        records.append(
            ImageRecord(
                image_id=image["id"],
                path=path,
                width=sizes[image["id"]][0],
                height=sizes[image["id"]][1],
                boxes=np.array([row[0] for row in own], np.float32).reshape(-1, 4),
                labels=np.array([row[1] for row in own], np.int64),
                segmentations=[row[2] for row in own],
                annotation_ids=[row[3] for row in own],
            )
        )
    return records, dict(dropped)


def _box(box: list[float], width: int, height: int) -> tuple[list[float], str]:
    """The finite xywh `box` as xyxy clipped to the image, and its fault or ""."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if right <= left or bottom <= top:
        return [], "degenerate"
    if width and height:
        left, right = max(left, 0), min(right, width)
        top, bottom = max(top, 0), min(bottom, height)
        if right <= left or bottom <= top:
            return [], "out_of_image"
    return [left, top, right, bottom], ""


def _pixels(value: Any) -> int:
    return int(value) if is_side(value) else 0


def _masks(record: ImageRecord, height: int, width: int) -> tv_tensors.Mask:
    masks = np.zeros((len(record.boxes), height, width), bool)
    for row, segmentation in enumerate(record.segmentations):
        if has_segmentation(segmentation):
            try:
                masks[row] = decode_mask(segmentation_rle(segmentation, (height, width)))
            except ValueError as error:
                raise UserError(
                    f"the segmentation of annotation {record.annotation_ids[row]} of {record.path} cannot be read: "
                    f"{error}",
                    "Use polygons or COCO RLE",
                ) from error
    return tv_tensors.Mask(torch.from_numpy(masks))
