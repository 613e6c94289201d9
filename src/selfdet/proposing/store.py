"""The file of proposals: COCO JSON with one class, a fingerprint of the images and the settings that made it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.data.disk import replacing
from selfdet.data.images import UnreadableImage, read_size
from selfdet.data.labels import ImageRecord, load_labels
from selfdet.data.listing import ListedImage, numbered_images
from selfdet.data.untrusted import is_integer
from selfdet.errors import UserError
from selfdet.proposing.clusters import NO_CLUSTER, Clusters
from selfdet.proposing.filters import FALLBACKS
from selfdet.proposing.finding import DECIMALS, FAULTS, Found

CATEGORY = {"id": 1, "name": "object"}
# So many images have their size compared when proposals are read; the others when they are read themselves.
COMPARED = 500
AGAIN = "Run selfdet proposals on these images"


def fingerprint(images: Iterable[tuple[str, int, int]]) -> str:
    """A hash of images by name, width and height, whatever their order: 16 hexadecimal digits."""
    lines = sorted(f"{name}\t{width}\t{height}" for name, width, height in images)
    return _hash(lines)


def listing_hash(listed: Sequence[ListedImage]) -> str:
    """A hash of what is known of images before they are opened, in order: 16 hexadecimal digits."""
    lines = (f"{image.image_id}\t{image.name}\t{image.size}" for image in listed)
    return _hash(lines)


def _hash(lines: Iterable[str]) -> str:
    # A file's name may hold bytes that are no text, which Python keeps as halves of letters.
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def counts(found: Iterable[Found]) -> dict[str, Any]:
    """What became of the images: those with an entry, their boxes, fallbacks and faults."""
    answers = list(found)
    good = [answer for answer in answers if not answer.fault]
    fallbacks = Counter(answer.fallback for answer in good)
    faults = Counter(answer.fault for answer in answers)
    return {
        "images": len(good),
        "boxes": sum(len(answer.boxes) for answer in good),
        "images_without_boxes": sum(not len(answer.boxes) for answer in good),
        "fallback": {step: fallbacks[step] for step in FALLBACKS},
        "dropped": sum(answer.dropped for answer in good),
        **{fault: faults[fault] for fault in FAULTS},
    }


def write_proposals(
    file: Path, listed: Sequence[ListedImage], found: Mapping[int, Found], head: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the boxes of all images, in the order of `listed`, so that a reader never sees half a file.

    found: the answer for each image id; those with a fault get no entry but are named in `info`. head: what the boxes
    depend on, kept in `info`, which is returned. Raises: UserError when the disk is full.
    """
    good = [image for image in listed if not found[image.image_id].fault]
    entries = [_entry(image, found[image.image_id]) for image in good]
    skipped: dict[str, list[str]] = {fault: [] for fault in FAULTS}
    for image in listed:
        if fault := found[image.image_id].fault:
            skipped[fault].append(image.name)
    info = {
        "description": "boxes of unknown objects, by selfdet proposals",
        "fingerprint": fingerprint((entry["file_name"], entry["width"], entry["height"]) for entry in entries),
        **head,
        "counts": counts(found[image.image_id] for image in listed),
        "skipped": skipped,
    }
    rows = (row for image in good for row in _annotations(found[image.image_id]))
    _write(file, info, entries, ({"id": number, **row} for number, row in enumerate(rows, start=1)))
    return info


def write_clusters(file: Path, coco: Mapping[str, Any], numbers: Mapping[int, int], about: Clusters) -> None:
    """Write proposals, parsed as `coco`, with the cluster of each box: `numbers` by annotation id, −1 for none.

    Raises: UserError when the disk is full.
    """
    rows = ({**row, "cluster": numbers.get(row["id"], NO_CLUSTER)} for row in coco["annotations"])
    _write(file, {**coco["info"], "clusters": asdict(about)}, coco["images"], rows)


