"""COCO average precision of detections, by size and by class."""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from selfdet.errors import UserError

log = logging.getLogger(__name__)

# Names of the COCO area ranges: below 32², between 32² and 96², above 96² square pixels.
_STRATA = {"APs": "small", "APm": "medium", "APl": "large"}


def to_coco_results(image_id: int, prediction: Mapping[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections as COCO results.

    `prediction`: boxes (N, 4) float xyxy in the original image's pixels, scores (N,) float, labels (N,) int in
    0…K-1, as tensors or arrays; `category_ids`: the label file's id of each of the K classes.
    Returns one dict a detection: image_id, category_id, bbox [x, y, width, height] in pixels, score.
    Raises: ValueError when a label is outside 0…K-1 or the three have different lengths.
    """
    boxes, scores, labels = (_plain(prediction[key]) for key in ("boxes", "scores", "labels"))
    results = []
    for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
        if not 0 <= label < len(category_ids):
            raise ValueError(f"label {label} of image {image_id} is outside 0…{len(category_ids) - 1}")
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
        )
    return results


def evaluate_detections(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """COCO box AP of `results` against the labels in `coco`.

    `coco`: a label file's content, left as it is; `results`: COCO results (bbox [x, y, width, height] in pixels);
    `image_ids`: the images to evaluate, also those without detections (None: all); `classes`: names of the classes to
    evaluate (None: all). Detections of other images or classes of the file are left out. Detections whose score or box
    is not finite can't be ranked: they are left out, counted in a warning.

    Returns AP (IoU 0.50…0.95), AP50, AP75, APs, APm, APl in 0…1, None where no object exists to be found; per_class
    {name: AP}, where names that several classes share get the id behind them; images and detections, as evaluated.
    Objects without `area` count with their box's area.

    Raises: UserError for an unknown image, class or category id, for a result without the four keys, for an
    annotation without a box.
    Source: the COCO detection task's definition, as in pycocotools' COCOeval (100 detections an image and class).
    """
    chosen = _chosen_images(coco, image_ids)
    categories = _chosen_categories(coco, classes)
    objects = _objects(coco, chosen, categories)
    detections = _detections(coco, results, chosen, categories)
    precision = _precision(len(chosen), len(categories), objects, detections)

    # precision: IoU thresholds × recall points × classes × area ranges, -1 where a class has no object in a range.
    overall: dict[str, Any] = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    overall |= {key: _mean(precision[..., 1 + i]) for i, key in enumerate(_STRATA)}
    names = _unique_names([category for category in _sorted_categories(coco) if category["id"] in categories])
    per_class = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)}
    return {**overall, "per_class": per_class, "images": len(chosen), "detections": len(detections)}


def detection_table(metrics: Mapping[str, Any], title: str = "") -> str:
    """The figures of `evaluate_detections` as lines to print, in percent; a dash where there is nothing to measure."""
    lines = [title] if title else []
    keys = ["AP", "AP50", "AP75", *_STRATA]
    lines.append("".join(f"{key:>7}" for key in keys))
    lines.append("".join(f"{percent(metrics[key]):>7}" for key in keys))
    per_class: Mapping[str, float | None] = metrics["per_class"]
    if len(per_class) > 1:
        cells = [f"{name[:28]:<28}{percent(value):>6}" for name, value in per_class.items()]
        rows = math.ceil(len(cells) / (3 if len(cells) > 8 else 1))  # few classes: a list; many: three columns
        lines += ["", "AP by class"]
        lines += ["   ".join(cells[row::rows]) for row in range(rows)]
    lines.append(f"{metrics['images']} images, {metrics['detections']} detections, in percent")
    return "\n".join(lines)


def _plain(values: Any) -> list[Any]:
    """A tensor or array as Python numbers."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def percent(value: float | None) -> str:
    """A figure of 0…1 in percent with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _sorted_categories(coco: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(coco["categories"], key=lambda category: category["id"])


def _name(category: Mapping[str, Any]) -> str:
    return str(category.get("name", f"category {category['id']}"))


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes' names; those that more than one class has are told apart by their ids."""
    count = Counter(_name(category) for category in categories)
    return [_name(c) if count[_name(c)] == 1 else f"{_name(c)} (id {c['id']})" for c in categories]


def _chosen_images(coco: Mapping[str, Any], image_ids: Iterable[int] | None) -> dict[Hashable, int]:
    """Image id → its number in the evaluation, in order of id (which is the order of equal scores)."""
    known = {image["id"] for image in coco["images"]}
    wanted = known if image_ids is None else set(image_ids)
    unknown = wanted - known
    if unknown:
        raise UserError(
            f"{len(unknown)} images to evaluate are not in the label file, first id {min(unknown, key=str)}",
            "Evaluate against the label file that the images came from",
        )
    if not wanted:
        raise UserError("There is no image to evaluate", "Name a label file with at least one image")
    return {image_id: number for number, image_id in enumerate(sorted(wanted), start=1)}


def _chosen_categories(coco: Mapping[str, Any], classes: Sequence[str] | None) -> dict[Hashable, int]:
    """Category id → its number in the evaluation, in order of id."""
    categories = _sorted_categories(coco)
    if classes is not None:
        names = [_name(category) for category in categories]
        for name in classes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3) or names[:3]
                raise UserError(f"The label file has no class '{name}'", f"It has {len(names)}, such as {near}")
        categories = [category for category in categories if _name(category) in set(classes)]
    return {category["id"]: number for number, category in enumerate(categories, start=1)}


def _objects(
    coco: Mapping[str, Any], images: Mapping[Hashable, int], categories: Mapping[Hashable, int]
) -> list[dict[str, Any]]:
    """The labelled boxes as the evaluation numbers them: ids from 1, since its code takes 0 for 'not matched'."""
    objects: list[dict[str, Any]] = []
    for annotation in coco["annotations"]:
        if annotation["image_id"] not in images or annotation["category_id"] not in categories:
            continue
        if len(annotation.get("bbox", ())) != 4:
            raise UserError(
                f"Annotation {annotation.get('id')} of image {annotation['image_id']} has no bbox of four numbers",
                "Give every annotation its bbox [x, y, width, height] in pixels",
            )
        box = [float(value) for value in annotation["bbox"]]
        objects.append(
            {
                "id": len(objects) + 1,
                "image_id": images[annotation["image_id"]],
                "category_id": categories[annotation["category_id"]],
                "bbox": box,
                "area": float(annotation.get("area", box[2] * box[3])),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return objects


def _detections(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    images: Mapping[Hashable, int],
    categories: Mapping[Hashable, int],
) -> list[dict[str, Any]]:
    """The results to be ranked, as the evaluation numbers them."""
    known_images = {image["id"] for image in coco["images"]}
    known_categories = {category["id"] for category in coco["categories"]}
    detections: list[dict[str, Any]] = []
    not_finite = 0
    for position, result in enumerate(results):
        try:
            image_id, category_id = result["image_id"], result["category_id"]
            box, score = [float(value) for value in result["bbox"]], float(result["score"])
        except (KeyError, TypeError, ValueError):
            box, score = [], math.nan
        if len(box) != 4:
            raise UserError(
                f"Detection {position} is not a COCO result: {str(dict(result))[:120]}",
                "Each needs image_id, category_id, bbox [x, y, width, height] and score",
            )
        if image_id not in known_images or category_id not in known_categories:
            kind, value = ("image", image_id) if image_id not in known_images else ("category", category_id)
            raise UserError(
                f"Detection {position} names {kind} id {value}, which is not in the label file",
                "Evaluate detections against the label file of the images they were made on",
            )
        if image_id not in images or category_id not in categories:
            continue
        if not all(map(math.isfinite, (*box, score))):
            not_finite += 1
            continue
        detections.append(
            {
                "id": len(detections) + 1,
                "image_id": images[image_id],
                "category_id": categories[category_id],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
        )
    if not_finite:
        log.warning("%d of %d detections have a score or box that is not finite: left out", not_finite, len(results))
    return detections


def _silent(*_: object) -> None:
    """Takes the library's progress lines."""


def _precision(
    images: int, categories: int, objects: list[dict[str, Any]], detections: list[dict[str, Any]]
) -> np.ndarray:
    """Interpolated precision (10 IoU thresholds, 101 recall points, classes, area ranges all/small/medium/large)."""
    frame = {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": number} for number in range(1, categories + 1)],
    }
    truth = COCO({**frame, "annotations": objects}, print_function=_silent)
    found = COCO({**frame, "annotations": detections}, print_function=_silent)
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"]
    return precision[..., -1]  # the last of the limits 1, 10, 100 detections
