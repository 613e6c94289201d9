"""Log-average miss rate (MR⁻²) of boxes: what is used for pedestrians, where one false alarm an image is many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdet.data.untrusted import to_float
from selfdet.evaluation.detection import percent
from selfdet.training.log import plural

# False positives an image at which the miss rate is read: nine, evenly in the logarithm from 0.01 to 1.
REFERENCES = 10.0 ** np.linspace(-2, 0, 9)
LOWEST = 1e-10  # a miss rate of 0 has no logarithm
# Fields of an annotation that say how much of an object is seen: a share of 0…1, or a box [x, y, width, height].
SHARE, BOXES = "vis_ratio", ("vis_bbox", "vbox")
# A share may be a little above 1, as visible boxes are drawn by hand; much more is percent, or a mistake.
MOST = 2.0


@dataclass(frozen=True)
class Subset:
    """The objects to be found; all others are ignored. Both bounds belong to it.

    heights: of the labelled box, in pixels of the image. visible: share of the box that is seen, None for any.
    """

    heights: tuple[float, float] = (0.0, math.inf)
    visible: tuple[float, float] | None = None

    def holds(self, heights: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """(N,) bool of objects (N,) with these heights and visible shares."""
        inside = (heights >= self.heights[0]) & (heights <= self.heights[1])
        return inside if self.visible is None else inside & (visible >= self.visible[0]) & (visible <= self.visible[1])

    def counts(self, heights: np.ndarray) -> np.ndarray:
        """(N,) bool of detections: those more than 1.25 times too low or too high are left out, right or wrong."""
        return (heights >= self.heights[0] / 1.25) & (heights < self.heights[1] * 1.25)


SUBSETS = {
    "all": Subset(),
    "reasonable": Subset((50.0, math.inf), (0.65, math.inf)),
    "small": Subset((50.0, 75.0), (0.65, math.inf)),
    "heavy_occlusion": Subset((50.0, math.inf), (0.2, 0.65)),
}


def miss_rates(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """MR⁻² of `results` against the labels in `coco`: the lower, the better.

    `coco`: a label file's content; an annotation whose `iscrowd` or `ignore` is 1 is a region to be ignored. `results`:
    COCO results (bbox [x, y, width, height] in pixels); those without a finite score and box are left out.
    `image_ids`: the images to evaluate, `classes`: the names of the classes (None: all).

    Each detection of an image, the best scored first, takes the object of its class that it overlaps most, of those
    that no other has taken, from an IoU of 0.5 on. One that finds none but lies with half of its own area or more in
    an ignored box counts neither way; an ignored box may take many. The rate is the geometric mean of the shares of
    objects missed at 0.01 to 1 false positives an image (`REFERENCES`); where the curve ends before, its last share
    holds; where even the first detection is one false positive too many, everything is missed.

    Returns for each of `SUBSETS` the mean over the classes in 0…1, None where it can't be measured; "per_class",
    name → the same figures; "not_measured", subset → the reason in words. How much of an object is visible is read from
    its `vis_ratio` (0…1), else `vis_bbox` or `vbox` ([x, y, width, height]) as a share of its `bbox`; unless every
    object that is not ignored has one of these only "all" is measured. Boxes without area are left out.

    Source: Dollár et al. 2012, Pedestrian Detection: An Evaluation of the State of the Art, sections 3.1 and 3.2;
    subsets: Zhang et al. 2017, CityPersons, arXiv 1702.05693, in the ranges of its evaluation program.
    """
    wanted = {image["id"] for image in coco["images"]} if image_ids is None else set(image_ids)
    own = [each for each in coco["categories"] if classes is None or each["name"] in classes]
    entries, found = _by_class(coco["annotations"], wanted), _by_class(filter(_is_finite, results), wanted)
    unseen = sum(
        visible_share(each) is None for category in own for each in entries[category["id"]] if not _is_ignored(each)
    )
    per_class: dict[str, dict[str, float | None]] = {}
    for category in sorted(own, key=lambda category: category["id"]):
        images = _pairs(entries[category["id"]], found[category["id"]])
        per_class[category["name"]] = {
            name: None if unseen and subset.visible else _rate(images, subset, len(wanted))
            for name, subset in SUBSETS.items()
        }
    means: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, subset in SUBSETS.items():
        known = [value for figures in per_class.values() if (value := figures[name]) is not None]
        means[name] = float(np.mean(known)) if known else None
        if unseen and subset.visible:
            reasons[name] = f"{plural(unseen, 'object')} without {SHARE} (0…1), {' or '.join(BOXES)}"
        elif not known:
            reasons[name] = "no such object"
    return {**means, "per_class": per_class, "not_measured": reasons}


def visible_share(entry: Mapping[str, Any]) -> float | None:
    """The share of an annotation's box that is seen, 0…1; None where the label file doesn't say."""
    if (share := to_float(entry.get(SHARE))) is not None and 0 <= share <= MOST:
        return min(1.0, share)
    for name in BOXES:
        seen = entry.get(name)
        sides = [to_float(value) for value in seen[2:]] if isinstance(seen, list) and len(seen) == 4 else []
        found = [side for side in sides if side is not None and 0 <= side < math.inf]
        if len(found) == 2:
            return float(min(1.0, found[0] * found[1] / (entry["bbox"][2] * entry["bbox"][3])))
    return None


def miss_rate_lines(rates: Mapping[str, Any]) -> list[str]:
    """The figures of `miss_rates` as lines to print, in percent, and why some are not there."""
    names = [name for name in SUBSETS if name not in rates["not_measured"]]
    rows = {"": rates} if len(rates["per_class"]) < 2 else {"mean": rates, **rates["per_class"]}
    lines = ["MR⁻² (log-average miss rate, lower is better): " + ("" if names else "nothing to measure")]
    for row, figures in rows.items() if names else ():
        words = "  ".join(f"{name.replace('_', ' ')} {percent(figures[name])} %" for name in names)
        if row:
            lines.append(f"  {row[:28]:<28}  {words}")
        else:
            lines[0] += words
    lines += [f"  not measured, {name.replace('_', ' ')}: {why}" for name, why in rates["not_measured"].items()]
    return lines


@dataclass(frozen=True)
class _Image:
    """Objects and detections of one class in one image, the best scored detection first.

    iou (D, N), covered (D, N): share of the detection inside the object.
    """

    heights: np.ndarray
    visible: np.ndarray
    ignored: np.ndarray
    found_heights: np.ndarray
    scores: np.ndarray
    iou: np.ndarray
    covered: np.ndarray


def _by_class(entries: Iterable[Mapping[str, Any]], images: set[int]) -> dict[int, list[Mapping[str, Any]]]:
    """Annotations or results of these images with an area, by class."""
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["image_id"] in images and min(entry["bbox"][2:]) > 0:
            found[entry["category_id"]].append(entry)
    return found


def _is_finite(result: Mapping[str, Any]) -> bool:
    return all(map(math.isfinite, (*result["bbox"], result["score"])))


def _is_ignored(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("iscrowd") or entry.get("ignore"))


def _pairs(entries: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> list[_Image]:
    """One of each image with an object or a detection, in order of their ids, which is that of equal scores."""
    rows: dict[int, tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]] = defaultdict(lambda: ([], []))
    for side, each in ((side, each) for side, group in enumerate((entries, results)) for each in group):
        rows[each["image_id"]][side].append(each)
    images = []
    for number in sorted(rows):
        objects, found = rows[number]
        found = sorted(found, key=lambda result: -result["score"])
        one, two = (np.array([each["bbox"] for each in group], float).reshape(-1, 4) for group in (found, objects))
        start = np.maximum(one[:, None, :2], two[None, :, :2])
        end = np.minimum(one[:, None, :2] + one[:, None, 2:], two[None, :, :2] + two[None, :, 2:])
        shared = np.clip(end - start, 0, None).prod(axis=2)
        areas = one[:, 2:].prod(axis=1)[:, None]
        images.append(
            _Image(
                heights=two[:, 3],
                visible=np.array([math.nan if (v := visible_share(each)) is None else v for each in objects], float),
                ignored=np.array([_is_ignored(each) for each in objects], bool),
                found_heights=one[:, 3],
                scores=np.array([each["score"] for each in found], float),
                iou=shared / (areas + two[:, 2:].prod(axis=1) - shared),
                covered=shared / areas,
            )
        )
    return images


def _rate(images: Sequence[_Image], subset: Subset, count: int) -> float | None:
    """MR⁻² over `count` images, None where the subset has no object."""
    scores: list[np.ndarray] = []
    right: list[np.ndarray] = []
    objects = 0
    for image in images:
        ignored = image.ignored | ~subset.holds(image.heights, image.visible)
        objects += int((~ignored).sum())
        kept = subset.counts(image.found_heights)
        judged = _judge(image.iou[kept], image.covered[kept], ignored)
        scores.append(image.scores[kept][judged >= 0])
        right.append(judged[judged >= 0])
    if not objects:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return log_average(np.concatenate(right)[order] > 0, objects, count)


def _judge(iou: np.ndarray, covered: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """For each of D detections of an image, in order of score: 1 right, 0 wrong, -1 neither."""
    judged = np.zeros(len(iou), int)
    free = ~ignored
    for place in range(len(iou)):
        open_ = np.where(free, iou[place], 0.0)
        best = int(open_.argmax()) if len(open_) else -1
        if best >= 0 and open_[best] >= 0.5:
            judged[place], free[best] = 1, False
        elif (covered[place][ignored] >= 0.5).any():
            judged[place] = -1
    return judged


def log_average(right: np.ndarray, objects: int, images: int) -> float:
    """The geometric mean of the miss rates at `REFERENCES`; `right` (D,) bool, the best scored detection first."""
    wrong = np.cumsum(~right) / images
    missed = 1 - np.cumsum(right) / objects
    # The last detection up to which there are no more false positives than allowed. Rounding must not lose it.
    places = np.searchsorted(wrong, REFERENCES * (1 + 1e-9), side="right")
    rates = np.append(1.0, missed)[places]
    return float(np.exp(np.log(np.maximum(rates, LOWEST)).mean()))
