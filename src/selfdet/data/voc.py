"""Pascal VOC labels as COCO: an XML file an image, a text list a split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from selfdet.data.untrusted import parse_xml, read_lines
from selfdet.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(path: Path) -> bool:
    """Whether a path is VOC's: a data set's folder, its folder `Annotations`, or a list in `ImageSets/Main`."""
    return _annotations(path) is not None


def read_voc(path: Path, strict: bool = True) -> tuple[dict[str, Any], Path, list[Path]]:
    """The labels of a VOC data set, or of the split that a list in `ImageSets/Main` names, as parsed COCO JSON.

    Returns it with the folder of the images, `JPEGImages` beside `Annotations`, and the files that were read.

    Classes are the names in all of the data set's files, sorted, and image ids count all of its files, so both are the
    same for each split. Boxes get VOC's convention undone: corners count pixels from 1 and belong to the box.
    Difficult objects become crowds: they train nothing, and finding them is neither right nor wrong.

    Raises: UserError for a split that names no image, an image without its XML, XML that can't be read or has a box
        without four numbers. Where not `strict`, for the first alone: images without labels then have no objects, such
        a box has no numbers, and the class 0 is that of objects without a name.
    """
    folder = _annotations(path)
    assert folder is not None
    files = {file.stem: file for file in sorted(folder.glob("*.xml"))}
    wanted = list(files) if path.is_dir() else listed_names(path)
    absent = [name for name in wanted if name not in files]
    if absent and strict:
        raise UserError(f"{path} names {absent[0]}, and {folder} has no {absent[0]}.xml", "Correct the list")
    wanted = [name for name in wanted if name in files]
    if not wanted:
        raise UserError(f"{path} names no image with labels", f"Labels are XML files in {folder}")
    trees = {name: _tree(file, strict) for name, file in files.items()}
    objects = {name: list(_objects(tree, files[name], strict)) for name, tree in trees.items()}
    classes = sorted({kind for entries in objects.values() for kind, _, _ in entries if kind})
    if not classes:
        raise UserError(f"no object is labelled in {folder}", "Labels need at least one class")
    kinds = {"": 0, **{kind: number for number, kind in enumerate(classes, start=1)}}
    numbers = {name: number for number, name in enumerate(files, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in wanted:
        tree = trees[name]
        images.append({"id": numbers[name], "file_name": _image_name(tree, name), **_size(tree)})
        for kind, box, difficult in objects[name]:
            about = {"id": len(annotations) + 1, "image_id": numbers[name], "category_id": kinds[kind]}
            annotations.append({**about, "bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    return coco, folder.parent / "JPEGImages", [*([] if path.is_dir() else [path]), *files.values()]


def listed_names(file: Path) -> list[str]:
    """The images of a list in ImageSets, each once: a name a line; of a class's list only those that have the class (1)
    or are in doubt (0).

    Raises: UserError for what is no text.
    """
    try:
        lines = [line.split() for line in read_lines(file)]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no list of images: {_why(error)}", "Write one name a line") from None
    return list(dict.fromkeys(words[0] for words in lines if words and words[1:] != ["-1"]))


def _annotations(path: Path) -> Path | None:
    """The folder of XML files that a path leads to."""
    if path.is_dir():
        candidates = [path, path / "Annotations"]
        return next((each for each in candidates if any(each.glob("*.xml"))), None)
    if path.suffix == ".txt" and path.parent.parent.name == "ImageSets":
        folder = path.parents[2] / "Annotations"
        return folder if folder.is_dir() else None
    return None


def _tree(file: Path, strict: bool) -> Element:
    try:
        return parse_xml(file.read_bytes())
    except (OSError, ValueError) as error:
        if not strict:
            return Element("annotation")
        raise UserError(f"label file {file} is not XML: {_why(error)}", "Correct or remove it") from None


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _image_name(tree: Element, name: str) -> str:
    """What the XML calls its image, if that is the XML's own name; else the XML's name."""
    said = (tree.findtext("filename") or "").strip()
    return said if Path(said).stem == name and Path(said).name == said else f"{name}{Path(said).suffix or '.jpg'}"


def _size(tree: Element) -> dict[str, int]:
    sides = {side: (tree.findtext(f"size/{side}") or "").strip() for side in ("width", "height")}
    return {side: int(text) for side, text in sides.items() if text.isdecimal() and len(text) < 10}


def _objects(tree: Element, file: Path, strict: bool) -> Iterator[tuple[str, list[float], bool]]:
    """The class, box (x, y, width, height in pixels) and difficulty of each object."""
    for entry in tree.iter("object"):
        name = (entry.findtext("name") or "").strip()
        if not name and strict:
            raise UserError(f"label file {file} has an object without a name", "Correct the file")
        try:
            left, top, right, bottom = (float(entry.findtext(f"bndbox/{corner}") or "") for corner in CORNERS)
        except ValueError:
            left = top = right = bottom = math.nan
        if math.isnan(left) and strict:
            raise UserError(
                f"label file {file} has a {name} without four numbers in bndbox", f"Write {', '.join(CORNERS)}"
            )
        difficult = (entry.findtext("difficult") or "0").strip() == "1"
        yield name, [left - 1, top - 1, right - left + 1, bottom - top + 1], difficult
