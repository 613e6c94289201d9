"""Labels written in another format: COCO JSON, Pascal VOC or YOLO; what a format has no word for is counted."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from selfdet.data.images import UnreadableImage, read_size
from selfdet.data.labels import Labels
from selfdet.data.masks import has_segmentation

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One object to write: class name, xywh in pixels within the image, whether it is a crowd or difficult."""

    kind: str
    box: Box
    crowd: bool
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """One image to write, with the size in pixels that its labels go by; None where nothing tells it."""

    entry: Mapping[str, Any]
    path: Path
    size: tuple[int, int] | None
    items: list[Item] = field(default_factory=list)


def write_coco(splits: Mapping[str, Labels], out: Path) -> Counter[str]:
    """Write `out/SPLIT.json` for each; images stay where they are, and names stay relative to their folder.

    Returns counts of what was not written, by reason; likewise the other two.
    """
    lost: Counter[str] = Counter()
    for split, labels in splits.items():
        images, annotations = [], []
        ids = dict(zip(labels.classes, labels.category_ids))
        for page in _pages(labels, lost):
            size = {} if page.size is None else dict(zip(("width", "height"), page.size))
            images.append({**page.entry, **size})
            for item in page.items:
                entry = {key: value for key, value in item.entry.items() if key != "where"}
                about = {"bbox": list(item.box), "category_id": ids[item.kind], "iscrowd": int(item.crowd)}
                annotations.append({**entry, **about})
        categories = sorted(labels.coco["categories"], key=lambda each: each["id"])
        content = {"images": images, "annotations": annotations, "categories": categories}
        (out / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return lost


def write_voc(splits: Mapping[str, Labels], out: Path) -> Counter[str]:
    """Write `Annotations/`, `ImageSets/Main/SPLIT.txt` and `JPEGImages/` with links to the images.

    Corners count from 1 and keep their fractions; crowds are `difficult`.
    """
    lost: Counter[str] = Counter()
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (out / folder).mkdir(parents=True)
    taken: set[str] = set()
    for split, labels in splits.items():
        stems = []
        for page in _pages(labels, lost):
            stem = _free("_".join(Path(_name(page)).with_suffix("").parts), taken)
            stems.append(stem)
            file = f"{stem}{page.path.suffix}"
            _link(page.path, out / "JPEGImages" / file)
            tree = ElementTree.Element("annotation")
            _text(tree, filename=file)
            if page.size is not None:
                _text(ElementTree.SubElement(tree, "size"), width=page.size[0], height=page.size[1], depth=3)
            for item in page.items:
                lost["masks (VOC's boxes have none)"] += has_segmentation(item.entry.get("segmentation"))
                one = ElementTree.SubElement(tree, "object")
                _text(one, name=item.kind, difficult=int(item.crowd))
                x, y, w, h = item.box
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                _text(ElementTree.SubElement(one, "bndbox"), **{key: f"{value:.10g}" for key, value in corners.items()})
            ElementTree.indent(tree)
            ElementTree.ElementTree(tree).write(out / "Annotations" / f"{stem}.xml", encoding="utf-8")
        (out / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    seen = {each.entry["category_id"] for labels in splits.values() for page in _pages(labels) for each in page.items}
    first = next(iter(splits.values()))
    lost["classes without a box (VOC names them with their boxes alone)"] += len(set(first.category_ids) - seen)
    return lost


def write_yolo(splits: Mapping[str, Labels], out: Path) -> Counter[str]:
    """Write `data.yaml`, `labels/SPLIT/` and `images/SPLIT/` with links to the images."""
    lost: Counter[str] = Counter()
    classes = list(dict.fromkeys(kind for labels in splits.values() for kind in labels.classes))
    for split, labels in splits.items():
        taken: set[str] = set()
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
        for page in _pages(labels, lost):
            try:
                width, height = read_size(page.path)
            except UnreadableImage:
                lost["images that can't be read, whose boxes have no shares of a size"] += 1
                continue
            if page.size not in (None, (width, height)):
                lost["images whose labels go by another size, or by the picture before its EXIF turn"] += 1
                continue
            stem = _free(Path(_name(page)).with_suffix("").as_posix(), taken)
            _link(page.path, out / "images" / split / f"{stem}{page.path.suffix}")
            rows = []
            for item in page.items:
                if item.crowd:
                    lost["crowds and difficult objects (YOLO has no word for them)"] += 1
                    continue
                lost["masks (boxes are written)"] += has_segmentation(item.entry.get("segmentation"))
                x, y, w, h = item.box
                shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                rows.append(" ".join([str(classes.index(item.kind)), *(f"{share:.10g}" for share in shares)]) + "\n")
            file = out / "labels" / split / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(rows), encoding="utf-8")
    about = {"path": os.path.abspath(out), **{split: f"images/{split}" for split in splits}}
    content = {**about, "names": dict(enumerate(classes))}
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return lost


def _pages(labels: Labels, lost: Counter[str] | None = None) -> Iterable[Page]:
    """The images with those of their boxes that are sound, cut off at the edges; `lost` counts the rest."""
    lost = Counter() if lost is None else lost
    names = dict(zip(labels.category_ids, labels.classes))
    rows: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in labels.coco["annotations"]:
        rows[entry["image_id"]].append(entry)
    for image, record in zip(labels.coco["images"], labels.records):
        page = Page(image, record.path, (record.width, record.height) if record.width and record.height else None)
        for entry in rows[image["id"]]:
            box = _inside(entry["bbox"], page.size)
            if box is None:
                lost["boxes without area, or outside of their image"] += 1
            else:
                page.items.append(Item(names[entry["category_id"]], box, bool(entry["iscrowd"]), entry))
        yield page


def _inside(box: Sequence[float], size: tuple[int, int] | None) -> Box | None:
    x, y, w, h = box
    if not all(map(math.isfinite, box)) or w <= 0 or h <= 0:
        return None
    if size is None or (x >= 0 and y >= 0 and x + w <= size[0] and y + h <= size[1]):
        return x, y, w, h  # as it is, to the last digit
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, size[0]), min(y + h, size[1])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _name(page: Page) -> str:
    """The image's name below its folder."""
    name = Path(str(page.entry["file_name"]))
    return name.name if name.is_absolute() else name.as_posix()


def _free(stem: str, taken: set[str]) -> str:
    """The name, or with a number behind it if another image has it."""
    free, number = stem, 1
    while free in taken:
        number += 1
        free = f"{stem}_{number}"
    taken.add(free)
    return free


def _link(source: Path, target: Path) -> None:
    """A link to the image; a copy where the system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copy(source, target)


def _text(parent: ElementTree.Element, **children: Any) -> None:
    for name, value in children.items():
        ElementTree.SubElement(parent, name).text = str(value)