def _write(
    file: Path, info: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Piece by piece: as one text the boxes of a large folder would need more memory than finding them."""
    with replacing(file) as out:
        out.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps([CATEGORY])},\n"images": ['.encode())
        out.write(",\n".join(map(json.dumps, entries)).encode())
        out.write(b'],\n"annotations": [')
        for number, row in enumerate(rows):
            out.write(((",\n" if number else "") + json.dumps(row)).encode())
        out.write(b"]}\n")


def _entry(image: ListedImage, found: Found) -> dict[str, Any]:
    """An image of COCO, with the step of the ladder that gave its boxes where there was one."""
    entry = {"id": image.image_id, "file_name": image.name, "width": found.width, "height": found.height}
    return {**entry, "fallback": found.fallback} if found.fallback else entry


def _annotations(found: Found) -> Iterable[dict[str, Any]]:
    """COCO annotations of one image: bbox xywh in pixels, rank 1 for the first box, score where it had one."""
    for rank, (left, top, right, bottom) in enumerate(found.boxes.astype(float).tolist(), start=1):
        left, top = round(left, DECIMALS), round(top, DECIMALS)
        width, height = round(right - left, DECIMALS), round(bottom - top, DECIMALS)
        row = {
            "image_id": found.image_id,
            "category_id": CATEGORY["id"],
            "bbox": [left, top, width, height],
            "area": round(width * height, DECIMALS),
            "iscrowd": 0,
            "rank": rank,
        }
        yield row if found.scores is None else {**row, "score": float(found.scores[rank - 1])}


def read_info(file: str | Path, coco: Mapping[str, Any]) -> dict[str, Any]:
    """The `info` of a file of proposals, parsed as `coco`: fingerprint, settings, counts and the images skipped.

    Raises: UserError for a file that selfdet proposals did not write or that has been changed since.
    """
    info: Any = coco.get("info")
    if not isinstance(info, dict) or not {"fingerprint", "skipped", "counts"} <= info.keys() or not _is_whole(info):
        raise UserError(
            f"{file} is not a file of selfdet proposals: its info has no fingerprint",
            f"Give it as --boxes: selfdet proposals --images … --boxes {file} --out …",
        )
    images = ((entry.get("file_name"), entry.get("width"), entry.get("height")) for entry in coco["images"])
    if fingerprint(images) != info["fingerprint"]:
        raise UserError(f"{file}: its list of images is not the one that its boxes were found in", AGAIN)
    return dict(info)


def _is_whole(info: Mapping[str, Any]) -> bool:
    """Whether counts are numbers, and images skipped are names."""
    skipped, known = info["skipped"], info["counts"]
    if not isinstance(skipped, dict) or not isinstance(known, dict):
        return False
    fallback = known.get("fallback", {})
    if not isinstance(fallback, dict) or not {"images", "boxes", "images_without_boxes", "dropped"} <= known.keys():
        return False
    return all(
        isinstance(each, list) and all(isinstance(name, str) for name in each) for each in skipped.values()
    ) and all(isinstance(each, dict) or is_integer(each) for each in (*known.values(), *fallback.values()))


def read_found(coco: Mapping[str, Any]) -> dict[int, Found]:
    """The answers in a file of proposals, by image id, without those that had a fault."""
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in coco["annotations"]:
        rows[row["image_id"]].append(row)
    found = {}
    for entry in coco["images"]:
        own = rows[entry["id"]]
        boxes = np.array([row["bbox"] for row in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([row["score"] for row in own], np.float32) if own and "score" in own[0] else None
        size = (entry["width"], entry["height"])
        found[entry["id"]] = Found(entry["id"], *size, boxes, scores, entry.get("fallback", ""))
    return found


def read_proposals(file: str | Path, images: str | Path) -> list[ImageRecord]:
    """The proposals for `images` (folder, glob, text list or COCO JSON): a record an image, in the order of the file.

    Boxes are (N, 4) float32 xyxy pixels of the original image, clipped to it, first those of the highest priority;
    labels are all 0. An image that no boxes could be found for, as its file or the time limit would not let it, has no
    record.

    Raises: UserError when the file is missing, not one of selfdet proposals or without any box; when it has boxes of
    images that are absent, or lacks images that are there; when sizes differ, so that it is about other images.
    """
    labels = load_labels(file, images)
    info = read_info(file, labels.coco)
    known = {os.path.abspath(record.path) for record in labels.records}
    missing = [image.name for image in numbered_images(images) if os.path.abspath(image.path) not in known]
    skipped: dict[str, list[str]] = defaultdict(list)
    for name in (name for names in info["skipped"].values() for name in names):
        skipped[Path(name).name].append(name)
    missing = [name for name in missing if not any(_same_file(name, other) for other in skipped[Path(name).name])]
    if missing:
        raise UserError(
            f"{file} knows nothing of {len(missing)} of the images in {images}: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
            AGAIN,
        )
    for record in labels.records[:: max(1, len(labels) // COMPARED)]:
        try:
            read_size(record.path, (record.width, record.height))
        except UnreadableImage as error:
            raise UserError(f"{file} was made for other images: {error}", AGAIN) from None
    if not sum(len(record.boxes) for record in labels.records):
        raise UserError(f"{file} holds no boxes", "Relax the filters, for example with a smaller --min-side")
    return labels.records


def _same_file(name: str, other: str) -> bool:
    """Whether two names below different folders may be of one file."""
    return name == other or name.endswith(f"/{other}") or other.endswith(f"/{name}")
