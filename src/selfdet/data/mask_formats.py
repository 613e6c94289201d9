"""Where data sets keep their masks: Pascal VOC, Cityscapes, and plain folders of PNGs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from selfdet.data.class_maps import IGNORED, MOST
from selfdet.data.image_names import IMAGE_SUFFIXES
from selfdet.data.images import list_images
from selfdet.errors import UserError

VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
# Cityscapes' 34 kinds of things by their labelIds; those that are evaluated have a trainId.
CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
CITYSCAPES_IDS = 34
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
NAMES = ("classes.json", "classes.yaml", "classes.yml")


@dataclass(frozen=True)
class MaskFiles:
    """What a data set's folder holds.

    `pairs`: image and mask, in order; `classes`: names in the order of their numbers, None where nobody names them;
    `lookup`: name of a way to read numbers, see `LOOKUPS`.
    """

    pairs: list[tuple[Path, Path]]
    classes: list[str] | None
    lookup: str | None = None


def city_lookup() -> np.ndarray:
    """(256,) Cityscapes' labelIds as the 19 classes that are evaluated, the others ignored; −1 for what is no id."""
    table = np.full(256, -1, np.int64)
    table[:CITYSCAPES_IDS] = IGNORED
    table[IGNORED] = IGNORED  # the licence plate, −1
    for place, number in enumerate(CITYSCAPES):
        table[number] = place
    return table


LOOKUPS = {"cityscapes": city_lookup}


def find_masks(path: Path, images: str | Path | None) -> MaskFiles:
    """The masks that `path` stands for, each with its image.

    A Pascal VOC folder, all of its masks, or a list in its ImageSets/Segmentation; Cityscapes' gtFine or a folder in
    it; any other folder of PNGs, whose images have the same names before the suffix and lie in `images`, else in
    `images/` beside the folder, else in the folder itself.
    Raises: UserError for what is none of these, a mask without its image and names that can't be read.
    """
    if path.suffix == ".txt" and path.is_file() and path.parent.parent.name == "ImageSets":
        return _voc(path.parents[2], path.read_text(encoding="utf-8").split(), images)
    if not path.is_dir():
        raise UserError(
            f"--data {path} {'holds no masks' if path.exists() else 'does not exist'}",
            "Give a COCO JSON, a list in ImageSets/Segmentation, or a folder of PNG masks",
        )
    if (path / "SegmentationClass").is_dir():
        return _voc(path, sorted(file.stem for file in (path / "SegmentationClass").glob("*.png")), images)
    if any(path.rglob("*_gtFine_label*Ids.png")):
        return _cityscapes(path, images)
    return _plain(path, images)


def _voc(root: Path, names: Iterable[str], images: str | Path | None) -> MaskFiles:
    known = _by_name(root / "JPEGImages" if images is None else images)
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    absent = next((mask for mask in masks if not mask.is_file()), None)
    if absent is not None:
        raise UserError(f"{absent} does not exist", "Correct the list in ImageSets/Segmentation")
    return MaskFiles(_paired(masks, [mask.stem for mask in masks], known, root), _names(root) or VOC_CLASSES)


def _cityscapes(folder: Path, images: str | Path | None) -> MaskFiles:
    masks = {file.name.removesuffix(LABEL_IDS): file for file in sorted(folder.rglob(f"*{LABEL_IDS}"))}
    ready = {file.name.removesuffix(TRAIN_IDS): file for file in sorted(folder.rglob(f"*{TRAIN_IDS}"))}
    lookup = None if ready else "cityscapes"
    masks = ready or masks
    own = Path(*("leftImg8bit" if part == "gtFine" else part for part in folder.absolute().parts))
    known = _by_name(own if images is None else images)
    stems = [f"{name}_leftImg8bit" for name in masks]
    return MaskFiles(_paired(list(masks.values()), stems, known, folder), list(CITYSCAPES.values()), lookup)


def _plain(folder: Path, images: str | Path | None) -> MaskFiles:
    masks = [file for file in sorted(folder.rglob("*.png")) if not file.name.startswith(".")]
    beside = folder.parent / "images"
    if images is None and beside.is_dir() and beside.resolve() != folder.resolve():
        images = beside
    if images is None:
        known = {
            file.stem: file
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES - {".png"} and not file.name.startswith(".")
        }
    else:
        known = _by_name(images)
    pairs = _paired(masks, [mask.stem for mask in masks], known, folder)
    return MaskFiles(pairs, _names(folder) or _names(folder.parent))


def _by_name(images: str | Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(images):
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} have one name, so a mask fits both", "Rename one of them")
        found[path.stem] = path
    return found


def _paired(masks: list[Path], stems: list[str], known: Mapping[str, Path], root: Path) -> list[tuple[Path, Path]]:
    if not masks:
        raise UserError(f"no PNG mask in {root}", "A mask has its image's name and the suffix .png")
    missing = [mask for mask, stem in zip(masks, stems) if stem not in known]
    if missing:
        more = f" and {len(missing) - 1} more have" if len(missing) > 1 else " has"
        raise UserError(f"{missing[0]}{more} no image of that name", "Name the folder of the images with --images")
    return [(known[stem], mask) for mask, stem in zip(masks, stems)]


def _names(folder: Path) -> list[str] | None:
    """The names in a folder's classes.json or classes.yaml: a list, or names by their numbers from 0 on."""
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
        content: Any = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "Write a list of names, the first for 0") from error
    if isinstance(content, dict):
        wanted = {str(number) for number in range(len(content))}
        if {str(key) for key in content} != wanted:
            raise UserError(f"{file} does not number its classes 0…{len(content) - 1}", "Give each number a name")
        content = [content[key] for key in sorted(content, key=int)]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise UserError(f"{file} is no list of names", "Write a list of names, the first for 0")
    if len(content) > MOST or len(set(content)) < len(content):
        raise UserError(f"{file} names {len(content)} classes, expected at most {MOST}, each once", "Correct the file")
    return content
