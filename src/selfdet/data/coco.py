"""COCO JSON files: parsed, and their `file_name`s turned into paths that exist and stay inside the images' folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfdet.data.memory import read_labels
from selfdet.data.shards import member_exists
from selfdet.data.untrusted import expanded, is_integer, is_name, parse_json
from selfdet.errors import UserError, shown


def read_coco(file: str | Path, keys: Sequence[str] = ("images",)) -> dict[str, Any]:
    """Parse a COCO JSON file and make sure that each of `keys` is a list of objects.

    Raises: UserError when the file is missing, is not JSON, is not COCO, or is too large for the memory that is free.
    """
    path = expanded(file)
    if not path.is_file():
        raise UserError(
            f"label file {path} {'is a folder' if path.is_dir() else 'does not exist'}",
            "Give a COCO JSON, a Pascal VOC folder or list, or YOLO's data.yaml",
        )
    try:
        coco = parse_json(read_labels(path))
    except OSError as error:
        raise UserError(f"label file {path} cannot be read: {error.strerror}", "Check its permissions") from None
    except ValueError as error:
        raise UserError(f"label file {path} is not JSON: {error}", "Labels are read from COCO JSON") from None
    for key in keys:
        value = coco.get(key) if isinstance(coco, dict) else None
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise UserError(
                f'label file {path} is not COCO: it has no list "{key}"',
                'COCO JSON is an object with the lists "images", "annotations" and "categories"',
            )
    return coco


def require_unique_ids(coco: dict[str, Any], key: str, file: str | Path) -> None:
    """Make sure that every entry of the list `key` has a whole number `id` and that none repeats.

    Raises: UserError naming the file and the first offending id.
    """
    ids = [entry.get("id") for entry in coco[key]]
    for position, value in enumerate(ids):
        if not is_integer(value):
            raise UserError(
                f'label file {file}: "{key}" number {position} has the id {shown(value)}, not a whole number of 64 bits'
            )
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f'label file {file}: {len(repeated)} ids repeat in "{key}", the first of them {repeated[0]}',
            "Each id may stand once; renumber them where files were joined",
        )


def image_files(
    coco: dict[str, Any], file: str | Path, root: Path | None = None, absent_too: bool = False
) -> list[Path]:
    """The files of `coco["images"]` in order, under `root` or else the JSON's own folder or `images/` beside it.

    Raises: UserError when a name leaves that folder or, unless `absent_too`, is absent from it.
    """
    names = file_names(coco, file)
    folder = expanded(file).parent
    best: tuple[Path, list[Path], list[Path]] | None = None
    for candidate in [root] if root is not None else [folder, folder / "images"]:
        paths = [_inside(candidate, name, file) for name in names]
        missing = missing_files(paths)
        if not missing:
            return paths
        if best is None or len(missing) < len(best[1]):
            best = candidate, missing, paths
    assert best is not None
    if absent_too:
        return best[2]
    raise absent(file, [os.path.relpath(path, best[0]) for path in best[1]], len(names), str(best[0]))


def file_names(coco: dict[str, Any], file: str | Path) -> list[str]:
    """The `file_name` of each image.

    Raises: UserError where there is none, it climbs out with `..`, or no file can have it.
    """
    names = []
    for position, entry in enumerate(coco["images"]):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f'label file {file} is not COCO: "images" number {position} has no "file_name"')
        if not is_name(name):
            raise UserError(f"label file {file} names the image {name}, as no file can be called", "Correct the file")
        if ".." in re.split(r"[\\/]", name):
            raise UserError(
                f"label file {file} names the image {name}, which leaves the images' folder",
                'File names are relative to --images and may not contain ".."',
            )
        names.append(name)
    return names


def absent(file: str | Path, names: Sequence[str], total: int, where: str) -> UserError:
    """The error for images that `file` names and that are not where they should be."""
    return UserError(
        f"{len(names)} of the {total} images in {file} are not in {where}: "
        f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}",
        "Give the folder that the file names are relative to as --images",
    )


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that do not exist. Folders are listed once: asking for 100,000 files one by one is slow."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in listed:
            try:
                with os.scandir(parent or ".") as entries:
                    listed[parent] = {entry.name for entry in entries}
            except (OSError, ValueError):
                listed[parent] = set()
        # Images in shards have no folder to list.
        # The second question is for file systems that take "A.JPG" and "a.jpg" for the same file.
        # Not Path.exists, which raises for names that are too long.
        if name not in listed[parent] and not os.path.exists(path) and not member_exists(path):
            missing.append(path)
    return missing


def _inside(root: Path, name: str, file: str | Path) -> Path:
    if not (name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) or os.path.splitdrive(name)[0]):
        return root / name
    if Path(name).is_absolute() and Path(os.path.abspath(name)).is_relative_to(os.path.abspath(root)):
        return Path(name)
    raise UserError(
        f"label file {file} names the image {name}, which is outside {root}",
        "File names are relative to the folder given as --images",
    )
