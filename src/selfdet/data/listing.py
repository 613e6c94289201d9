"""Images with the ids and names under which a file of boxes speaks of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdet.data.coco import file_names, image_files, read_coco, require_unique_ids
from selfdet.data.images import list_images
from selfdet.data.shards import ShardedImages
from selfdet.data.untrusted import expanded, is_side


@dataclass(frozen=True)
class ListedImage:
    """One image of those that `--images` stands for.

    image_id: that of the COCO JSON, else 1, 2, 3, … in order.
    name: its path below the folder, with forward slashes; of a glob or a list below the folder common to all; of an
        image in a shard `SHARD.tar/KEY.jpg`.
    size: (width, height) that the COCO JSON tells, pixels; None where nothing is told.
    """

    image_id: int
    path: Path
    name: str
    size: tuple[int, int] | None = None


def numbered_images(images: str | Path) -> list[ListedImage]:
    """The images that `images` (folder, glob, text list or COCO JSON) stands for, in order, each with id and name.

    The same images have the same ids and names again, also when the folder was moved as a whole.

    Raises: UserError as `list_images`, and for repeated ids in a COCO JSON.
    """
    file = expanded(images)
    if file.suffix.lower() == ".json" and file.is_file():
        coco = read_coco(file)
        require_unique_ids(coco, "images", file)
        told = [(entry.get("width"), entry.get("height")) for entry in coco["images"]]
        sizes = [(int(size[0]), int(size[1])) if all(map(is_side, size)) else None for size in told]
        ids = [entry["id"] for entry in coco["images"]]
        if ids:
            return list(map(ListedImage, ids, image_files(coco, file), file_names(coco, file), sizes))
    paths = list_images(images)
    named = enumerate(zip(paths, names_below(images, paths)), start=1)
    return [ListedImage(number, path, name) for number, (path, name) in named]


def names_below(images: str | Path, paths: Sequence[Path]) -> Iterator[str]:
    """The name of each of the `paths` that `list_images(images)` has given, as `ListedImage` has it."""
    if isinstance(paths, ShardedImages):
        return paths.names()
    folder = expanded(images)
    root = folder if folder.is_dir() else os.path.commonpath({os.path.abspath(path.parent) for path in paths})
    return (Path(os.path.relpath(path, root)).as_posix() for path in paths)
