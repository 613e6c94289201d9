"""What is wrong with labelled boxes, as found: nothing is refused."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.data.untrusted import to_float
from selfdet.errors import shown

# What can be wrong with a box, and what selfdet does with it.
BOX_FAULTS = {
    "not_finite": "no four numbers: left out of training and counted, or the labels are refused; mend the entry",
    "degenerate": "no area: left out of training and counted",
    "out_of_image": "leaves its image by more than a pixel: cut off at the edge, left out if nothing is inside",
    "unknown_class": "of a class that is not listed: the labels are refused; add the class or correct the entry",
    "duplicate_box": "drawn twice, same class and place: trains as two objects, one of which can't be found; remove it",
}
SAME = 0.5  # pixels by which the sides of a box drawn twice may differ
OUTSIDE = 1.0  # pixels that rounding, or counting from 1, explains


@dataclass(frozen=True)
class BoxFault:
    """One fault of one annotation; `file` is the image's, `box` xywh in its pixels where it can be drawn."""

    fault: str
    file: str
    annotation: Any
    detail: str
    box: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `--json` has it."""
        return {"file": self.file, "annotation": self.annotation, "detail": self.detail}


def box_faults(coco: Mapping[str, Any], paths: Sequence[Path], sizes: Mapping[int, tuple[int, int]]) -> list[BoxFault]:
    """The faults of all annotations of a parsed COCO JSON, in its order; those of a crowd too, but for its place.

    paths: of `coco["images"]`; sizes: image id → (width, height) in pixels, where known.
    """
    files = {image["id"]: str(path) for image, path in zip(coco["images"], paths)}
    names = {category["id"]: str(category.get("name")) for category in coco["categories"]}
    rows: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in coco["annotations"]:
        rows[entry.get("image_id")].append(entry)
    return [
        BoxFault(fault, files.get(number, ""), entry.get("id"), _with_place(detail, entry), four_numbers(entry))
        for number, entries in rows.items()
        for entry, fault, detail in _image_faults(entries, names, sizes.get(number))
    ]


def four_numbers(entry: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """The finite x, y, width, height of an annotation, pixels."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    x, y, w, h = map(to_float, box)
    if x is None or y is None or w is None or h is None or not all(map(math.isfinite, (x, y, w, h))):
        return None
    return x, y, w, h


def _with_place(detail: str, entry: Mapping[str, Any]) -> str:
    return f"{detail} ({entry['where']})" if "where" in entry else detail


def _image_faults(
    entries: Sequence[Mapping[str, Any]], names: Mapping[int, str], size: tuple[int, int] | None
) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    drawn: list[tuple[Mapping[str, Any], tuple[float, ...]]] = []
    for entry in entries:
        kind = entry.get("category_id")
        if kind not in names:
            yield entry, "unknown_class", f"class {shown(kind)} of {len(names)}"
        box = four_numbers(entry)
        if box is None:
            yield entry, "not_finite", f"bbox is {shown(entry.get('bbox'))}"
            continue
        if box[2] <= 0 or box[3] <= 0:
            yield entry, "degenerate", f"{box[2]:g}×{box[3]:g} px"
            continue
        if size is not None and (detail := _outside(box, *size)):
            yield entry, "out_of_image", detail
        if not entry.get("iscrowd"):
            drawn.append((entry, box))
    yield from _twice(drawn)


def _outside(box: tuple[float, ...], width: int, height: int) -> str:
    """How far a box is outside of its image, in words; nothing where it is hardly or not at all."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return f"wholly outside of {width}×{height} px"
    over = {"left": -left, "top": -top, "right": right - width, "bottom": bottom - height}
    beyond = [f"{pixels:.4g} px beyond the {side}" for side, pixels in over.items() if pixels > OUTSIDE]
    return f"{', '.join(beyond)} of {width}×{height} px" if beyond else ""


def _twice(
    drawn: Sequence[tuple[Mapping[str, Any], tuple[float, ...]]],
) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    if len(drawn) < 2:
        return
    boxes = np.array([box for _, box in drawn])
    sides = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    for place in range(1, len(drawn)):
        entry = drawn[place][0]
        near = np.flatnonzero((np.abs(sides[:place] - sides[place]) <= SAME).all(1)).tolist()
        same = [i for i in near if drawn[i][0].get("category_id") == entry.get("category_id")]
        if same:
            yield entry, "duplicate_box", f"as annotation {drawn[same[0]][0].get('id')}"
