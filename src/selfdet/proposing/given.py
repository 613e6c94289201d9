"""Boxes that somebody else found, for the same filters: COCO JSON, or a list of COCO results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.data.coco import file_names, read_coco, require_unique_ids
from selfdet.data.listing import ListedImage
from selfdet.data.memory import read_labels
from selfdet.data.untrusted import expanded, is_integer, parse_json, to_float
from selfdet.errors import UserError
from selfdet.proposing.finding import GivenBoxes


def read_given(file: str | Path, listed: Sequence[ListedImage]) -> dict[int, GivenBoxes]:
    """The boxes of a file for each listed image, by image id; classes play no part.

    COCO JSON: images are matched by name, crowds left out. COCO results: by id, which is that of a COCO JSON given as
    --images and else the position, 1, 2, 3, …, as `predict` counts too. Best scored first; without scores on all of
    an image's boxes, in the order of the file. Boxes are as written: neither clipped nor checked against the image.

    Raises: UserError when the file is missing, is neither of the two, or names images that are not listed.
    """
    path = expanded(file)
    if not path.is_file():
        raise UserError(f"--boxes {file} {'is a folder' if path.is_dir() else 'does not exist'}", _FORMS)
    if path.read_bytes()[:64].lstrip()[:1] == b"[":
        rows, ids = _results(path), {image.image_id: image.image_id for image in listed}
        names: dict[Any, str] = {}
    else:
        coco = read_coco(path, ("images", "annotations"))
        require_unique_ids(coco, "images", path)
        rows = [row for row in coco["annotations"] if not row.get("iscrowd")]
        names = dict(zip((entry["id"] for entry in coco["images"]), file_names(coco, path)))
        ids = _match(names, listed)
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    strangers: dict[Any, None] = {}
    for position, row in enumerate(rows):
        image_id = row.get("image_id")
        if not is_integer(image_id):
            raise UserError(f'--boxes {file}: box number {position} has no "image_id"', _FORMS)
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or None in map(to_float, box):
            raise UserError(f'--boxes {file}: box number {position} has no "bbox" of four numbers', _FORMS)
        if image_id in ids:
            of_image[ids[image_id]].append(row)
        else:
            strangers[image_id] = None
    if strangers:
        first = ", ".join(names.get(image_id, f"id {image_id}") for image_id in list(strangers)[:3])
        raise UserError(
            f"--boxes {file} has boxes for {len(strangers)} images that are not in --images: "
            f"{first}{', …' if len(strangers) > 3 else ''}",
            "Give the images that the boxes were made for",
        )
    return {image.image_id: _given(of_image[image.image_id]) for image in listed}


_FORMS = "Give COCO JSON, or a list of COCO results: image_id, bbox [x, y, width, height] in pixels, score"


def _results(path: Path) -> list[dict[str, Any]]:
    try:
        rows = parse_json(read_labels(path))
    except ValueError as error:
        raise UserError(f"--boxes {path} is not JSON: {error}", _FORMS) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"--boxes {path} is a list, but not of COCO results", _FORMS)
    return list(rows)


def _match(names: dict[int, str], listed: Iterable[ListedImage]) -> dict[int, int]:
    """The ids of a COCO JSON → the listed images' own, where a name is the end of exactly one listed path."""
    of_name: dict[str, list[ListedImage]] = defaultdict(list)
    for image in listed:
        of_name[image.path.name].append(image)
    matched = {}
    for number, name in names.items():
        near = [image for image in of_name[Path(name).name] if f"/{image.path.as_posix()}".endswith(f"/{name}")]
        if len(near) == 1:
            matched[number] = near[0].image_id
    return matched


def _given(rows: list[dict[str, Any]]) -> GivenBoxes:
    with np.errstate(over="ignore", invalid="ignore"):  # what is no place is left out by the filters, and counted
        boxes = np.array([list(map(to_float, row["bbox"])) for row in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.astype(np.float32)
        given = [to_float(row.get("score")) for row in rows]
        if not rows or None in given:
            return GivenBoxes(boxes)
        scores = np.array(given, np.float32)
    order = np.argsort(-scores, kind="stable")
    return GivenBoxes(boxes[order], scores[order])
