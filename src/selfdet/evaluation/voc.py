"""Pascal VOC's average precision of boxes: one overlap, 11 points (2007) or the whole area (from 2010 on)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

POINTS = np.arange(11) / 10  # recalls of the 11-point AP


def voc_scores(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    iou: float = 0.5,
) -> dict[str, Any]:
    """VOC's AP of `results` against the labels in `coco`.

    `coco`: a label file's content; an annotation with `iscrowd` 1 is a difficult object: finding it is neither right
    nor wrong. `results`: COCO results (bbox [x, y, width, height] in pixels); `image_ids`: the images to evaluate
    (None: all); `iou`: from which overlap on a box is right. Each detection, the best scored first, is held against the
    object of its class that it overlaps most; a second detection of an object is wrong.

    Returns "AP07" (11 points) and "AP10" (area), means over the classes that have objects, in 0…1, None without any;
    and "per_class", name → both.

    Source: Everingham et al. 2010, The Pascal VOC Challenge, section 4.2; the area: development kit of 2010.
    """
    wanted = {image["id"] for image in coco["images"]} if image_ids is None else set(image_ids)
    objects: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in coco["annotations"]:
        if entry["image_id"] in wanted:
            objects[entry["category_id"], entry["image_id"]].append(entry)
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        if result["image_id"] in wanted:
            found[result["category_id"]].append(result)
    per_class: dict[str, dict[str, float | None]] = {}
    for category in sorted(coco["categories"], key=lambda category: category["id"]):
        own = {image: entries for (kind, image), entries in objects.items() if kind == category["id"]}
        curve = precision_recall(own, found[category["id"]], iou)
        both = (None, None) if curve is None else (eleven_points(*curve), area(*curve))
        per_class[category["name"]] = dict(zip(("AP07", "AP10"), both))
    means = {}
    for kind in ("AP07", "AP10"):
        known = [value for scores in per_class.values() if (value := scores[kind]) is not None]
        means[kind] = float(np.mean(known)) if known else None
    return {**means, "per_class": per_class}


def precision_recall(
    objects: Mapping[int, Sequence[Mapping[str, Any]]], found: Sequence[Mapping[str, Any]], iou: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Precision and recall (N,) after each of the N detections that count, the best scored first; None where no object
    is to be found. `objects`: image → annotations of one class; `found`: its detections."""
    total = sum(not entry.get("iscrowd", 0) for entries in objects.values() for entry in entries)
    if not total:
        return None
    boxes = {image: np.array([entry["bbox"] for entry in entries], float) for image, entries in objects.items()}
    taken = {image: np.zeros(len(entries), bool) for image, entries in objects.items()}
    right: list[bool] = []
    for result in sorted(found, key=lambda result: -result["score"]):
        image = result["image_id"]
        overlaps = _overlaps(np.array(result["bbox"], float), boxes[image]) if image in boxes else np.zeros(1)
        best = int(overlaps.argmax())
        if overlaps[best] < iou:
            right.append(False)
        elif not objects[image][best].get("iscrowd", 0):
            right.append(not taken[image][best])
            taken[image][best] = True
    hits = np.cumsum(np.array(right, int))
    return hits / np.arange(1, len(right) + 1), hits / total


def eleven_points(precision: np.ndarray, recall: np.ndarray) -> float:
    """The mean, over recalls 0, 0.1 … 1, of the best precision at that recall or a higher one."""
    # The recall of k of n objects must count as having reached k / n however both are rounded.
    reached = [precision[recall >= point - 1e-9] for point in POINTS]
    return float(np.mean([values.max() if len(values) else 0.0 for values in reached]))


def area(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under precision over recall, where precision is the best at that recall or a higher one."""
    if not len(precision):
        return 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N,) of a box (4,) with others (N, 4), x, y, width, height in pixels."""
    start = np.maximum(box[:2], others[:, :2])
    end = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = np.clip(end - start, 0, None).prod(axis=1)
    return shared / (box[2:].prod() + others[:, 2:].prod(axis=1) - shared)
