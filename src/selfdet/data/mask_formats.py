"""Where data sets keep their masks: Pascal VOC, Cityscapes, and plain folders of PNGs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.data.class_maps import IGNORED, MOST
from selfdet.data.image_names import IMAGE_SUFFIXES
from selfdet.data.images import list_images
from selfdet.data.untrusted import parse_json, parse_yaml
from selfdet.data.voc import listed_names
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
    `lookup`: name of a way to read numbers, see `LOOKUPS`; `unmasked`: images without a mask, where each should have
    one (of Pascal VOC few have).
    """

    pairs: list[tuple[Path, Path]]
    classes: list[str] | None
    lookup: str | None = None
    unmasked: tuple[Path, ...] = ()


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
    Raises: UserError for what is none of these, a mask without its image or two of one, and names that can't be read.
    """
    if path.suffix == ".txt" and path.is_file() and path.parent.parent.name == "ImageSets":
        names = listed_names(path)
        if not names:
            raise UserError(f"{path} names no image", "Write one name a line")
        return _voc(path.parents[2], names, images)
    if not path.is_dir():
        raise UserError(
            f"--data {path} {'holds no masks' if path.exists() else 'does not exist'}",
            "Give a COCO JSON, a list in ImageSets/Segmentation, or a folder of PNG masks",
        )
    if (path / "SegmentationClass").is_dir():
        return _voc(path, [file.stem for file in _files(path / "SegmentationClass", "*.png")], images)
    own = path / "gtFine" if (path / "gtFine").is_dir() else path
    if any(own.rglob("*_gtFine_label*Ids.png")):
        return _cityscapes(own, images)
    return _plain(path, images)


def _voc(root: Path, names: Iterable[str], images: str | Path | None) -> MaskFiles:
    known = _by_name(list_images(root / "JPEGImages" if images is None else images))
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    absent = next((mask for mask in masks if not mask.is_file()), None)
    if absent is not None:
        raise UserError(f"{absent} does not exist", "Correct the list in ImageSets/Segmentation")
    return MaskFiles(_paired(masks, [mask.stem for mask in masks], known, root), _names(root) or VOC_CLASSES)


def _cityscapes(folder: Path, images: str | Path | None) -> MaskFiles:
    files = _files(folder, "*_gtFine_label*Ids.png")
    masks, ready = (
        {file.name.removesuffix(ending): file for file in files if file.name.endswith(ending)}
        for ending in (LABEL_IDS, TRAIN_IDS)
    )
    # Both kinds say the same. One that lies beside some of the images only, left there by an interrupted conversion,
    # would hide the others.
    every = masks.keys() | ready.keys()
    chosen = next((kind for kind in (ready, masks) if kind.keys() == every), None)
    if chosen is None:
        raise UserError(
            f"{folder} has labelTrainIds of some images and labelIds of others; {min(every - ready.keys())} has no "
            "labelTrainIds",
            "Make one of the two for all",
        )
    own = Path(*("leftImg8bit" if part == "gtFine" else part for part in folder.absolute().parts))
    known = _by_name(list_images(own if images is None else images))
    stems = [f"{name}_leftImg8bit" for name in chosen]
    return MaskFiles(
        _paired(list(chosen.values()), stems, known, folder),
        list(CITYSCAPES.values()),
        None if chosen is ready else "cityscapes",
        _unmasked(known, stems),
    )


def _plain(folder: Path, images: str | Path | None) -> MaskFiles:
    masks = _files(folder, "*")
    beside = folder.parent / "images"
    if images is None and beside.is_dir() and beside.resolve() != folder.resolve():
        images = beside
    if images is None:
        known = _by_name(_files(folder, "*", IMAGE_SUFFIXES - {".png"}))
    else:
        known = _by_name(list_images(images))
    stems = [mask.stem for mask in masks]
    pairs = _paired(masks, stems, known, folder)
    return MaskFiles(pairs, _names(folder) or _names(folder.parent), unmasked=_unmasked(known, stems))


def _files(folder: Path, pattern: str, suffixes: Collection[str] = (".png",)) -> list[Path]:
    """Files in order, without what has a hidden name on its way, such as what macOS lays beside each file."""
    found = (file for file in folder.rglob(pattern) if file.suffix.lower() in suffixes)
    return sorted(
        file
        for file in found
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and not file.is_dir()
    )


def _by_name(images: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in images:
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} have one name, so a mask fits both", "Rename one of them")
        found[path.stem] = path
    return found


def _paired(masks: Sequence[Path], stems: Sequence[str], known: dict[str, Path], root: Path) -> list[tuple[Path, Path]]:
    if not masks:
        raise UserError(f"no PNG mask in {root}", "A mask has its image's name and the suffix .png")
    missing = [(mask, stem) for mask, stem in zip(masks, stems) if stem not in known]
    if missing:
        (mask, stem), more = missing[0], len(missing) - 1
        named = "that name" if mask.stem == stem else f"the name {stem}"
        raise UserError(
            f"{mask} has no image of {named}" if not more else f"{mask} and {more} more have no image of {named}",
            "Name the folder of the images with --images",
        )
    taken: dict[str, Path] = {}
    for mask, stem in zip(masks, stems):
        if stem in taken:
            raise UserError(f"{taken[stem]} and {mask} are both masks of {known[stem]}", "Keep one of them")
        taken[stem] = mask
        if known[stem].name == mask.name and os.path.realpath(known[stem]) == os.path.realpath(mask):
            raise UserError(f"{mask} is its own image", "Name the folder of the photographs with --images")
    return [(known[stem], mask) for mask, stem in zip(masks, stems)]


def _unmasked(known: dict[str, Path], stems: Sequence[str]) -> tuple[Path, ...]:
    masked = set(stems)
    return tuple(path for stem, path in known.items() if stem not in masked)


def _names(folder: Path) -> list[str] | None:
    """The names in a folder's classes.json or classes.yaml: a list, or names by their numbers from 0 on."""
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        content: Any = (parse_json if file.suffix == ".json" else parse_yaml)(file.read_bytes())
    except (OSError, ValueError) as error:
        why = (error.strerror or type(error).__name__) if isinstance(error, OSError) else error
        raise UserError(f"{file} cannot be read: {why}", "Write a list of names, the first for 0") from None
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
