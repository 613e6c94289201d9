"""COCO average precision of detections, boxes and masks, by size and by class."""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from selfdet.data.masks import encode_masks
from selfdet.errors import UserError, one_line
from selfdet.evaluation.masks import image_sizes, masked_detections, masked_objects

log = logging.getLogger(__name__)

# Names of the COCO area ranges: below 32², between 32² and 96², above 96² square pixels.
_STRATA = {"APs": "small", "APm": "medium", "APl": "large"}


def to_coco_results(image_id: int, prediction: Mapping[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections as COCO results.

    `prediction`: boxes (N, 4) float xyxy in the original image's pixels, scores (N,) float, labels (N,) int in
    0…K-1, as tensors or arrays, and from a detector that gives them masks of the original image's size, (N, H, W) bool
    or a list of N compressed RLE; `category_ids`: the label file's id of each of the K classes.
    Returns one dict a detection: image_id, category_id, bbox [x, y, width, height] in pixels, score, and with masks
    segmentation, compressed RLE {"size": [H, W], "counts": str}.
    Raises: ValueError when a label is outside 0…K-1 or they have different lengths.
    """
    boxes, scores, labels = (_plain(prediction[key]) for key in ("boxes", "scores", "labels"))
    masks: list[dict[str, Any]] = [{}] * len(boxes)
    if "masks" in prediction:
        given = prediction["masks"]
        masks = [{"segmentation": each} for each in (given if isinstance(given, list) else encode_masks(given))]
    results = []
    for (x1, y1, x2, y2), score, label, mask in zip(boxes, scores, labels, masks, strict=True):
        if not 0 <= label < len(category_ids):
            raise ValueError(f"label {label} of image {image_id} is outside 0…{len(category_ids) - 1}")
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                **mask,
            }
        )
    return results


def evaluate_detections(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    classes: Sequence[str] | None = None,
    masks: bool | None = None,
) -> dict[str, Any]:
    """COCO box AP of `results` against the labels in `coco`, and mask AP where both hold segmentations.

    `coco`: a label file's content, left as it is; `results`: COCO results (bbox [x, y, width, height] in pixels);
    `image_ids`: the images to evaluate, also those without detections (None: all); `classes`: names of the classes to
    evaluate (None: all). Detections of other images or classes of the file are left out. Detections whose score or box
    is not finite can't be ranked: they are left out, counted in a warning. `masks`: whether to evaluate masks (None:
    if a result has a segmentation).

    Returns AP (IoU 0.50…0.95), AP50, AP75, APs, APm, APl in 0…1, None where no object exists to be found; per_class
    {name: AP}, where names that several classes share get the id behind them; images and detections, as evaluated.
    Objects without `area` count with their box's area. "mask" has the same figures of masks, but for the two counts;
    it is absent where masks are not evaluated or no label has a segmentation. A mask's size is its own area; objects
    without a segmentation are ignored there, counted in a warning.

    Raises: UserError for an unknown image, class or category id, for a result without the four keys, for an
    annotation without a box, for a segmentation that can't be read or is not of its image's size.
    Source: the COCO detection task's definition, as in pycocotools' COCOeval (100 detections an image and class), for
    masks of results without "bbox".
    """
    chosen = _chosen_images(coco, image_ids)
    categories = _chosen_categories(coco, classes)
    objects, annotations = _objects(coco, chosen, categories)
    detections, ranked = _detections(coco, results, chosen, categories)
    names = _unique_names([category for category in _sorted_categories(coco) if category["id"] in categories])
    metrics = _figures(_precision(dict.fromkeys(chosen.values()), objects, detections, "bbox", len(names)), names)
    metrics |= {"images": len(chosen), "detections": len(detections)}
    if masks or (masks is None and any("segmentation" in result for result in ranked)):
        sizes = image_sizes(chosen, coco["images"], [*annotations, *ranked])
        if objects := masked_objects(objects, annotations, sizes):
            detections = masked_detections(detections, ranked, sizes)
            metrics["mask"] = _figures(_precision(sizes, objects, detections, "segm", len(names)), names)
    return metrics


def detection_table(metrics: Mapping[str, Any], title: str = "") -> str:
    """The figures of `evaluate_detections` as lines to print, in percent; a dash where there is nothing to measure.

    With masks, the rows are APᵇ (boxes) and APᵐ (masks).
    """
    lines = [title] if title else []
    rows = {"APᵇ": metrics, "APᵐ": metrics["mask"]} if "mask" in metrics else {"": metrics}
    margin = max(map(len, rows))
    keys = ["AP", "AP50", "AP75", *_STRATA]
    lines.append(" " * margin + "".join(f"{key:>7}" for key in keys))
    lines += [name + "".join(f"{percent(row[key]):>7}" for key in keys) for name, row in rows.items()]
    if len(metrics["per_class"]) > 1:
        cells = [
            f"{one_line(name)[:28]:<28}" + "".join(f"{percent(row['per_class'][name]):>6}" for row in rows.values())
            for name in metrics["per_class"]
        ]
        # Few classes: a list; many: as many columns as a terminal has room for.
        height = math.ceil(len(cells) / (1 if len(cells) <= 8 else 4 - len(rows)))
        lines += ["", f"{' and '.join(rows) if margin else 'AP'} by class"]
        lines += ["   ".join(cells[row::height]) for row in range(height)]
    lines.append(f"{metrics['images']} images, {metrics['detections']} detections, in percent")
    return "\n".join(lines)


def detection_line(metrics: Mapping[str, Any]) -> str:
    """The three figures of `evaluate_detections` that matter most in one line, in percent; of masks too."""
    rows = {"": metrics, "; masks: ": metrics["mask"]} if "mask" in metrics else {"": metrics}
    keys = ("AP", "AP50", "AP75")
    return "".join(name + "  ".join(f"{key} {percent(row[key])} %" for key in keys) for name, row in rows.items())


def _plain(values: Any) -> list[Any]:
    """A tensor or array as Python numbers."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def percent(value: float | None) -> str:
    """A figure of 0…1 in percent with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def _figures(precision: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """AP, by IoU, size and class, of a `_precision` of the classes `names`."""
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{key: _mean(precision[..., 1 + i]) for i, key in enumerate(_STRATA)},
        "per_class": {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
    }


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
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """The labelled boxes as the evaluation numbers them (ids from 1, since its code takes 0 for 'not matched'), and
    the annotations they come from."""
    objects: list[dict[str, Any]] = []
    annotations: list[Mapping[str, Any]] = []
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
        annotations.append(annotation)
    return objects, annotations


def _detections(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    images: Mapping[Hashable, int],
    categories: Mapping[Hashable, int],
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """The results to be ranked, as the evaluation numbers them, and as they were given."""
    known_images = {image["id"] for image in coco["images"]}
    known_categories = {category["id"] for category in coco["categories"]}
    detections: list[dict[str, Any]] = []
    ranked: list[Mapping[str, Any]] = []
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
        ranked.append(result)
    if not_finite:
        log.warning("%d of %d detections have a score or box that is not finite: left out", not_finite, len(results))
    return detections, ranked


def _silent(*_: object) -> None:
    """Takes the library's progress lines."""


def _precision(
    sizes: Mapping[int, tuple[int, int] | None],
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    kind: Literal["bbox", "segm"],
    categories: int,
) -> np.ndarray:
    """Interpolated precision (10 IoU thresholds, 101 recall points, classes, area ranges all/small/medium/large); -1
    where a class has no object in a range. `sizes`: (H, W) of each image by number, for masks."""
    frame = {
        "images": [
            {"id": number} if size is None else {"id": number, "height": size[0], "width": size[1]}
            for number, size in sizes.items()
        ],
        "categories": [{"id": number} for number in range(1, categories + 1)],
    }
    truth = COCO({**frame, "annotations": objects}, print_function=_silent)
    found = COCO({**frame, "annotations": detections}, print_function=_silent)
    evaluation = COCOeval_faster(truth, found, kind, print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"]
    return precision[..., -1]  # the last of the limits 1, 10, 100 detections
