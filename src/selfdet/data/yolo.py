"""YOLO labels as COCO: a `data.yaml` with classes and splits, a text file of relative boxes an image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfdet.data.images import UnreadableImage, list_images, read_size
from selfdet.data.untrusted import expanded, is_name, parse_yaml, read_lines
from selfdet.errors import UserError

SPLITS = ("train", "val", "test")


def is_yolo(path: Path) -> bool:
    """Whether a path is YOLO's: `data.yaml`, or `data.yaml:val` for one of its splits."""
    return path.name.rpartition(":")[0].endswith((".yaml", ".yml")) or path.suffix in (".yaml", ".yml")


def read_yolo(path: Path, strict: bool = True) -> tuple[dict[str, Any], Path, list[Path]]:
    """The labels of one split of a YOLO data set as parsed COCO JSON.

    Returns it with the folder of the images and the files that were read. An image's labels are in the text file of
    its name where `images` is `labels` in its path; without one it has no objects. Rows of a class and four numbers
    are boxes (centre, width, height, as shares of the image), longer ones polygons. Image ids count the split's images.

    Raises: UserError for a file that is not YOLO's, a split that it has not got or that is left open, rows that are
        not numbers or name a class that is not there. Where not `strict`, rows are kept as they are: what is no number
        is NaN, and "where" tells file and line; so are images that are listed and absent.
    """
    file, split = _split(path)
    content = _content(file)
    names = _names(content, file)
    chosen = _chosen(content, split, file)
    # Unlike names in other label files its folders may be anywhere: the format puts data sets beside programs.
    root = expanded(file.parent / str(content.get("path") or ""))
    images = sorted({image for each in chosen for image in list_images(_found(root, file, each), not strict)})
    if len(chosen) > 1:  # of which some may be absolute, or above others
        images = sorted({Path(os.path.abspath(image)) for image in images})
    coco: dict[str, Any] = {"images": [], "annotations": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    folder = Path(os.path.commonpath([image.parent for image in images]))
    files = [file]
    for number, image in enumerate(images, start=1):
        about: dict[str, Any] = {"id": number, "file_name": image.relative_to(folder).as_posix()}
        coco["images"].append(about)
        labels = _labels_of(image)
        if not labels.is_file():
            continue
        files.append(labels)
        try:
            about["width"], about["height"] = width, height = read_size(image)
        except UnreadableImage:
            continue  # nothing can be said of its boxes; whoever reads it will say so
        for line, kind, box, polygon in _objects(labels, len(names) if strict else 0, width, height):
            entry = {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": kind, "bbox": box}
            entry |= {} if strict else {"where": f"{labels}, line {line}"}
            entry |= {"area": box[2] * box[3], "iscrowd": 0}
            coco["annotations"].append(entry | ({"segmentation": [polygon]} if polygon else {}))
    return coco, folder, files


def _split(path: Path) -> tuple[Path, str]:
    name, _, split = path.name.rpartition(":")
    return (path.with_name(name), split) if name.endswith((".yaml", ".yml")) else (path, "")


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"label file {file} does not exist", "Give YOLO's data.yaml")
    try:
        content = parse_yaml(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"label file {file} is not YAML: {error}", "Correct it") from None
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f'label file {file} is not YOLO\'s: it has no "names"', "It names the classes and the splits")
    return content


def _names(content: dict[str, Any], file: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f'label file {file}: "names" are no list of classes', "Write names: [cat, dog]")
    return [str(name) for name in names]


def _chosen(content: dict[str, Any], split: str, file: Path) -> list[str]:
    """The folders and lists of the split that is asked for, or of the only one."""
    known = [name for name in SPLITS if content.get(name)]
    if not split and len(known) != 1:
        has = ", ".join(known) or "no split"
        raise UserError(f"label file {file} has {has}", f"Say which, as in {file}:{known[0] if known else 'train'}")
    if split and split not in known:
        raise UserError(f"label file {file} has no split {split!r}", f"It has {', '.join(known) or 'none'}")
    value = content[split or known[0]]
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _found(root: Path, file: Path, name: str) -> Path:
    """A folder or list that a data.yaml names: under its `path`, or beside the file as some programs write it."""
    candidates = [root / name, file.parent / name.removeprefix("../")]
    found = next((each for each in candidates if is_name(name) and os.path.exists(each)), None)
    if found is None:
        raise UserError(f"label file {file}: {candidates[0]} does not exist", 'Correct "path" or the split in the file')
    return found


def _labels_of(image: Path) -> Path:
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _objects(file: Path, classes: int, width: int, height: int) -> Iterator[tuple[int, int, list[float], list[float]]]:
    """The line, class, box (x, y, width, height in pixels) and polygon (x, y, x, y … in pixels, or nothing) of each
    row; `classes` 0 takes rows as they are."""
    try:
        lines = read_lines(file)
    except (OSError, ValueError) as error:
        if classes:
            raise UserError(f"label file {file} cannot be read: {error}", "Correct or remove it") from None
        lines = []
    for line, row in enumerate(lines, start=1):
        if not row.strip():
            continue
        try:
            first, *numbers = (float(word) for word in row.split())
        except ValueError:
            first, numbers = -1.0, []
        if not classes and (not first.is_integer() or len(numbers) < 4 or len(numbers) % 2):
            word = row.split()[0]
            yield line, int(word) if word.isdecimal() and len(word) < 10 else -1, [math.nan] * 4, []
            continue
        polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
        if len(numbers) != 4 and not polygon:
            raise UserError(
                f"label file {file}, line {line}: expected a class and four numbers, or a polygon",
                "Rows are: class x-centre y-centre width height, as shares of the image",
            )
        if classes and first not in range(classes):
            raise UserError(f"label file {file}, line {line}: class {first:g} of {classes}", "Classes count from 0")
        if polygon:
            points = [value * side for value, side in zip(numbers, [width, height] * (len(numbers) // 2))]
            left, top = min(points[::2]), min(points[1::2])
            yield line, int(first), [left, top, max(points[::2]) - left, max(points[1::2]) - top], points
        else:
            x, y, w, h = numbers
            yield line, int(first), [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], []
